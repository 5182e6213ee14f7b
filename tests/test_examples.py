"""The recipes for clusters do what they say: their commands, run here, give one process's bytes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_tools.fast_tokenizer import FastTokenizer
from data_tools.fineweb import prepare
from data_tools.make_parts import make_part
from data_tools.parts import find_parts
from data_tools.recipe import Recipe
from tests.data_tools.preparations import contents, random_texts, write_jsonl
from tests.harness import ROOT

PARTS = 8


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder as the recipes expect it: texts, and an environment in which python is ours."""
    (tmp_path / "my_texts").mkdir()
    for number in range(PARTS + 3):
        texts = random_texts(number, documents=2 + number, words=60)
        write_jsonl(tmp_path / f"my_texts/{number:02d}.jsonl", [{"text": text} for text in texts])
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def run(command: list[str], here: Path, **environment: str) -> None:
    """Run the command of a recipe; what it needs of a cluster is in `environment`."""
    found = os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=here, env=found | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def container_of(file: str, here: Path) -> tuple[dict, list[str]]:
    """The job in a YAML file, and its command with the volume at `here`."""
    job = yaml.safe_load((ROOT / "examples" / file).read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert [volume["name"] for volume in pod["volumes"]] == ["data"]
    (exit_rule, _) = job["spec"]["podFailurePolicy"]["rules"]
    assert exit_rule["onExitCodes"]["containerName"] == container["name"]
    return job, [word.replace("/data/", f"{here}/") for word in container["command"]]


def expected_of(here: Path) -> dict[str, bytes]:
    recipe = Recipe([str(here / "my_texts")])
    prepare(recipe, here / "one", workers=1, fast_tokenizer=FastTokenizer())
    return contents(here / "one")


def test_a_slurm_array_and_an_indexed_job_write_the_parts_that_a_job_joins(here: Path):
    """One part by each, the others in this process."""
    script = ROOT / "examples" / "slurm_parts.sh"
    lines = script.read_text().splitlines()
    assert f"PARTS={PARTS}" in lines
    assert any(line.startswith("#SBATCH ") and f"--array=0-{PARTS - 1} " in line for line in lines)
    run(["bash", str(script), "my_texts", "parts"], here, SLURM_ARRAY_TASK_ID="0")

    job, command = container_of("kubernetes_parts.yaml", here)
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == PARTS
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    run(command, here, JOB_COMPLETION_INDEX=str(PARTS - 1))

    assert list(find_parts(here / "parts")) == [(0, PARTS), (PARTS - 1, PARTS)]
    for index in range(1, PARTS - 1):
        recipe = Recipe([str(here / "my_texts")])
        make_part(recipe, here / "parts", index, PARTS, workers=1, fast_tokenizer=FastTokenizer())
    _, command = container_of("kubernetes_merge.yaml", here)
    run(command, here)
    assert contents(here / "mine") == expected_of(here)


def test_datatrove_runs_the_same_function(here: Path):
    pytest.importorskip("datatrove")
    command = [sys.executable, "-m", "examples.datatrove_parts", "my_texts", "parts", "out"]
    run([*command, "--tasks", "4"], here)
    assert contents(here / "out") == expected_of(here)
    # A part that is lost is made again.
    lost = find_parts(here / "parts")[1, 4]
    lost.unlink()
    shutil.rmtree(here / "out")
    run([*command, "--tasks", "4"], here)
    assert lost.exists() and contents(here / "out") == expected_of(here)
