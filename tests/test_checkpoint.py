"""A checkpoint restores every bit, notices every changed bit, and falls back if damaged."""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.checkpoint import Checkpoints, load_params
from minigpt_jax.checkpoint_meta import read_meta, with_checksum
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.fingerprints import array_fingerprints
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.optim import make_optimizer
from minigpt_jax.resume import recorded_config
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.sharding import make_mesh
from minigpt_jax.step import TrainState, abstract_state, init_state

ROOT = Path(__file__).parents[1]
CONFIG = GPTConfig(vocab_size=250, context=16, layers=2, heads=4, embed=32)
OPTIMIZER = make_optimizer()
META = {"model": asdict(CONFIG), "config": {"seed": 0}, "data": "none", "validation_loss": None}


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


def at_step(state: TrainState, step: int) -> TrainState:
    """`state` as it might be after `step` steps."""
    params = state.params | {"wpe": state.params["wpe"] + step}
    return state.replace(step=jnp.asarray(step, jnp.int32), params=params)


def save(
    run: Path,
    state: TrainState,
    steps: Sequence[int],
    *,
    keep: int = 10,
    losses: Sequence[float | None] | None = None,
) -> Path:
    """The run, with a checkpoint of every step of `steps`."""
    checkpoints = Checkpoints(run, keep=keep)
    for step, loss in zip(steps, losses or [None] * len(steps), strict=True):
        checkpoints.save(at_step(state, step), step, META | {"validation_loss": loss})
    checkpoints.close()
    return run


def restore(run: Path, mesh, config: GPTConfig = CONFIG) -> tuple[TrainState, dict]:
    checkpoints = Checkpoints(run, keep=10)
    abstract = abstract_state(GPT(config), OPTIMIZER, mesh)
    restored = checkpoints.restore(abstract, config, lambda meta: None)
    checkpoints.close()
    assert restored
    return restored


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def meta_file(run: Path, step: int) -> Path:
    return run / "checkpoints" / str(step) / "meta" / "metadata"


def test_every_bit_is_restored_on_any_mesh(tmp_path, state, mesh):
    run = save(tmp_path / "run", state, [3])
    for other in (mesh, make_mesh(1, 1, 4), make_mesh(4, 1, 1)):
        found, meta = restore(run, other)
        assert meta["step"] == found.step == 3
        assert equal(found.opt_state, state.opt_state)
        assert equal(found.params, at_step(state, 3).params)
        assert found.params["wte"].sharding.mesh.shape == other.shape


def test_the_checksum_changes_with_any_bit_and_not_with_the_sharding():
    draw = np.random.default_rng(1)
    array = draw.normal(size=(24, 8)).astype(np.float32)
    reference = array_fingerprints({"a": jnp.asarray(array)})
    for axes in ((4, 1, 1), (1, 4, 1), (2, 2, 1)):
        sharding = jax.NamedSharding(make_mesh(*axes), jax.P(("data", "fsdp")))
        assert array_fingerprints({"a": jax.device_put(array, sharding)}) == reference
    for bit in draw.integers(0, array.nbytes * 8, 300):
        damaged = bytearray(array.tobytes())
        damaged[bit // 8] ^= 1 << bit % 8
        changed = np.frombuffer(bytes(damaged), np.float32).reshape(array.shape)
        assert array_fingerprints({"a": jnp.asarray(changed)}) != reference


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path, state, mesh, damage, capfd
):
    run = save(tmp_path / "run", state, [1, 2])
    victim = largest_file(run / "checkpoints" / "2" / "params")
    size = victim.stat().st_size
    if damage == "flip":
        flip(victim, size * 4)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[: size // 2])
    else:
        victim.unlink()
    assert load_params(run)[2]["step"] == 1
    found, meta = restore(run, mesh)
    assert meta["step"] == found.step == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all("checkpoint 2 is damaged" in line for line in lines), lines


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"seal": ""}', "\udcff"])
def test_damaged_json_is_named_and_the_checkpoint_before_is_used(
    tmp_path, state, mesh, content, capfd
):
    run = save(tmp_path / "run", state, [1, 2])
    meta_file(run, 2).write_bytes(content.encode(errors="surrogateescape"))
    assert load_params(run)[2]["step"] == 1
    assert restore(run, mesh)[1]["step"] == 1
    assert capfd.readouterr().err.count("checkpoint 2 is damaged") == 2


