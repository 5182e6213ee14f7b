"""One step must be the same on any mesh and for any accumulation, and must never write a bad
number.

The tests share one compiled step wherever they can: its learning rate is SCHEDULE, but WILD_RATE at
WILD_STEP.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.architectures import AnyModel, make_model
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.optim import learning_rate, make_optimizer
from minigpt_jax.sharding import AXES, batch_sharding, make_mesh
from minigpt_jax.step import (
    Batch,
    MeshFunction,
    TrainState,
    document_layout,
    init_state,
    make_eval_step,
    make_train_step,
)

# With dropout, so that every test of meshes and accumulation is one of dropout too.
CONFIG = GPTConfig(vocab_size=250, context=16, layers=2, heads=4, embed=32, dropout=0.1)
ROWS = 8
SCHEDULE = partial(learning_rate, horizon=20, peak=1e-2, warmup=2)
# Almost the largest number in float32.
WILD_RATE = 3.402e38
WILD_STEP = 1000
OPTIMIZER = make_optimizer()
MUON = make_optimizer(kind="muon", embedding_lr_scale=3.0, head_lr_scale=0.5)
# Model and optimizer.
RECIPES = {
    "gpt2": (CONFIG, OPTIMIZER),
    "nanochat": (replace(CONFIG, architecture="nanochat", dropout=0.0), MUON),
    "gpt2 with muon": (CONFIG, MUON),
}


def schedule(step: jax.Array) -> jax.Array:
    return jnp.where(step == WILD_STEP, jnp.float32(WILD_RATE), SCHEDULE(step))


def make_step(
    mesh: jax.sharding.Mesh, model: AnyModel, rate=schedule, optimizer=OPTIMIZER
) -> MeshFunction:
    return make_train_step(model, optimizer, rate, mesh, seed=0, loss_chunk=4)


def random_batch(seed: int = 0, accumulation: int = 1) -> Batch:
    draw = np.random.default_rng(seed)
    weights = (draw.random((ROWS, 16)) < 0.7).astype(np.uint8)
    # Micro-batches of unequal weight: a mean of means would be wrong.
    weights[0] = 0
    tokens = draw.integers(0, 250, (ROWS, 17)).astype(np.uint16)
    shape = (accumulation, ROWS // accumulation, -1)
    return Batch(tokens.reshape(shape), weights.reshape(shape))


def train(
    state: TrainState, step: MeshFunction, accumulation: int = 1
) -> tuple[list[float], TrainState]:
    """The loss of each of four steps on the same batches, and the last state."""
    found = []
    for seed in range(4):
        batch = random_batch(seed, accumulation)
        placed = [jax.device_put(a, batch_sharding(step.mesh)) for a in batch]
        state, metrics = step(state, Batch(*placed))
        found.append(float(metrics["loss"]))
        assert metrics["skipped"] == 0
    return found, state


def copied(state: TrainState) -> TrainState:
    """A step consumes the state that it receives, so each test gives it a copy."""
    return jax.tree.map(jnp.copy, state)


def all_finite(tree) -> bool:
    return all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def one_device() -> jax.sharding.Mesh:
    return jax.make_mesh(
        (1, 1, 1),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )


@pytest.fixture(scope="module")
def state(one_device) -> TrainState:
    """A fresh state on one device."""
    return init_state(GPT(CONFIG), OPTIMIZER, 0, one_device)


@pytest.fixture(scope="module")
def step(one_device) -> MeshFunction:
    """The train step on one device without accumulation."""
    return make_step(one_device, GPT(CONFIG))


@pytest.fixture(scope="module")
def reference(state, step) -> list[float]:
    """Losses of GPT-2 on one device without accumulation."""
    return train(copied(state), step)[0]


@pytest.fixture(scope="module")
def references(one_device, reference) -> Callable[[str], list[float]]:
    """Losses of each recipe on one device without accumulation."""

    @cache
    def losses_of(recipe: str) -> list[float]:
        config, optimizer = RECIPES[recipe]
        model = make_model(config)
        step = make_step(one_device, model, optimizer=optimizer)
        return train(init_state(model, optimizer, 0, one_device), step)[0]

    return lambda recipe: reference if recipe == "gpt2" else losses_of(recipe)


MESHES = [
    ("gpt2", 1, 1, 4, 4, 2),
    ("nanochat", 1, 2, 2, 4, 2),
]
OTHER_MESHES = [
    ("gpt2", 2, 2, 1, 2, 2),
    ("gpt2", 4, 1, 1, 1, 1),
    ("nanochat", 4, 1, 1, 2, 1),
    ("gpt2", 1, 2, 2, 4, 1),
    ("gpt2", 1, 4, 1, 2, 1),
    ("nanochat", 1, 1, 4, 1, 2),
    ("nanochat", 1, 4, 1, 1, 1),
    ("nanochat", 2, 2, 1, 2, 1),
    ("gpt2 with muon", 4, 1, 1, 2, 1),
    ("gpt2 with muon", 1, 2, 2, 1, 1),
]


@pytest.mark.parametrize(
    ("recipe", "data", "fsdp", "tensor", "accumulation", "unroll"),
    MESHES + [pytest.param(*mesh, marks=pytest.mark.campaign) for mesh in OTHER_MESHES],
)
def test_mesh_accumulation_and_unroll_do_not_change_the_losses(
    references, capfd, recipe, data, fsdp, tensor, accumulation, unroll
):
    mesh = make_mesh(data, fsdp, tensor)
    config, optimizer = RECIPES[recipe]
    model = make_model(config, unroll=unroll)
    fresh = init_state(model, optimizer, 0, mesh)
    step = make_step(mesh, model, optimizer=optimizer)
    losses, after = train(fresh, step, accumulation)
    np.testing.assert_allclose(losses, references(recipe), atol=1e-5)
    # XLA's warning that it makes an array whole on every device because it knows no better.
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    # The parameters really are split.
    shards = after.params["layers"]["mlp"]["up"]["kernel"].addressable_shards
    assert len({str(shard.index) for shard in shards}) == fsdp * tensor


# On meshes, the daily tests accumulate 4 micro-batches too.
@pytest.mark.campaign
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_alone_does_not_change_the_losses(reference, state, step, accumulation):
    losses, _ = train(copied(state), step, accumulation)
    np.testing.assert_allclose(losses, reference, atol=1e-5)


def test_the_initial_loss_is_that_of_a_uniform_guess(reference):
    assert reference[0] == pytest.approx(math.log(250) + 32 * 0.02**2 / 2, abs=0.05)


def check_that_bad_numbers_are_skipped(state: TrainState, step: MeshFunction) -> None:
    wpe = state.params["wpe"].at[0, 0].set(jnp.nan)
    broken = copied(state).replace(params=state.params | {"wpe": wpe})
    after, metrics = step(copied(broken), random_batch())
    assert metrics["skipped"] == 1
    assert after.step == 1
    for name in ("params", "opt_state"):
        same = jax.tree.map(
            partial(np.array_equal, equal_nan=True), getattr(after, name), getattr(broken, name)
        )
        assert jax.tree.all(same)
    good, metrics = step(copied(state), random_batch())
    assert metrics["skipped"] == 0
    assert not jnp.array_equal(good.params["wte"], state.params["wte"])


def test_a_step_that_is_not_finite_changes_nothing_but_the_step_number(state, step):
    check_that_bad_numbers_are_skipped(state, step)


@pytest.mark.campaign
def test_a_step_that_is_not_finite_changes_nothing_in_the_program_for_a_gpu(
    one_device, state, monkeypatch
):
    # A GPU selects each array, a CPU takes one of two branches.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    check_that_bad_numbers_are_skipped(state, make_step(one_device, GPT(CONFIG)))


def test_weights_that_would_leave_float32_stay_as_they_are(state, step):
    wild = copied(state).replace(step=jnp.array(WILD_STEP, jnp.int32))
    after, metrics = step(wild, random_batch())
    assert metrics["skipped"] == 0
    assert metrics["learning_rate"] == jnp.float32(WILD_RATE)
    assert not jnp.array_equal(after.params["wte"], state.params["wte"])
    assert all_finite(after.params)
    kernels = [s.params["layers"]["mlp"]["up"]["kernel"] for s in (state, after)]
    assert (kernels[0] == kernels[1]).any()


def test_a_batch_without_weight_has_loss_zero(state, step):
    batch = random_batch()
    after, metrics = step(copied(state), batch._replace(weights=np.zeros_like(batch.weights)))
    assert metrics["loss"] == 0
    assert metrics["skipped"] == 0
    assert all_finite(after)


def test_the_learning_rate_follows_the_step_even_after_skipped_updates(state, step):
    # Step 7 with an optimizer that has made no update.
    late = copied(state).replace(step=jnp.array(7, jnp.int32))
    _, metrics = step(late, random_batch())
    assert metrics["learning_rate"] == pytest.approx(float(SCHEDULE(7)))


def test_a_profile_names_the_parts_of_a_step(state, step):
    program = step.lower(state, random_batch()).as_text(debug_info=True)
    for name in ("gradients", "attention_cpu", "cross_entropy", "optimizer"):
        # As in "jit(step)/gradients/jvp(cross_entropy)/reshape".
        assert re.search(rf"[/(]{name}[/)]", program), name


def test_documents_begin_at_their_separator():
    row = jnp.array([[9, 1, 9, 9, 3, 4], [1, 2, 9, 5, 5, 9]])
    positions, segments = document_layout(row, 9)
    assert positions.tolist() == [[0, 1, 0, 0, 1, 2], [0, 1, 0, 1, 2, 0]]
    assert segments.tolist() == [[1, 1, 2, 3, 3, 3], [0, 0, 1, 1, 1, 2]]


def test_dropout_differs_from_step_to_step_and_is_off_in_evaluation(one_device, state):
    model = GPT(replace(CONFIG, dropout=0.3))
    step = make_step(one_device, model, lambda _: jnp.zeros(()))
    evaluate = make_eval_step(model, one_device, loss_chunk=16)
    batch = random_batch()
    evaluations = [tuple(map(float, evaluate(state.params, batch))) for _ in range(2)]
    assert evaluations[0] == evaluations[1]
    after, first = step(copied(state), batch)
    _, repeated = step(copied(state), batch)
    # The learning rate is 0: nothing but the step number is different.
    _, second = step(after, batch)
    assert first["loss"] == repeated["loss"]
    assert first["loss"] != second["loss"]


def test_the_initial_weights_do_not_depend_on_the_mesh(state):
    split = init_state(GPT(CONFIG), OPTIMIZER, 0, make_mesh(1, 2, 2))
    assert jax.tree.all(jax.tree.map(np.array_equal, state, split))


def test_a_state_holds_arrays_without_names(state):
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
