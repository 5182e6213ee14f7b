"""Muon (Jordan et al. 2024): makes the momentum of each matrix orthogonal before it is added.

All directions of a matrix then change by the same amount, also those in which gradients are small.
"""

import math
from functools import reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Float

from minigpt_jax.sharding import one_device_each

# Jordan's coefficients: five rounds bring singular values from 0.001 on to between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
# A gradient may be zero: that of queries is, while the projections after attention are.
EPS = 1e-8


def orthogonalize_matrices(dtype: DTypeLike) -> optax.GradientTransformationExtraArgs:
    """A transformation of the kernels of stacked layers, computed in `dtype`.

    Queries, keys and values are matrices of their own. Matrices are scaled by
    sqrt(max(1, outputs / inputs)), which the learning rates of modded-nanogpt and nanochat belong
    to. The same on any mesh: each matrix is the work of one device. `update` takes `specs`, the
    PartitionSpec of each parameter; without them the result is the same, with more traffic.
    """

    def update(updates, state, params=None, *, specs=None, **_):
        def orthogonalize(path, kernel: Array) -> Array:
            keys = [key.key for key in path]
            spec: Any = reduce(getitem, keys, specs) if specs else PartitionSpec()
            return _orthogonalize(keys[-2], kernel, spec, dtype)

        return jax.tree_util.tree_map_with_path(orthogonalize, updates), state

    untyped_update: Any = update
    return optax.GradientTransformationExtraArgs(optax.init_empty_state, untyped_update)


def _orthogonalize(name: str, kernel: Array, spec: PartitionSpec, dtype: DTypeLike) -> Array:
    """`newton_schulz` of every matrix in a stack of kernels of the linear layer `name`."""
    axes = (*spec, *[None] * (kernel.ndim - len(spec)))
    matrices = kernel.astype(dtype)
    if name == "qkv":  # [L, D, 3, H, K] to [L * 3, D, H, K]
        matrices = jnp.swapaxes(matrices, 1, 2)
        matrices = matrices.reshape(-1, *matrices.shape[2:])
        axes = (None, axes[1], *axes[3:])
    # [L, H, K, D] of "out", else the inputs of a matrix are one dimension.
    inputs = matrices.shape[1:3] if name == "out" else matrices.shape[1:2]
    rows = math.prod(inputs)

    def orthogonal(stack: Array) -> Array:
        return newton_schulz(stack.reshape(len(stack), rows, -1), dtype).reshape(stack.shape)

    changed = one_device_each(orthogonal, matrices, PartitionSpec(*axes))
    if name == "qkv":
        changed = jnp.swapaxes(changed.reshape(-1, 3, *changed.shape[1:]), 1, 2)
    columns = matrices.size // len(matrices) // rows
    return math.sqrt(max(1, columns / rows)) * changed.astype(kernel.dtype)


def newton_schulz(matrices: Float[Array, "N I O"], dtype: DTypeLike) -> Float[Array, "N I O"]:
    """Each matrix U S V^T as about U V^T, computed and returned in `dtype`."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    norm = jnp.sqrt(jnp.square(wide).sum((1, 2), keepdims=True))
    x = (wide / (norm + EPS)).astype(dtype)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
