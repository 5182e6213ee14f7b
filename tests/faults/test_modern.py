"""A run of the modern recipe (NanoChat, Muon) that is killed, and goes on here or elsewhere."""

import signal
from pathlib import Path

import numpy as np
import pytest

from minigpt_jax.runtime.files import read_jsonl
from tests.faults.workspace import Workspace, evaluated_steps, resumed_step
from tests.harness import copy_run, history, run_train, train, train_here

# Daily, test_kills.py does this with GPT-2 and AdamW.
pytestmark = [
    pytest.mark.campaign,
    pytest.mark.parametrize("workspace", ["modern"], indirect=True),
]


@pytest.fixture
def killed(workspace: Workspace) -> Path:
    """A run that was killed while it saved step 9: its newest checkpoint is 6."""
    run = workspace.runs / "killed"
    if not run.exists():
        point = {"MINIGPT_FAILPOINT": "before_commit@9:kill"}
        done = run_train(**workspace.settings(run.name), environment=point)
        assert done.returncode == -signal.SIGKILL, done.stdout
    return run


def test_a_killed_run_continues_bit_for_bit(workspace: Workspace, killed: Path):
    run = copy_run(killed, workspace.runs / "here")
    output = train(**workspace.settings(run.name, runs=run.parent))
    assert resumed_step(output) == 6
    assert workspace.differences(run) == []


def test_a_killed_run_continues_on_other_devices(workspace: Workspace, killed: Path):
    """It began on one device, and goes on with four: the same rows, nearly the same losses."""
    run = copy_run(killed, workspace.runs / "elsewhere")
    mesh = {"mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 2}
    output = train_here(**workspace.settings(run.name, runs=run.parent, **mesh))
    assert resumed_step(output) == 6
    assert evaluated_steps(run) == evaluated_steps(workspace.expected)
    assert [(step, batch) for step, _, batch in history(run)] == [
        (step, batch) for step, _, batch in history(workspace.expected)
    ]
    losses, expected = (
        [record["loss"] for record in read_jsonl(folder / "metrics.jsonl")]
        for folder in (run, workspace.expected)
    )
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    assert expected[-1] < expected[0] - 0.1
