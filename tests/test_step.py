"""One step must be the same step on any mesh and for any accumulation, and must never let a bad number into the weights."""

import math
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.optim import learning_rate, make_optimizer
from minigpt_jax.sharding import AXES, batch_sharding, make_mesh
from minigpt_jax.step import (
    Batch,
    TrainState,
    document_layout,
    init_state,
    make_eval_step,
    make_train_step,
)

CONFIG = GPTConfig(vocab_size=250, context=16, layers=2, heads=4, embed=32)
SCHEDULE = partial(learning_rate, horizon=20, peak=1e-2, warmup=2)
OPTIMIZER = make_optimizer()


def rows(seed: int = 0, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    weights = (draw.random((count, 16)) < 0.7).astype(np.uint8)
    weights[0] = 0  # parts of unequal weight: a mean of means would be wrong
    return draw.integers(0, 250, (count, 17)).astype(np.uint16), weights


def losses(mesh, *, accum: int = 1, steps: int = 4, **how) -> tuple[list[float], TrainState]:
    """Loss of each step on the same rows, and the last state."""
    model = GPT(CONFIG, **how)
    state = init_state(model, OPTIMIZER, 0, mesh)
    step = make_train_step(model, OPTIMIZER, SCHEDULE, mesh, seed=0, loss_chunk=4)
    found = []
    for i in range(steps):
        batch = Batch(
            *(
                jax.device_put(a.reshape(accum, 8 // accum, -1), batch_sharding(mesh))
                for a in rows(i)
            )
        )
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    return found, state


@pytest.fixture(scope="module")
def one_device():
    return jax.make_mesh(
        (1, 1, 1),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )


@pytest.fixture(scope="module")
def reference(one_device):
    return losses(one_device)[0]


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor", "accum", "unroll"),
    [
        (4, 1, 1, 1, 1),
        (1, 1, 4, 4, 2),
        (2, 2, 1, 2, 2),
        pytest.param(1, 2, 2, 4, 1, marks=pytest.mark.campaign),
        pytest.param(1, 4, 1, 2, 1, marks=pytest.mark.campaign),
    ],
)
def test_mesh_accumulation_and_unrolling_leave_the_losses_as_they_are(
    reference, data, fsdp, tensor, accum, unroll
):
    mesh = make_mesh(data, fsdp, tensor)
    found, state = losses(mesh, accum=accum, unroll=unroll)
    np.testing.assert_allclose(found, reference, atol=1e-5)
    kernel = state.params["layers"]["mlp"]["up"]["kernel"]
    assert (
        len({str(shard.index) for shard in kernel.addressable_shards}) == fsdp * tensor
    )  # the parameters really are cut up


@pytest.mark.parametrize("accum", [2, 4])
def test_accumulation_alone_leaves_the_losses_as_they_are(reference, one_device, accum):
    np.testing.assert_allclose(losses(one_device, accum=accum)[0], reference, atol=1e-5)


def test_the_initial_loss_is_that_of_a_uniform_guess(reference):
    assert reference[0] == pytest.approx(math.log(250) + 32 * 0.02**2 / 2, abs=0.05)


@pytest.fixture(scope="module")
def trainer(one_device):
    model = GPT(CONFIG)
    return init_state(model, OPTIMIZER, 0, one_device), make_train_step(
        model, OPTIMIZER, SCHEDULE, one_device, seed=0, loss_chunk=4
    )


def copied(state: TrainState) -> TrainState:
    """A state of its own: a step consumes the one it is given."""
    return jax.tree.map(jnp.copy, state)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_step_number(
    one_device, monkeypatch, backend
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # each skips in its own way
    model = GPT(CONFIG, attention="xla")
    state, step = (
        init_state(model, OPTIMIZER, 0, one_device),
        make_train_step(model, OPTIMIZER, SCHEDULE, one_device, seed=0, loss_chunk=4),
    )
    broken = copied(state).replace(
        params=state.params | {"wpe": state.params["wpe"].at[0, 0].set(jnp.nan)}
    )
    after, metrics = step(copied(broken), Batch(*(a[None] for a in rows())))
    assert metrics["skipped"] == 1 and after.step == 1
    same = jax.tree.map(
        partial(np.array_equal, equal_nan=True),
        (after.params, after.opt_state),
        (broken.params, broken.opt_state),
    )
    assert jax.tree.all(same)
    good, metrics = step(copied(state), Batch(*(a[None] for a in rows())))
    assert metrics["skipped"] == 0 and not jnp.array_equal(good.params["wte"], state.params["wte"])


def test_a_rate_that_throws_weights_out_of_float32_leaves_them_where_they_are(one_device):
    state = init_state(GPT(CONFIG), OPTIMIZER, 0, one_device)
    step = make_train_step(
        GPT(CONFIG), OPTIMIZER, lambda _: jnp.float32(3.402e38), one_device, seed=0, loss_chunk=4
    )
    after, metrics = step(copied(state), Batch(*(a[None] for a in rows())))
    assert metrics["skipped"] == 0 and not jnp.array_equal(after.params["wte"], state.params["wte"])
    stayed = jax.tree.map(lambda new, old: float((new == old).mean()), after.params, state.params)
    assert (
        jax.tree.all(jax.tree.map(lambda a: jnp.isfinite(a).all(), after.params))
        and stayed["layers"]["mlp"]["up"]["kernel"] > 0
    )


def test_a_batch_with_nothing_to_learn_has_loss_zero(trainer):
    state, step = trainer
    tokens, weights = rows()
    after, metrics = step(copied(state), Batch(tokens[None], np.zeros_like(weights)[None]))
    assert metrics["loss"] == 0 and metrics["skipped"] == 0
    assert jax.tree.all(jax.tree.map(lambda a: jnp.isfinite(a).all(), after))


def test_the_learning_rate_follows_the_step_even_after_skipped_updates(trainer):
    state, step = trainer
    _, metrics = step(
        copied(state).replace(step=jnp.array(7, jnp.int32)), Batch(*(a[None] for a in rows()))
    )
    assert metrics["learning_rate"] == pytest.approx(float(SCHEDULE(7)))


def test_documents_begin_at_their_separator():
    row = jnp.array([[9, 1, 9, 9, 3, 4], [1, 2, 9, 5, 5, 9]])
    positions, segments = document_layout(row, 9)
    assert positions.tolist() == [[0, 1, 0, 0, 1, 2], [0, 1, 0, 1, 2, 0]]
    assert segments.tolist() == [[1, 1, 2, 3, 3, 3], [0, 0, 1, 1, 1, 2]]


def test_dropout_differs_from_step_to_step_and_is_off_in_evaluation(one_device):
    config = replace(CONFIG, dropout=0.3)
    model = GPT(config)
    state = init_state(model, OPTIMIZER, 0, one_device)
    step = make_train_step(
        model, OPTIMIZER, lambda s: jnp.zeros(()), one_device, seed=0, loss_chunk=16
    )
    evaluate = make_eval_step(model, one_device, loss_chunk=16)
    batch = Batch(*(a[None] for a in rows()))
    quiet = [tuple(map(float, evaluate(state.params, batch))) for _ in range(2)]
    assert quiet[0] == quiet[1]
    again, first = step(copied(state), batch)
    _, repeated = step(copied(state), batch)
    _, second = step(again, batch)
    assert first["loss"] == repeated["loss"] != second["loss"]


def test_the_weights_do_not_depend_on_the_mesh(one_device):
    alone = init_state(GPT(CONFIG), OPTIMIZER, 3, one_device)
    cut = init_state(GPT(CONFIG), OPTIMIZER, 3, make_mesh(1, 2, 2))
    assert jax.tree.all(jax.tree.map(np.array_equal, alone, cut))
    assert not isinstance(
        jax.tree.leaves(alone.params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))[0],
        nn.LogicallyPartitioned,
    )