def test_a_damaged_checkpoint_does_not_count_as_one_to_keep(tmp_path, state, mesh):
    run = save(tmp_path / "run", state, [1, 2])
    meta_file(run, 2).write_text("{")
    checkpoints = Checkpoints(run, keep=1)
    abstract = abstract_state(GPT(CONFIG), OPTIMIZER, mesh)
    restored = checkpoints.restore(abstract, CONFIG, lambda meta: None)
    assert restored
    checkpoints.save(restored[0], 3, META)
    checkpoints.close()
    assert checkpoint_steps(run) == [3]


def test_if_all_are_damaged_restoring_fails(tmp_path, state, mesh):
    run = save(tmp_path / "run", state, [1])
    largest_file(run / "checkpoints" / "1" / "params").unlink()
    with pytest.raises(RunError, match="fresh=True"):
        restore(run, mesh)
    with pytest.raises(InputError, match="no usable checkpoint"):
        load_run(run)


def test_another_architecture_is_refused_by_its_fields(tmp_path, state, mesh):
    run = save(tmp_path / "run", state, [1])
    with pytest.raises(InputError, match=r"layers 2 -> 3, embed 32 -> 64"):
        restore(run, mesh, replace(CONFIG, layers=3, embed=64))


def test_a_model_field_of_a_later_version_is_refused_and_nothing_is_set_aside(
    tmp_path, state, mesh
):
    run = save(tmp_path / "run", state, [1, 2])
    meta = {name: value for name, value in read_meta(run, 2).items() if name != "seal"}
    meta["model"]["rotary"] = True
    meta_file(run, 2).write_text(json.dumps(with_checksum(meta)))
    for load in (lambda: restore(run, mesh), lambda: load_params(run)):
        with pytest.raises(InputError, match="fields rotary, which this version does not know"):
            load()
    assert checkpoint_steps(run) == [1, 2]


def test_another_dtype_is_refused_by_the_name_of_the_array(tmp_path, state, mesh):
    run = save(tmp_path / "run", state, [1])
    meta = read_meta(run, 1)
    del meta["seal"]
    meta["arrays"]["params/wte"]["dtype"] = "bfloat16"
    meta_file(run, 1).write_text(json.dumps(with_checksum(meta)))
    with pytest.raises(InputError, match=r"params/wte: bfloat16\[256, 32\] -> float32\[256, 32\]"):
        restore(run, mesh)


def test_the_newest_and_the_best_are_kept(tmp_path, state):
    losses = [9.0, 3.0, 4.0, None, 5.0, 6.0]
    run = save(tmp_path / "run", state, range(1, 7), keep=2, losses=losses)
    assert checkpoint_steps(run) == [2, 5, 6]
    assert read_meta(run, 2)["validation_loss"] == 3.0


def test_a_checkpoint_that_cannot_be_read_now_is_kept(tmp_path, state):
    """It may be the best: a disk that fails for a moment must not cost it."""
    run = save(tmp_path / "run", state, [1, 2, 3, 4], losses=[5.0, 3.0, 4.0, 6.0])
    # Reading address 0 of a process fails with EIO.
    meta_file(run, 2).rename(run / "away")
    meta_file(run, 2).symlink_to("/proc/self/mem")
    save(run, state, [5], keep=1, losses=[7.0])
    assert checkpoint_steps(run) == [2, 3, 5]
    (run / "away").replace(meta_file(run, 2))
    save(run, state, [6], keep=1, losses=[8.0])
    assert checkpoint_steps(run) == [2, 6]


def test_meta_data_of_another_program_are_refused_by_the_missing_fields(tmp_path, state, mesh):
    run = save(tmp_path / "run", state, [1, 2])
    meta = {n: v for n, v in read_meta(run, 2).items() if n not in ("seal", "model", "data")}
    meta_file(run, 2).write_text(json.dumps(with_checksum(meta)))
    for load in (lambda: restore(run, mesh), lambda: load_params(run)):
        with pytest.raises(InputError, match="checkpoint 2 has no model, data"):
            load()
    assert checkpoint_steps(run) == [1, 2]


