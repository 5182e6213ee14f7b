"""How parameters move: learning-rate schedules as pure functions of the step, and clipped AdamW with decay by name.

Defaults are the GPT-3 recipe (Brown et al. 2020, appendix B) that GPT-2 reproductions use; optax's own differ.
"""

import jax
import jax.numpy as jnp
import optax

_DECAYED = ("kernel", "wte", "wpe")


def learning_rate(
    step,
    *,
    horizon: int,
    kind: str = "cosine",
    peak: float,
    warmup: int,
    floor: float = 0.0,
    decay: float = 0.2,
):
    """Learning rate of `step` (0-based) in a run of `horizon` steps.

    `warmup` steps rise linearly to `peak`; then "cosine" and "linear" fall to `floor` over the rest, "wsd" stays and
    falls linearly over the last `decay` part of the run (warmup-stable-decay, Hu et al. 2024), "constant" stays.
    """
    step = jnp.asarray(step, jnp.float32)
    rise = peak * (step + 1) / max(warmup, 1)
    past = jnp.clip((step - warmup) / max(horizon - warmup, 1), 0, 1)
    if kind == "cosine":
        part = 0.5 * (1 + jnp.cos(jnp.pi * past))
    elif kind == "linear":
        part = 1 - past
    elif kind == "wsd":
        part = jnp.clip((horizon - step) / max(decay * horizon, 1), 0, 1)
    elif kind == "constant":
        part = jnp.ones_like(past)
    else:
        raise ValueError(f"unknown schedule {kind!r}")
    return jnp.where(step < warmup, rise, floor + (peak - floor) * part)


def decay_mask(params):
    """True for matrices and embeddings. By name, since stacked layers make every bias two-dimensional."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path[-1]) in _DECAYED, params)


def _name(key) -> str:
    return str(getattr(key, "key", key))


def make_optimizer(
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    clip: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Clip the global norm, AdamW (Loshchilov & Hutter 2019): the direction to go, which the step multiplies by -lr.

    Its `update` takes sums of gradients, and by keyword the `scale` that makes means of them and the global `norm` of these.
    """
    return optax.chain(
        _scale_and_clip(clip),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
    )


def _scale_and_clip(clip: float) -> optax.GradientTransformationExtraArgs:
    """Mean and optax.clip_by_global_norm in one multiplication, which XLA computes within AdamW's own pass over the gradients."""

    def update(updates, state, params=None, *, scale, norm):
        factor = scale * jnp.minimum(1, clip / norm)
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType] (its keywords)
