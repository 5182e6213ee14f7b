"""Numbers that are none, and two thousand steps in which nothing may grow."""

import re
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.tracking.run_log import TOO_MANY_SKIPPED
from tests.faults.scenarios import Place
from tests.harness import ENVIRONMENT, ROOT, command, train


def test_a_run_that_diverges_ends_and_keeps_its_last_good_checkpoint(place: Place):
    """Weights times -99 at every step: they leave float32 after twenty."""
    wild = {
        "schedule__peak": 10.0,
        "schedule__kind": "constant",
        "schedule__warmup": 0,
        "optimizer__weight_decay": 10.0,
        "optimizer__clip": 1e30,
    }
    settings = place.settings("diverging", horizon__steps=100, **wild)
    said = train(expect=1, **settings)
    assert f"not finite {TOO_MANY_SKIPPED} times in a row" in said.splitlines()[-1]
    run = place.runs / "diverging"
    skipped = [r["skipped"] for r in read_jsonl(run / "metrics.jsonl")]
    assert skipped[-TOO_MANY_SKIPPED:] == [1.0] * TOO_MANY_SKIPPED and not skipped[0]
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(load_run(run).params))
    # Going on changes nothing: it ends again, however it is cut into pieces.
    train(expect=1, **settings)


def memory_and_files(process: subprocess.Popen) -> tuple[int, int]:
    """Resident kilobytes and open files."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]), len(
        list(Path(f"/proc/{process.pid}/fd").iterdir())
    )


@pytest.mark.campaign
def test_two_thousand_steps_after_warm_up_leave_nothing_behind(place: Place):
    # Python finds the garbage of compilation (200 MB) after about 1,250 steps: until then nothing is in its final state.
    first, last = range(1600, 1700), range(3500, 3600)
    settings = place.settings(
        "soak", horizon__steps=last.stop, save__every=10, eval__every=500, log__every=1
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
    measured, compiled = {}, []
    for line in process.stdout:
        if match := re.match(r"step +(\d+)/", line):
            step = int(match[1])
            if step in first or step in last:  # a hundred times: a checkpoint may be in the making
                measured.setdefault(step in last, []).append(memory_and_files(process))
        elif "Compiling" in line:
            compiled.append(len(measured))
    assert process.wait() == 0
    (memory, files), (later_memory, later_files) = (np.array(measured[n]).T for n in (False, True))
    growth = (np.median(later_memory) / np.median(memory) - 1) / (last.start - first.start) * 1000
    print(
        f"memory {growth:+.2%} in 1,000 steps from {np.median(memory) / 1e3:.0f} MB; {files.min()} files, then {later_files.min()}"
    )
    assert growth < 0.01
    assert later_files.min() <= files.min()  # between two saves
    assert compiled and not any(compiled)  # all of it before the first measurement
    run = place.runs / "soak"
    assert len(checkpoint_steps(run)) <= 3 and all(
        p.name.isdecimal() for p in (run / "checkpoints").iterdir()
    )
    assert not list(run.glob("*.tmp"))
