"""One step of training as a pure function, which a run calls as `train_step(state, batch)`.

Everything that changes with time (learning rate, random keys) is computed from `state.step`, so a
state and a step number are all that a resumed run needs.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int, UInt8, UInt16

from minigpt_jax import loss
from minigpt_jax.architectures import output_head
from minigpt_jax.data import Batch
from minigpt_jax.gradients import sum_gradients
from minigpt_jax.sharding import AXIS_RULES, batch_sharding, replicated, state_sharding


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during a run. An abstract state has shapes in place of arrays."""

    step: Any  # [] int32, the number of steps done
    params: dict
    opt_state: optax.OptState


class MeshFunction(NamedTuple):
    """A jitted function that is called with `mesh` and AXIS_RULES set, so that XLA can split it."""

    mesh: jax.sharding.Mesh
    function: Any

    def __call__(self, *arguments):
        """Call `function`."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(list(AXIS_RULES)):
            return self.function(*arguments)

    def lower(self, *arguments):
        """`function.lower` for `arguments` or their shapes: to compile without running."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(list(AXIS_RULES)):
            return self.function.lower(*arguments)


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, mesh: jax.sharding.Mesh
) -> TrainState:
    """A fresh state with the shardings of `abstract_state`."""
    # In one jitted function every device makes only its own part: the whole may not fit on one.
    with jax.set_mesh(mesh):
        init = jax.jit(
            lambda: nn.unbox(_init_with_axes(model, optimizer, seed)),
            out_shardings=_state_shardings(model, optimizer, mesh),
        )
        return init()


