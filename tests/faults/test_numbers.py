"""Losses that are not finite, and thousands of steps in which memory must not grow."""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.tracking.run_log import TOO_MANY_SKIPPED
from tests.faults.workspace import Workspace
from tests.harness import ENVIRONMENT, ROOT, command, train

# Multiplies the weights by about -99 at every step: they leave float32 after twenty.
DIVERGING = {
    "schedule__peak": 10.0,
    "schedule__kind": "constant",
    "schedule__warmup": 0,
    "optimizer__weight_decay": 10.0,
    "optimizer__clip": 1e30,
}


@pytest.mark.campaign
def test_a_run_that_diverges_ends_and_keeps_its_last_good_checkpoint(workspace: Workspace):
    settings = workspace.settings("diverging", horizon__steps=100, **DIVERGING)
    output = train(expect=1, **settings)
    assert f"not finite {TOO_MANY_SKIPPED} times in a row" in output.splitlines()[-1]
    run = workspace.runs / "diverging"
    skipped = [record["skipped"] for record in read_jsonl(run / "metrics.jsonl")]
    assert skipped[-TOO_MANY_SKIPPED:] == [1.0] * TOO_MANY_SKIPPED
    assert not skipped[0]
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(load_run(run).params))
    # A resumed run ends again.
    train(expect=1, **settings)


# Python collects the garbage of compilation (200 MB) after about 1,250 steps: before that, no
# measurement is final.
FIRST_WINDOW = range(1600, 1700)
LAST_WINDOW = range(3500, 3600)
# The highest growth in 1,000 steps.
MAX_GROWTH = 0.01


def memory_and_files(process: subprocess.Popen) -> tuple[int, int]:
    """Resident kilobytes and open files."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0])
    return resident, len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


@pytest.mark.campaign
def test_memory_and_open_files_do_not_grow_in_two_thousand_steps(workspace: Workspace):
    settings = workspace.settings(
        "soak", horizon__steps=LAST_WINDOW.stop, save__every=10, eval__every=500, log__every=1
    )
    process = subprocess.Popen(
        command(**settings),
        cwd=ROOT,
        env=ENVIRONMENT | {"JAX_LOG_COMPILES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    # A hundred measurements in each window: a checkpoint may be in the making.
    measured = defaultdict(list)
    measured_before_compiling = []
    for line in process.stdout:
        if match := re.match(r"step +(\d+)/", line):
            step = int(match[1])
            for window in (FIRST_WINDOW, LAST_WINDOW):
                if step in window:
                    measured[window].append(memory_and_files(process))
        elif "Compiling" in line:
            measured_before_compiling.append(len(measured))
    assert process.wait() == 0
    memory, files = np.array(measured[FIRST_WINDOW]).T
    later_memory, later_files = np.array(measured[LAST_WINDOW]).T
    steps = LAST_WINDOW.start - FIRST_WINDOW.start
    growth = (np.median(later_memory) / np.median(memory) - 1) / steps * 1000
    print(f"memory {growth:+.2%} in 1,000 steps from {np.median(memory) / 1e3:.0f} MB")
    print(f"{files.min()} files, then {later_files.min()}")
    assert growth < MAX_GROWTH
    # The minimum is between two saves.
    assert later_files.min() <= files.min()
    # Everything was compiled before the first measurement.
    assert measured_before_compiling and not any(measured_before_compiling)
    run = workspace.runs / "soak"
    assert len(checkpoint_steps(run)) <= 3
    assert all(entry.name.isdecimal() for entry in (run / "checkpoints").iterdir())
    assert not list(run.glob("*.tmp"))
