"""Damage to any file of a checkpoint is harmless, or is found and the checkpoint before is used."""

import random
from typing import NamedTuple

import pytest

from minigpt_jax.checkpoint import load_params
from minigpt_jax.checkpoint_meta import read_meta
from minigpt_jax.fingerprints import array_fingerprints
from tests.faults.conftest import Restore
from tests.faults.scenarios import damage_checkpoint, damage_file
from tests.faults.workspace import Workspace

# One whose damage is in an array of the optimizer.
SEED_OF_WHOLE_RUN = 1000
SEEDS_IN_THIS_PROCESS = range(40)


class Saved(NamedTuple):
    """What the two checkpoints hold, by step."""

    arrays: dict[int, dict]

    def check(self, tree, step: int, stderr: str) -> None:
        """The arrays are those of `step`, and if it is not the newest, one line explains why."""
        found = array_fingerprints(tree)
        assert found == {path: self.arrays[step][path] for path in found}
        lines = stderr.splitlines()
        if step == 18:
            assert not lines
        else:
            assert step == 15
            assert len(lines) == 1 and "checkpoint 18 is damaged" in lines[0]


@pytest.fixture(scope="module")
def saved(workspace: Workspace) -> Saved:
    run = workspace.two_checkpoints
    return Saved({step: read_meta(run, step)["arrays"] for step in (15, 18)})


@pytest.mark.parametrize("seed", SEEDS_IN_THIS_PROCESS)
def test_damage_to_a_checkpoint_is_never_silent(
    workspace: Workspace, restore: Restore, saved: Saved, seed: int, capfd
):
    run = workspace.copy(workspace.two_checkpoints, f"damage_{seed}")
    print(damage_file(run / "checkpoints" / "18", random.Random(seed)))
    params, _, meta = load_params(run)
    saved.check({"params": params}, meta["step"], capfd.readouterr().err)
    restored = restore(run)
    assert restored
    state, meta = restored
    saved.check(state, meta["step"], capfd.readouterr().err)


def test_a_run_with_a_damaged_checkpoint_continues_from_the_one_before(workspace: Workspace):
    outcome = damage_checkpoint(workspace, SEED_OF_WHOLE_RUN)
    assert not (outcome.problems or outcome.silent), outcome.line()
    assert outcome.remark == "found, the one before used", outcome.line()