def test_weights_that_are_not_finite_are_not_used(tmp_path, state, mesh, capfd):
    run = tmp_path / "run"
    checkpoints = Checkpoints(run, keep=10)
    checkpoints.save(at_step(state, 1), 1, META)
    second = at_step(state, 2)
    with_nan = second.params | {"wpe": second.params["wpe"].at[0, 0].set(jnp.nan)}
    checkpoints.save(second.replace(params=with_nan), 2, META)
    checkpoints.close()
    assert load_params(run)[2]["step"] == 1
    assert "params/wpe: holds values that are not finite" in capfd.readouterr().err
    assert restore(run, mesh)[1]["step"] == 1


def test_unknown_entries_are_ignored_and_temporary_ones_removed(tmp_path, state, mesh):
    run = save(tmp_path / "run", state, [1])
    folder = run / "checkpoints"
    (folder / "9").mkdir()
    (folder / "8").write_text("")
    (folder / "abc").mkdir()
    (folder / "7.orbax-checkpoint-tmp").mkdir()
    (folder / "deleting-0").mkdir()
    assert restore(run, mesh)[1]["step"] == 1
    assert sorted(entry.name for entry in folder.iterdir()) == ["1", "8", "9", "abc"]


def test_load_run_gives_the_weights_alone(tmp_path, state):
    run = load_run(save(tmp_path / "run", state, [4]))
    assert run.config == CONFIG
    assert equal(run.params, at_step(state, 4).params)
    assert run.tokenizer.decode(run.tokenizer.encode("whole")) == "whole"


def test_the_recorded_config_is_that_of_the_newest_readable_checkpoint(tmp_path, state, capfd):
    run = save(tmp_path / "run", state, [1])
    assert recorded_config(tmp_path / "nowhere") is None
    assert recorded_config(run) == {"seed": 0}
    checkpoints = Checkpoints(run, keep=10)
    checkpoints.save(at_step(state, 2), 2, META | {"config": {"seed": 2}})
    checkpoints.close()
    assert recorded_config(run) == {"seed": 2}
    meta_file(run, 2).write_text("{")
    assert recorded_config(run) == {"seed": 0}
    meta_file(run, 1).unlink()
    assert recorded_config(run) is None
    assert not capfd.readouterr().err


LOAD_AND_COMPARE = """
import gc, logging, sys
import absl.logging, tensorstore
from minigpt_jax import load_run

def global_state():
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [(logger.level, list(logger.filters), logger.disabled) for logger in loggers]
    return levels, sys.unraisablehook, tensorstore.experimental_collect_matching_metrics

before = global_state()
run = load_run(sys.argv[1])
assert global_state() == before, (before, global_state())
gc.collect()
"""


def test_load_run_changes_nothing_global_and_prints_one_line_per_damaged_checkpoint(
    tmp_path, state
):
    """In a fresh interpreter, as in a notebook, with many arrays whose reads fail together."""
    run = save(tmp_path / "run", state, [1, 2])
    chunks = list((run / "checkpoints" / "2" / "params").glob("*/[0-9]*"))
    assert len(chunks) > 4
    for path in chunks:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_COMPARE, str(run)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "checkpoint 2 is damaged" in line


def test_what_the_trainer_removes_while_it_is_read_is_not_damaged(tmp_path, state, capfd):
    run = save(tmp_path / "run", state, [1])
    loaded = threading.Event()

    def train() -> None:
        checkpoints = Checkpoints(run, keep=1)
        for step in itertools.takewhile(lambda _: not loaded.is_set(), itertools.count(2)):
            checkpoints.save(at_step(state, step), step, META)
        checkpoints.close()

    with ThreadPoolExecutor(1) as trainer:
        training = trainer.submit(train)
        steps = []
        while len(set(steps)) < 5 and not training.done():
            steps.append(load_params(run)[2]["step"])
        loaded.set()
    training.result()
    assert steps == sorted(steps)
    assert "damaged" not in capfd.readouterr().err


def test_closing_the_checkpoints_undoes_every_global_change(tmp_path, state):
    hook = sys.unraisablehook
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    assert sys.unraisablehook is not hook
    checkpoints.save(at_step(state, 1), 1, META)
    checkpoints.close()
    assert sys.unraisablehook is hook
