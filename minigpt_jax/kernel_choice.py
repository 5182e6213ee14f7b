"""Decide where the kernels of triton_kernels.py run, and import them only there.

They are written for NVIDIA GPUs, and JAX may remove the compiler that they need: Pallas's Triton
backend is deprecated from JAX 0.11 on. Everything works without it, some percent slower.
"""

from importlib.util import find_spec
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
    if not find_spec("jax.experimental.pallas.triton"):
        return None
    from minigpt_jax import triton_kernels

    return triton_kernels