def abstract_state(
    model: nn.Module, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with shardings: what a checkpoint is restored into."""
    # Linen modules can be hashed, which their type does not say.
    hashable: Any = model
    return _abstract_state(hashable, optimizer, mesh)


# Tracing the model takes a third of a second, and one start of a run needs it several times.
@lru_cache(maxsize=1)
def _abstract_state(model, optimizer, mesh) -> TrainState:
    with_axes = jax.eval_shape(lambda: _init_with_axes(model, optimizer, seed=0))
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        nn.unbox(with_axes),
        state_sharding(with_axes, mesh),
    )


def _init_with_axes(model, optimizer, seed: int) -> TrainState:
    """A fresh state whose weights still carry the names of their dimensions."""
    params = model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
    step = jnp.zeros((), jnp.int32)
    return TrainState(step=step, params=params, opt_state=optimizer.init(params))


def _state_shardings(model, optimizer, mesh):
    return jax.tree.map(lambda a: a.sharding, abstract_state(model, optimizer, mesh))


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Callable[[Array], Array],
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    loss_chunk: int,
    separator: int | None = None,
    scatter_each: bool = False,
) -> MeshFunction:
    """Return the jitted `state, metrics = step(state, batch)`, which overwrites the old state.

    `optimizer` comes from `make_optimizer`. `separator` is the token that begins each document:
    attention then stays within a document, and its positions count from 0. Without it a row is
    treated as one document. `scatter_each`: see `sum_gradients`.

    Metrics are f32 scalars: loss (mean over the weight of the batch), weight, grad_norm (before
    clipping), learning_rate, and skipped: 1 where loss, gradient or learning rate was not finite,
    so that parameters and optimizer state stayed the same.
    """

    state_shardings = _state_shardings(model, optimizer, mesh)
    specs = jax.tree.map(lambda sharding: sharding.spec, state_shardings.params)

    def batch_loss(params, tokens, weights, rows, key):
        dropout = (rows, key) if model.config.dropout else None
        return _loss_sums(model, params, tokens, weights, loss_chunk, separator, dropout)

    def step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        total, weight, gradients = sum_gradients(
            batch_loss,
            state.params,
            batch,
            key,
            mesh=mesh,
            specs=specs,
            dtype=model.dtype,
            scatter_each=scatter_each,
        )
        # One division at the end makes accumulation exact for any mask; a batch without weight has
        # loss 0.
        scale = 1 / jnp.maximum(weight, 1)
        mean_loss = total * scale
        norm = optax.tree.norm(gradients) * scale
        rate = schedule(state.step)

        @jax.named_scope("optimizer")
        def update():
            directions, opt_state = optimizer.update(
                gradients, state.opt_state, state.params, scale=scale, norm=norm, specs=specs
            )
            params = jax.tree.map(
                lambda p, d: subtract_if_finite(p, rate * d), state.params, directions
            )
            return params, opt_state

        is_finite = jnp.isfinite(mean_loss) & jnp.isfinite(norm) & jnp.isfinite(rate)
        params, opt_state = select_update(is_finite, update, (state.params, state.opt_state))
        metrics = {
            "loss": mean_loss,
            "weight": weight,
            "grad_norm": norm,
            "learning_rate": rate,
            "skipped": 1.0 - is_finite,
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    jitted = jax.jit(
        step,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnames="state",
    )
    return MeshFunction(mesh, jitted)


def subtract_if_finite(
    parameter: Float[Array, "*N"], change: Float[Array, "*N"]
) -> Float[Array, "*N"]:
    """`parameter - change`, but `parameter` where that is not finite: checkpoints stay loadable."""
    changed = parameter - change
    return jnp.where(jnp.isfinite(changed), changed, parameter)


def select_update(is_finite: Bool[Array, ""], update: Callable[[], Any], old):
    """`update()` if `is_finite`, else `old`."""
    # On a CPU a conditional lets XLA update the memory of the old state. On a GPU a conditional
    # stops the device until the host has read `is_finite`, so both values are computed there.
    if jax.default_backend() == "cpu":
        return jax.lax.cond(is_finite, update, lambda: old)
    return jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), update(), old)


def make_eval_step(
    model: nn.Module, mesh: jax.sharding.Mesh, *, loss_chunk: int, separator: int | None = None
) -> MeshFunction:
    """Return the jitted `loss sum, weight sum = eval_step(params, batch)`, without dropout."""
    # Without gradients nothing is copied into stacks, and single layers compile fastest.
    model = model.clone(unroll=1)

    def step(params, batch: Batch):
        def add(sums, micro_batch):
            tokens, weights = micro_batch
            new = _loss_sums(model, params, tokens, weights, loss_chunk, separator)
            return jax.tree.map(jnp.add, sums, new), None

        zeros = (jnp.zeros(()), jnp.zeros(()))
        return jax.lax.scan(add, zeros, tuple(batch))[0]

    return MeshFunction(mesh, jax.jit(step, out_shardings=replicated(mesh)))


def document_layout(
    tokens: Int[Array, "B T"], separator: int
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Positions and segments of `tokens`: each `separator` begins a new segment, at position 0."""
    starts = tokens == separator
    index = jnp.arange(tokens.shape[1])[None]
    last_start = jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    return index - last_start, jnp.cumsum(starts, axis=1)


def _loss_sums(
    model,
    params: dict,
    tokens: UInt16[Array, "B N"],
    weights: UInt8[Array, "B T"],
    loss_chunk: int,
    separator: int | None,
    dropout: tuple[Int[Array, " B"], Array] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the weighted losses of a micro-batch (N = T + 1), and sum of its weights.

    `dropout`: numbers of the rows in the batch, and the random key of the step.
    """
    tokens = tokens.astype(jnp.int32)
    inputs = tokens[:, :-1]
    targets = tokens[:, 1:]
    positions, segments = (None, None) if separator is None else document_layout(inputs, separator)
    randomness = {}
    if dropout:
        rows, key = dropout
        randomness = {"dropout_rows": rows, "rngs": {"dropout": key}}
    # The second result is the cache of decoding: None here.
    hidden, _ = model.apply({"params": params}, inputs, positions, segments, **randomness)
    return loss.cross_entropy(
        hidden,
        output_head(params),
        targets,
        weights.astype(jnp.float32),
        vocab_size=model.config.vocab_size,
        chunk=loss_chunk,
        cap=model.config.logit_cap,
    )
