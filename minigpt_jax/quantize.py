"""Matrices in eight bits, for writing on a machine that spends its time reading weights: a quarter of the bytes of f32.

A weight is a whole number from -127 to 127 times the scale of its output channel. The rows that enter a product are
rounded alike, each with a scale of its own, so what becomes of a row depends on no other; products and sums of whole
numbers are exact. (Weights in eight bits times rows in f32 would round less, but XLA's CPU products are slower that way.)
The model knows nothing of this: `int8_linear_interceptor` stands in for its Linear layers while they are applied.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from minigpt_jax.model import Linear

LARGEST = 127  # -128 is left out: the range is symmetric


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A matrix in eight bits, outputs first: each channel's bytes lie together."""

    values: jax.Array  # [N, K] int8
    scale: jax.Array  # [N] f32

    def product(self, x: jax.Array) -> jax.Array:
        """`x` [..., K] times the matrix: [..., N] in f32."""
        rows, level = rounded(x.reshape(-1, x.shape[-1]).astype(jnp.float32))
        count = len(rows)
        if (
            count == 1
        ):  # XLA's CPU product of int8 is many times slower for a single row than for two
            rows = jnp.concatenate([rows, rows])
        sums = jax.lax.dot_general(
            rows, self.values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
        )[:count]
        y = sums.astype(jnp.float32) * level[:, None] * self.scale[None]
        return y.reshape(*x.shape[:-1], -1)


def rounded(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`rows` [N, K] as int8, and the scale [N] of each; a row of zeros stays one."""
    scale = jnp.abs(rows).max(-1) / LARGEST
    return jnp.round(rows / jnp.where(scale > 0, scale, 1)[:, None]).astype(jnp.int8), scale


@partial(jax.jit, static_argnums=1)
def to_int8(kernel: jax.Array, inputs: int) -> Int8:
    """`kernel` [*inputs, *outputs], the first `inputs` dimensions of which are summed over."""
    return Int8(
        *rounded(kernel.reshape(math.prod(kernel.shape[:inputs]), -1).T.astype(jnp.float32))
    )


def quantize_params(params: dict) -> dict:
    """`params` of single layers (model.unstack) with every kernel in eight bits, and the embedding once more as "head".

    The table that tokens are looked up in stays as it is: a row of it is all that a token reads.
    """
    return _kernels(params) | {"head": to_int8(params["wte"].T, 1)}


def _kernels(tree: dict) -> dict:
    if "kernel" in tree:  # what the bias has no dimension for is summed over
        return tree | {"kernel": to_int8(tree["kernel"], tree["kernel"].ndim - tree["bias"].ndim)}
    return {
        name: _kernels(value) if isinstance(value, dict) else value for name, value in tree.items()
    }


def int8_linear_interceptor(layer, args, kwargs, context):
    """An interceptor of Flax modules (`nn.intercept_methods`): a Linear whose kernel is in eight bits multiplies with that."""
    module = context.module
    kernel = module.get_variable("params", "kernel") if isinstance(module, Linear) else None
    if not isinstance(kernel, Int8):
        return layer(*args, **kwargs)
    x, bias = args[0], module.get_variable("params", "bias")
    y = kernel.product(x.reshape(*x.shape[: x.ndim - module.inputs], -1))
    return (
        y.reshape(*y.shape[:-1], *bias.shape) + jnp.broadcast_to(bias, (*y.shape[:-1], *bias.shape))
    ).astype(module.dtype)
