"""One step of training as a pure function, `state, metrics = train_step(state, batch)`: a run is a fold of it.

Everything that varies with time (learning rate, random keys) is computed from `state.step`, so a state and a step
number are all that a resumed run needs.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from minigpt_jax import loss
from minigpt_jax.data import Batch
from minigpt_jax.sharding import RULES, batch_sharding, replicated, state_sharding


class TrainState(flax.struct.PyTreeNode):
    """All that changes during a run; arrays only."""

    step: jax.Array  # [] int32, steps done
    params: dict
    opt_state: optax.OptState


class OnMesh(NamedTuple):
    """A jitted function that runs (and so is traced) where the model's dimension names mean axes of `mesh`."""

    mesh: jax.sharding.Mesh
    function: Any

    def __call__(self, *arguments):
        """What `function` returns."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(list(RULES)):
            return self.function(*arguments)

    def lower(self, *arguments):
        """All but running it, for arguments or their shapes: `.compile().memory_analysis()` says what it will take."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(list(RULES)):
            return self.function.lower(*arguments)


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, mesh: jax.sharding.Mesh
) -> TrainState:
    """Fresh state, each part made on the device that keeps it."""
    with jax.set_mesh(mesh):
        return jax.jit(
            lambda: nn.unbox(_build(model, optimizer, seed)),
            out_shardings=_shardings(model, optimizer, mesh),
        )()


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without its values: what a checkpoint is restored into."""
    return _abstract_state(model, optimizer, mesh)  # pyright: ignore[reportArgumentType] (linen's modules can be hashed)


@lru_cache(maxsize=1)  # tracing the model takes a third of a second, and everything here asks
def _abstract_state(model, optimizer, mesh) -> TrainState:
    named = jax.eval_shape(lambda: _build(model, optimizer, seed=0))
    shardings = state_sharding(named, mesh)
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), nn.unbox(named), shardings
    )


def _build(model, optimizer, seed: int) -> TrainState:
    """A fresh state whose weights still carry the names of their dimensions."""
    params = model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
    )


def _shardings(model, optimizer, mesh):
    return jax.tree.map(lambda a: a.sharding, abstract_state(model, optimizer, mesh))


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Callable[[jax.Array], jax.Array],
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    loss_chunk: int,
    separator: int | None = None,
) -> OnMesh:
    """Compile `state, metrics = step(state, batch)`; the old state's memory is used for the new one. `optimizer`: of `make_optimizer`.

    With a `separator`, documents of a row (each begins with it) see only themselves and count from position 0; without
    one, a row is one text. Metrics are f32 scalars: loss (mean over the batch's weight), weight, grad_norm (before clipping), learning_rate,
    skipped (1 where loss or gradient was not finite, and parameters and optimizer were left as they were).
    """

    def batch_loss(params, tokens, weights, key):
        return _masked_loss(model, params, tokens, weights, loss_chunk, separator, dropout=key)

    def gradient(params, batch, key):
        """Loss sum, weight sum and gradient of the loss sum over all micro-batches."""
        grad = jax.value_and_grad(batch_loss, has_aux=True)

        def add(carry, piece):
            index, tokens, weights = piece
            (total, weight), gradients = grad(
                params, tokens, weights, jax.random.fold_in(key, index)
            )
            return jax.tree.map(jnp.add, carry, (total, weight, gradients)), None

        pieces = (jnp.arange(batch.tokens.shape[0]), *batch)
        if batch.tokens.shape[0] == 1:  # no second gradient to add: skip the sum and its memory
            (total, weight), gradients = grad(
                params, batch.tokens[0], batch.weights[0], jax.random.fold_in(key, 0)
            )
            return total, weight, gradients
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(()), zeros), pieces)[0]

    def step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        total, weight, gradients = gradient(state.params, batch, key)
        # One division at the end makes accumulation exact for any mask; a batch with nothing to learn has loss 0.
        scale = 1 / jnp.maximum(weight, 1)
        mean, norm, rate = total * scale, optax.tree.norm(gradients) * scale, schedule(state.step)

        def update():
            directions, opt_state = optimizer.update(
                gradients, state.opt_state, state.params, scale=scale, norm=norm
            )
            return jax.tree.map(
                lambda p, d: _move(p, rate * d), state.params, directions
            ), opt_state

        ok = jnp.isfinite(mean) & jnp.isfinite(norm) & jnp.isfinite(rate)
        params, opt_state = _if(ok, update, (state.params, state.opt_state))
        metrics = {
            "loss": mean,
            "weight": weight,
            "grad_norm": norm,
            "learning_rate": rate,
            "skipped": 1.0 - ok,
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    shardings = (_shardings(model, optimizer, mesh), batch_sharding(mesh))
    compiled = jax.jit(
        step,
        in_shardings=shardings,
        out_shardings=(shardings[0], replicated(mesh)),
        donate_argnums=0,
    )
    return OnMesh(mesh, compiled)


def _move(weight, distance):
    """`weight - distance`; where that leaves f32 (a wild rate can do it) the weight stays, so that what is saved can be loaded."""
    moved = weight - distance
    return jnp.where(jnp.isfinite(moved), moved, weight)


def _if(ok, new: Callable[[], Any], old):
    """What `new` returns where `ok`, else `old`."""
    if (
        jax.default_backend() == "cpu"
    ):  # XLA then updates in place; on a GPU a conditional waits until the host has seen `ok`
        return jax.lax.cond(ok, new, lambda: old)
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new(), old)


def make_eval_step(
    model: nn.Module, mesh: jax.sharding.Mesh, *, loss_chunk: int, separator: int | None = None
) -> OnMesh:
    """Compile `loss sum, weight sum = eval_step(params, batch)`, without dropout."""

    def step(params, batch: Batch):
        def add(carry, piece):
            tokens, weights = piece
            return jax.tree.map(
                jnp.add, carry, _masked_loss(model, params, tokens, weights, loss_chunk, separator)
            ), None

        return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), tuple(batch))[0]

    return OnMesh(mesh, jax.jit(step, out_shardings=replicated(mesh)))


def document_layout(tokens: jax.Array, separator: int) -> tuple[jax.Array, jax.Array]:
    """Positions and segments [B, T] of rows [B, T]: both start anew at every `separator`."""
    starts = tokens == separator
    index = jnp.arange(tokens.shape[1])
    last_start = jax.lax.cummax(jnp.where(starts, index[None], 0), axis=1)
    return index[None] - last_start, jnp.cumsum(starts, axis=1)


def _masked_loss(model, params, tokens, weights, loss_chunk, separator, dropout=None):
    inputs, targets = tokens[:, :-1].astype(jnp.int32), tokens[:, 1:].astype(jnp.int32)
    positions, segments = (None, None) if separator is None else document_layout(inputs, separator)
    use_dropout = dropout is not None and model.config.dropout > 0
    rngs = {"dropout": dropout} if use_dropout else None
    hidden, _ = model.apply(
        {"params": params}, inputs, positions, segments, deterministic=not use_dropout, rngs=rngs
    )
    return loss.cross_entropy(
        hidden,
        params["wte"],
        targets,
        weights.astype(jnp.float32),
        vocab_size=model.config.vocab_size,
        chunk=loss_chunk,
    )
