"""Causal attention by JAX's own kernel for TPUs, splash attention, which never keeps all scores.

JAX has it in a part of Pallas that may change, so it is imported only where it is called.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

# A TPU computes with 128 numbers beside each other, so a block has a multiple of these positions.
MIN_BLOCK = 128
MAX_BLOCK = 512


def attend_with_splash(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T H K"]:
    """softmax(q k^T / sqrt(K)) v over earlier positions of the same segment.

    Rows are padded to a multiple of MIN_BLOCK. On a mesh, each device computes its rows and heads.
    """
    spec = nn.logical_to_mesh_axes(("batch", None, "heads", None)) or PartitionSpec()
    # What shard_map splits already has no axis here: see `sharding.automatic_rules`.
    axes = {axis for part in spec for axis in ((part,) if isinstance(part, str) else part or ())}
    if jax.sharding.get_abstract_mesh().size <= 1 or not axes:
        return _attend_on_one_device(q, k, v, segments)
    # XLA cannot split a kernel over devices.
    return jax.shard_map(
        _attend_on_one_device,
        in_specs=(spec, spec, spec, PartitionSpec(*spec[:2])),
        out_specs=spec,
        axis_names=axes,
        check_vma=False,
    )(q, k, v, segments)


def _attend_on_one_device(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H K"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T H K"]:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, length, heads, width = q.shape
    # Causality hides this padding from all other positions.
    padding = -length % MIN_BLOCK
    padded = length + padding
    q, k, v = (
        jnp.swapaxes(jnp.pad(a, ((0, 0), (0, padding), (0, 0), (0, 0))), 1, 2) for a in (q, k, v)
    )
    ids = None
    if segments is not None:
        segments = jnp.pad(segments, ((0, 0), (0, padding)))
        ids = splash.SegmentIds(segments, segments)
    block = next(b for b in (MAX_BLOCK, MAX_BLOCK // 2, MIN_BLOCK) if padded % b == 0)
    blocks = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    # Any: its declared result may hold residuals too.
    kernel: Any = splash.make_splash_mha_single_device(
        mask=splash.MultiHeadMask([splash.CausalMask((padded, padded))] * heads),
        block_sizes=splash.BlockSizes(**dict.fromkeys(blocks, block)),
    )
    y = jax.vmap(kernel)(q / math.sqrt(width), k, v, ids)
    return jnp.swapaxes(y, 1, 2)[:, :length]
