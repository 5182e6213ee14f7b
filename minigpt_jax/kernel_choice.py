"""Decide where the kernels of triton_kernels.py run, and import them only there.

They are written for NVIDIA GPUs, and JAX may remove the compiler that they need: Pallas's Triton
backend is deprecated from JAX 0.11 on. Everything works without it; on an H200 training is then a
tenth slower. MINIGPT_TRITON=0 in the environment turns the kernels off.
"""

import os
from types import ModuleType

import jax
from jax import Array
from jax.sharding import AxisType

from minigpt_jax import hardware

# Wider rows would need more registers than a GPU has.
MAX_NORM_WIDTH = 16384


def loss_kernels(scores: Array) -> ModuleType | None:
    """The module with the loss kernel if it can compute the loss of `scores`, else None."""
    return _triton_kernels() if _is_suited(scores) else None


def norm_kernels(x: Array) -> ModuleType | None:
    """The module with the LayerNorm kernel if it can normalise the rows `x` [N, D], else None."""
    is_narrow = x.shape[1] <= MAX_NORM_WIDTH
    return _triton_kernels() if is_narrow and _is_suited(x) else None


def rotary_kernels(qkv: Array) -> ModuleType | None:
    """The module with the kernels for heads if they can rotate `qkv` [B, T, 3, H, K], else None."""
    width = qkv.shape[-1]
    is_power_of_2 = width & (width - 1) == 0
    return _triton_kernels() if is_power_of_2 and _is_suited(qkv) else None


def has_kernels(device: hardware.Device, tensor: int) -> bool:
    """Whether kernels run on such a `device` where "tensor" has so many."""
    return device.is_ampere_or_newer and tensor == 1 and _triton_kernels() is not None


def _is_suited(x: Array) -> bool:
    """Whether `x` has at most 32 bits, and lies whole on one NVIDIA GPU, Ampere or newer."""
    mesh = jax.sharding.get_abstract_mesh()
    # XLA cannot split a kernel over devices; inside of shard_map nothing is left to split.
    sizes_by_xla = [
        mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    ]
    is_whole = all(size == 1 for size in sizes_by_xla)
    return x.dtype.itemsize <= 4 and is_whole and hardware.this_device().is_ampere_or_newer


def _triton_kernels() -> ModuleType | None:
    if os.environ.get("MINIGPT_TRITON") == "0":
        return None
    try:
        from minigpt_jax import triton_kernels
    except (AttributeError, ImportError):
        # A version of JAX without this part of Pallas.
        return None
    return triton_kernels
