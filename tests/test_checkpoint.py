"""A checkpoint must give back every bit, must notice every bit that changed, and must never leave a run with nothing."""

from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.checkpoint import Checkpoints, describe, load_params, read_meta
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.optim import make_optimizer
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.sharding import make_mesh
from minigpt_jax.step import TrainState, abstract_state, init_state

CONFIG = GPTConfig(vocab_size=250, context=16, layers=2, heads=4, embed=32)
OPTIMIZER = make_optimizer()
META = {"model": asdict(CONFIG), "config": {}, "data": "none", "validation_loss": None}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 1)


@pytest.fixture(scope="module")
def state(mesh) -> TrainState:
    """Random numbers everywhere, moments included."""
    fresh = init_state(GPT(CONFIG), OPTIMIZER, 0, mesh)
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: jax.device_put(draw.normal(size=a.shape).astype(a.dtype), a.sharding), fresh
    )


def saved(run: Path, state: TrainState, steps, keep: int = 10, losses=None) -> Path:
    checkpoints = Checkpoints(run, keep=keep)
    for i, step in enumerate(steps):
        moved = state.replace(
            step=jnp.asarray(step, jnp.int32),
            params=state.params | {"wpe": state.params["wpe"] + step},
        )
        checkpoints.save(moved, step, META | {"validation_loss": losses[i] if losses else None})
    checkpoints.close()
    return run


def restored(run: Path, mesh, config: GPTConfig = CONFIG):
    checkpoints = Checkpoints(run, keep=10)
    result = checkpoints.restore(
        abstract_state(GPT(config), OPTIMIZER, mesh), config, lambda meta: None
    )
    checkpoints.close()
    return result


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_every_bit_comes_back_on_this_mesh_and_on_any_other(tmp_path, state, mesh):
    run = saved(tmp_path / "run", state, [3])
    for other in (mesh, make_mesh(1, 1, 4), make_mesh(4, 1, 1)):
        found, meta = restored(run, other)
        assert meta["step"] == found.step == 3
        assert equal(found.opt_state, state.opt_state) and equal(
            found.params, state.params | {"wpe": state.params["wpe"] + 3}
        )
        assert found.params["wte"].sharding.mesh.shape == other.shape


def test_the_checksum_sees_any_flipped_bit_and_no_sharding():
    draw = np.random.default_rng(1)
    array = draw.normal(size=(24, 8)).astype(np.float32)
    reference = describe({"a": jnp.asarray(array)})
    for axes in ((4, 1, 1), (1, 4, 1), (2, 2, 1)):
        spread = jax.device_put(array, jax.NamedSharding(make_mesh(*axes), jax.P(("data", "fsdp"))))
        assert describe({"a": spread}) == reference
    for bit in draw.integers(0, array.nbytes * 8, 300):
        damaged = bytearray(array.tobytes())
        damaged[bit // 8] ^= 1 << bit % 8
        changed = np.frombuffer(bytes(damaged), np.float32).reshape(array.shape)
        assert describe({"a": jnp.asarray(changed)}) != reference


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, state, mesh, damage, capfd):
    run = saved(tmp_path / "run", state, [1, 2])
    victim = largest_file(run / "checkpoints" / "2" / "params")
    if damage == "flip":
        flip(victim, victim.stat().st_size * 4)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    else:
        victim.unlink()
    found, meta = restored(run, mesh)
    assert meta["step"] == found.step == 1
    assert "checkpoint 2 is damaged" in capfd.readouterr().err
    assert load_params(run)[2]["step"] == 1


def test_a_damaged_checkpoint_does_not_stand_in_the_way_of_the_next(tmp_path, state, mesh):
    run = saved(tmp_path / "run", state, [1, 2])
    (run / "checkpoints" / "2" / "meta" / "metadata").write_text("{")
    checkpoints = Checkpoints(run, keep=1)
    found, _ = checkpoints.restore(
        abstract_state(GPT(CONFIG), OPTIMIZER, mesh), CONFIG, lambda meta: None
    )
    checkpoints.save(found, 3, META)
    checkpoints.close()
    assert checkpoint_steps(run) == [3]  # not one good and one damaged


def test_a_fresh_start_removes_every_checkpoint(tmp_path, state):
    run = saved(tmp_path / "run", state, [1, 2])
    checkpoints = Checkpoints(run, keep=1)
    checkpoints.clear()
    checkpoints.close()
    assert checkpoint_steps(run) == []


def test_if_all_are_damaged_it_stops_rather_than_start_over(tmp_path, state, mesh):
    run = saved(tmp_path / "run", state, [1])
    largest_file(run / "checkpoints" / "1" / "params").unlink()
    with pytest.raises(RunError, match="fresh=True"):
        restored(run, mesh)
    with pytest.raises(InputError, match="no usable checkpoint"):
        load_run(run)


def test_another_architecture_is_refused_by_its_fields(tmp_path, state, mesh):
    run = saved(tmp_path / "run", state, [1])
    with pytest.raises(InputError, match=r"layers 2 -> 3, embed 32 -> 64"):
        restored(run, mesh, replace(CONFIG, layers=3, embed=64))


def test_the_newest_and_the_best_are_kept(tmp_path, state):
    run = saved(
        tmp_path / "run", state, range(1, 7), keep=2, losses=[9.0, 3.0, 4.0, None, 5.0, 6.0]
    )
    assert checkpoint_steps(run) == [2, 5, 6]
    assert read_meta(run, 2)["validation_loss"] == 3.0


def test_weights_that_are_not_finite_are_not_used(tmp_path, state, mesh, capfd):
    checkpoints = Checkpoints(tmp_path / "run", keep=10)
    checkpoints.save(state.replace(step=jnp.asarray(1, jnp.int32)), 1, META)
    checkpoints.save(
        state.replace(
            step=jnp.asarray(2, jnp.int32),
            params=state.params | {"wpe": state.params["wpe"].at[0, 0].set(jnp.nan)},
        ),
        2,
        META,
    )
    checkpoints.close()
    assert load_params(tmp_path / "run")[2]["step"] == 1
    assert "params/wpe: holds values that are not finite" in capfd.readouterr().err
    assert restored(tmp_path / "run", mesh)[1]["step"] == 1


def test_stray_entries_are_ignored_and_left_overs_removed(tmp_path, state, mesh):
    run = saved(tmp_path / "run", state, [1])
    folder = run / "checkpoints"
    (folder / "9").mkdir()
    (folder / "8").write_text("")
    (folder / "abc").mkdir()
    (folder / "7.orbax-checkpoint-tmp").mkdir()
    (folder / "deleting-0").mkdir()
    assert restored(run, mesh)[1]["step"] == 1
    assert (
        not (folder / "7.orbax-checkpoint-tmp").exists()
        and not (folder / "deleting-0").exists()
        and (folder / "abc").exists()
    )
    (folder / "9").rmdir()


def test_load_run_gives_the_weights_alone(tmp_path, state):
    run = load_run(saved(tmp_path / "run", state, [4]))
    params, config, tokenizer = run.params, run.config, run.tokenizer
    assert config == CONFIG and equal(params["layers"], state.params["layers"])
    assert tokenizer.decode(tokenizer.encode("whole")) == "whole"
