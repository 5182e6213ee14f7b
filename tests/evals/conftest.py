"""The trained and the finetuned run for evaluations, which write answers and reports into them."""

from pathlib import Path

import pytest

from tests.harness import copy_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def pretrained(runs, trained_run) -> Path:
    """Twelve steps, evaluated after 0, 4, 8 and 12 of them; `said` holds the output of train.py."""
    run = copy_run(trained_run, runs)
    (run / "said").write_text((trained_run.parent / "trained.txt").read_text())
    return run


@pytest.fixture(scope="session")
def finetuned(runs, finetuned_run) -> Path:
    return copy_run(finetuned_run, runs)
