"""Muon (Jordan et al. 2024): makes the momentum of each matrix orthogonal before it is added.

All directions of a matrix then change by the same amount, also those in which gradients are small.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from minigpt_jax.sharding import collect, spread

# Jordan's coefficients: five rounds bring singular values from 0.001 on to between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
# A gradient may be zero: that of queries is, while the projections after attention are.
EPS = 1e-8


def orthogonalize_matrices(dtype: DTypeLike) -> optax.GradientTransformation:
    """A transformation of the kernels of stacked layers, with matmuls in `dtype`.

    Queries, keys and values are matrices of their own. Matrices are scaled by
    sqrt(max(1, outputs / inputs)), which the learning rates of modded-nanogpt and nanochat belong
    to. The same on any mesh: each matrix is the work of one device.
    """

    def update(updates, state, params=None):
        updates = jax.tree_util.tree_map_with_path(
            lambda path, kernel: _orthogonalize(path[-2].key, kernel, dtype), updates
        )
        return updates, state

    untyped_update: Any = update
    return optax.GradientTransformation(optax.init_empty_state, untyped_update)


def _orthogonalize(name: str, kernel: Array, dtype: DTypeLike) -> Array:
    """`newton_schulz` of every matrix in a stack of kernels of the linear layer `name`."""
    if name == "qkv":  # [L, D, 3, H, K]
        kernel = jnp.swapaxes(kernel, 1, 2)
        inputs = 1
        batch = 2
    else:  # [L, H, K, D] of "out", else [L, inputs, outputs]
        inputs = 2 if name == "out" else 1
        batch = 1
    rows = math.prod(kernel.shape[batch : batch + inputs])
    matrices = kernel.reshape(math.prod(kernel.shape[:batch]), rows, -1)
    changed = collect(newton_schulz(spread(matrices), dtype), len(matrices))
    scale = math.sqrt(max(1, matrices.shape[2] / rows))
    changed = scale * changed.astype(kernel.dtype).reshape(kernel.shape)
    return jnp.swapaxes(changed, 1, 2) if name == "qkv" else changed


def newton_schulz(matrices: Float[Array, "N I O"], dtype: DTypeLike) -> Float[Array, "N I O"]:
    """Each matrix U S V^T as about U V^T, computed and returned in `dtype`."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    norm = jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True))
    x = (x / (norm + EPS)).astype(dtype)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
