"""A checkpoint is never lost to a fresh start, a moved folder or a copy that looks newer."""

import shutil

import pytest

from minigpt_jax import load_run
from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.errors import RunError
from minigpt_jax.model import GPT
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.sharding import make_mesh
from minigpt_jax.step import TrainState, init_state
from tests.test_checkpoint import CONFIG, META, OPTIMIZER, save


@pytest.fixture(scope="module")
def state() -> TrainState:
    return init_state(GPT(CONFIG), OPTIMIZER, 0, make_mesh(2, 2, 1))


def test_a_fresh_start_keeps_the_old_checkpoints_until_it_has_saved(tmp_path, state):
    run = save(tmp_path / "run", state, [1, 2])
    checkpoints = Checkpoints(run, keep=1)
    checkpoints.set_aside()
    assert checkpoint_steps(run) == []
    checkpoints.save(state, 1, META)
    # This one may still fail.
    kept = {entry.name for entry in (run / "checkpoints").iterdir()}
    assert kept >= {"replaced-1", "replaced-2"}
    checkpoints.save(state, 2, META)
    checkpoints.close()
    assert {entry.name for entry in (run / "checkpoints").iterdir()} == {"2"}


def test_a_run_that_was_moved_is_not_saved_in_its_old_place(tmp_path, state):
    run = tmp_path / "run"
    checkpoints = Checkpoints(run, keep=1)
    run.rename(tmp_path / "moved")
    with pytest.raises(RunError, match="moved or deleted"):
        checkpoints.save(state, 1, META)
    assert not run.exists()
    # Another trainer has begun there.
    (run / "checkpoints").mkdir(parents=True)
    (run / "lock").write_text("1")
    with pytest.raises(RunError, match="moved or deleted"):
        checkpoints.save(state, 1, META)
    assert not checkpoint_steps(run)
    checkpoints.close()


def test_a_copy_under_another_step_is_not_used(tmp_path, state, capsys):
    run = save(tmp_path / "run", state, [1])
    shutil.copytree(run / "checkpoints" / "1", run / "checkpoints" / "9")
    assert load_run(run).meta["step"] == 1
    assert "it holds step 1" in capsys.readouterr().err
