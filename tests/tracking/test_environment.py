"""environment.json: what a run ran on, and the commit of our own code, not of another project."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np

from minigpt_jax.tracking.environment import CHECKOUT, describe_code, describe_environment
from tests.harness import ROOT


def commit_all(folder: Path) -> None:
    """Make `folder` a git checkout with one commit, whatever the settings of the user are."""
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    for arguments in (["init"], ["add", "."], [*settings, "commit", "-m", "one"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def test_the_environment_is_json_and_names_what_matters():
    found = json.loads(json.dumps(describe_environment()))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["started"])
    assert found["devices"]["count"] >= 1 and found["devices"]["processes"] == 1
    assert found["devices"]["kind"]
    assert found["packages"]["numpy"] == np.__version__ and all(found["packages"].values())
    assert found["python"].startswith("3.") and found["command"] and found["platform"]


def test_the_checkout_is_the_folder_of_the_project():
    assert CHECKOUT == ROOT


def test_the_commit_is_that_of_our_own_checkout(tmp_path: Path):
    site = tmp_path / "project" / "site"
    package = site / "minigpt_jax"
    package.mkdir(parents=True)
    (package / "report.py").write_text("")
    commit_all(tmp_path / "project")
    # Installed inside the checkout of another project.
    assert describe_code(site) == {"commit": None, "modified": None}
    commit_all(site)
    assert len(describe_code(site)["commit"]) == 40
    assert describe_code(site)["modified"] is False
    (package / "report.py").write_text("changed")
    assert describe_code(site)["modified"] is True
