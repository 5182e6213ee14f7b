"""Matrices in eight bits, for decoding on a machine that spends its time reading weights.

They take a quarter of the bytes of f32. A weight is an integer from -127 to 127 times the scale of
its output channel. The rows that enter a matmul are quantized in the same way, each with its own
scale, so the result of a row depends on no other row; matmuls of integers are exact. (Int8 weights
times f32 rows would lose less, but are slower in XLA on a CPU.) model.py does not change for this:
`int8_linear_interceptor` replaces what its Linear layers compute.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from jaxtyping import Int8 as Int8Array

from minigpt_jax.architectures import output_head
from minigpt_jax.layers import Linear

# -128 is not used, so that the range is symmetric.
LARGEST = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A matrix [K, N] in eight bits, transposed: each output channel is contiguous in memory."""

    values: Int8Array[Array, "N K"]
    scale: Float[Array, " N"]

    def matmul(self, x: Float[Array, "*B K"]) -> Float[Array, "*B N"]:
        """`x` times the matrix, in f32."""
        rows, row_scale = quantize_rows(x.reshape(-1, x.shape[-1]).astype(jnp.float32))
        count = len(rows)
        # XLA's int8 matmul on a CPU is many times slower for one row than for two.
        if count == 1:
            rows = jnp.concatenate([rows, rows])
        contract_last = (((1,), (1,)), ((), ()))
        sums = jax.lax.dot_general(
            rows, self.values, contract_last, preferred_element_type=jnp.int32
        )
        y = sums[:count].astype(jnp.float32) * row_scale[:, None] * self.scale[None]
        return y.reshape(*x.shape[:-1], -1)


def quantize_rows(
    rows: Float[Array, "N K"],
) -> tuple[Int8Array[Array, "N K"], Float[Array, " N"]]:
    """`rows` in eight bits, and the scale of each; a row of zeros stays zeros."""
    scale = jnp.abs(rows).max(-1) / LARGEST
    divisor = jnp.where(scale > 0, scale, 1)[:, None]
    return jnp.round(rows / divisor).astype(jnp.int8), scale


@partial(jax.jit, static_argnames="inputs")
def to_int8(kernel: Float[Array, "..."], inputs: int) -> Int8:
    """`kernel` [*inputs, *outputs] in eight bits; its first `inputs` dimensions are summed over."""
    matrix = kernel.reshape(math.prod(kernel.shape[:inputs]), -1)
    return Int8(*quantize_rows(matrix.T.astype(jnp.float32)))


def quantize_params(params: dict) -> dict:
    """`params` (of decoding.unstack) with all kernels in eight bits, the output head as "head" too.

    The embedding stays as it is too, to look up tokens: each reads only one row of it.
    """
    return _quantize_kernels(params) | {"head": to_int8(output_head(params).T, 1)}


def _quantize_kernels(tree: dict, name: str = "") -> dict:
    if "kernel" in tree:
        # The projection after attention sums over heads and their dimensions.
        return tree | {"kernel": to_int8(tree["kernel"], 2 if name == "out" else 1)}
    return {
        name: _quantize_kernels(value, name) if isinstance(value, dict) else value
        for name, value in tree.items()
    }


def int8_linear_interceptor(layer, args, kwargs, context):
    """For `nn.intercept_methods`: a Linear whose kernel is an Int8 multiplies by that."""
    module = context.module
    kernel = module.get_variable("params", "kernel") if isinstance(module, Linear) else None
    if not isinstance(kernel, Int8):
        return layer(*args, **kwargs)
    x = args[0]
    y = kernel.matmul(x.reshape(*x.shape[: x.ndim - module.inputs], -1))
    y = y.reshape(*y.shape[:-1], *module.shape[module.inputs :])
    if module.use_bias:
        y += jnp.broadcast_to(module.get_variable("params", "bias"), y.shape)
    return y.astype(module.dtype)
