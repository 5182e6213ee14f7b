"""How weights are updated: learning-rate schedules, clipping, and AdamW or Muon by name.

The defaults are the GPT-3 recipe (Brown et al. 2020, appendix B), as in other reproductions of
GPT-2. They differ from optax's defaults.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from minigpt_jax.muon import orthogonalize_matrices

DECAYED_PARAMETERS = ("kernel", "wte", "wpe", "lm_head")


def learning_rate(
    step: jax.typing.ArrayLike,
    *,
    horizon: int,
    kind: str = "cosine",
    peak: float,
    warmup: int,
    floor: float = 0.0,
    decay: float = 0.2,
) -> jax.Array:
    """Learning rate of `step` (from 0) in a run of `horizon` steps, in f32.

    It rises linearly to `peak` in `warmup` steps. What follows depends on `kind`:

    - "cosine" and "linear" fall to `floor` at the end of the run.
    - "wsd" (warmup-stable-decay, Hu et al. 2024) stays at `peak`, then falls linearly to `floor`
      during the last fraction `decay` of the steps.
    - "constant" stays at `peak`.

    Raises ValueError for another `kind`.
    """
    step = jnp.asarray(step, jnp.float32)
    # `step + 1`, because the first update would do nothing at rate 0.
    rise = peak * (step + 1) / max(warmup, 1)
    progress = jnp.clip((step - warmup) / max(horizon - warmup, 1), 0, 1)
    if kind == "cosine":
        part = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    elif kind == "linear":
        part = 1 - progress
    elif kind == "wsd":
        part = jnp.clip((horizon - step) / max(decay * horizon, 1), 0, 1)
    elif kind == "constant":
        part = jnp.ones_like(progress)
    else:
        raise ValueError(f"unknown schedule {kind!r}")
    after = floor + (peak - floor) * part
    # The lower one, where "wsd" already falls: the rate does not jump.
    return jnp.where(step < warmup, jnp.minimum(rise, after), after)


def decay_mask(params):
    """A tree like `params`: True for matrices and embeddings, False for biases and scales.

    By name, not by number of dimensions, because the biases of stacked layers have two.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _name(path) in DECAYED_PARAMETERS, params
    )


def weight_groups(params):
    """A tree like `params` with "matrix", "embedding", "head" or "vector" for each of them.

    "matrix": the matrices of the layers. "vector": biases and scales.
    """
    groups = {"kernel": "matrix", "wte": "embedding", "wpe": "embedding", "lm_head": "head"}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: groups.get(_name(path), "vector"), params
    )


def _name(path) -> str:
    """The name of the parameter at `path`, which may go on inside of Flax's box around it."""
    return [key.key for key in path if isinstance(key, jax.tree_util.DictKey)][-1]


def make_optimizer(
    *,
    kind: str = "adamw",
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    momentum: float = 0.95,
    embedding_lr_scale: float = 1.0,
    head_lr_scale: float = 1.0,
    vector_lr_scale: float = 1.0,
    dtype: DTypeLike = jnp.float32,
) -> optax.GradientTransformationExtraArgs:
    """Clipping by global norm, then AdamW or Muon, without the learning rate.

    `kind`: "adamw" (Loshchilov & Hutter 2019), or "muon" (Jordan et al. 2024) for the matrices of
    the layers, with Adam for all other weights. For "muon" only: `momentum` is Nesterov's, weight
    decay applies to these matrices alone, `*_lr_scale` are the learning rates of Adam's groups (see
    `weight_groups`) as multiples of that of the matrices, and `dtype` is that of Muon's matmuls.
    Raises ValueError for another `kind`.

    `update(gradients, state, params, scale=, norm=, specs=)` returns what the train step multiplies
    by -learning_rate and adds to the weights. `gradients` are sums, `scale` is the factor that
    turns them into means, and `norm` is the global norm of the means. `specs`: see
    `orthogonalize_matrices`.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    if kind == "adamw":
        decay = optax.add_decayed_weights(weight_decay, mask=decay_mask)
        return optax.chain(_scale_and_clip(clip), adam, decay)
    if kind != "muon":
        raise ValueError(f"unknown optimizer {kind!r}")
    muon = optax.chain(
        optax.trace(momentum, nesterov=True),
        orthogonalize_matrices(dtype),
        optax.add_decayed_weights(weight_decay),
    )
    scales = {"embedding": embedding_lr_scale, "head": head_lr_scale, "vector": vector_lr_scale}
    groups: Any = {name: optax.chain(adam, optax.scale(scale)) for name, scale in scales.items()}
    return optax.chain(
        _scale_and_clip(clip), optax.partition(groups | {"matrix": muon}, weight_groups)
    )


def _scale_and_clip(clip: float) -> optax.GradientTransformationExtraArgs:
    """Multiply gradients by `scale`, and by `clip / norm` where `norm` is larger than `clip`.

    This single multiplication replaces a division and optax.clip_by_global_norm, and XLA fuses it
    with AdamW into one pass over the gradients.
    """

    def init(params):
        return optax.EmptyState()

    def update(updates, state, params=None, *, scale, norm, **_):
        factor = scale * jnp.minimum(1, clip / norm)
        return jax.tree.map(lambda g: g * factor, updates), state

    # optax's type for `update` has **extra_args, so a type checker refuses required keywords.
    untyped_update: Any = update
    return optax.GradientTransformationExtraArgs(init, untyped_update)
