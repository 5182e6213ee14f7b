"""The only file that knows how arrays lie on devices: which dimension is split over which axis.

    data      copies of the model, each with its part of the batch
    fsdp      the same, but stored parameters and optimizer state are split over it too (ZeRO)
    tensor    heads, MLP and vocabulary are split inside each layer (Megatron-LM)

The model names dimensions ("embed", "heads", ...) and does not know about devices. Inside of a
layer XLA adds the communication; gradients.py adds what crosses the axes of the batch, with the
functions at the end of this file.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from minigpt_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# Dimension -> mesh axis, for parameters and activations. A dimension that is not listed is not
# split.
AXIS_RULES = (
    ("batch", BATCH_AXES),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)


def mesh_sizes(devices: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> tuple[int, ...]:
    """Sizes of the three axes on `devices` devices.

    One may be -1: it takes the devices that the others leave. Raises InputError if they do not fit.
    """
    sizes = [data, fsdp, tensor]
    free = [i for i, size in enumerate(sizes) if size == -1]
    known = data * fsdp * tensor * (-1 if free else 1)
    mesh = f"mesh data={data} fsdp={fsdp} tensor={tensor}"
    if len(free) > 1 or known < 1 or devices % known:
        raise InputError(
            f"{mesh} does not fit {devices} devices: one may be -1, "
            f"the product must divide {devices}"
        )
    if free:
        sizes[free[0]] = devices // known
    elif known != devices:
        raise InputError(
            f"{mesh} uses {known} of {devices} devices: try mesh.data=-1, or hide devices"
        )
    return tuple(sizes)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of `devices`, by default of all; sizes as in `mesh_sizes`."""
    devices = devices or jax.devices()
    # Newer JAX makes Explicit axes by default, which linen does not support. The sizes are
    # positional because their keyword differs between versions.
    return jax.make_mesh(
        mesh_sizes(len(devices), data, fsdp, tensor),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def check_divides(sizes: Mapping[str, int], dimensions: Mapping[str, int]) -> None:
    """Raise InputError if a mesh of such `sizes` does not split all `dimensions` equally.

    `sizes` are by axis, `dimensions` by name in AXIS_RULES.
    """
    for name, axes in AXIS_RULES:
        axes = (axes,) if isinstance(axes, str) else axes
        parts = 1
        for axis in axes:
            parts *= sizes[axis]
        if name in dimensions and dimensions[name] % parts:
            raise InputError(
                f"{name} = {dimensions[name]} cannot be split into {parts} equal parts "
                f"(mesh {' x '.join(axes)}): change the mesh or the model"
            )


def data_parallel_size(mesh: Mesh) -> int:
    """The number of parts that the batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def state_sharding(abstract_state, mesh: Mesh):
    """Shardings of a state, from its shapes with named dimensions (by `jax.eval_shape`)."""
    return jax.tree.map(partial(_sharding, mesh), abstract_state, is_leaf=_has_names)


def _sharding(mesh: Mesh, leaf: Any) -> Any:
    if not _has_names(leaf):
        return replicated(mesh)
    axes = nn.logical_to_mesh_axes(leaf.names, list(AXIS_RULES)) or PartitionSpec()
    # Where optax.partition masks a parameter, the value has no array, and gets no sharding.
    return jax.tree.map(lambda _: NamedSharding(mesh, axes), leaf.value)


def _has_names(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def spread(x: Array) -> Array:
    """`x` with its first dimension split over all devices, after zeros that make it divisible."""
    devices = jax.sharding.get_abstract_mesh().size
    if devices <= 1:
        return x
    x = jnp.pad(x, [(0, -len(x) % devices)] + [(0, 0)] * (x.ndim - 1))
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    # One axis after the other: XLA cannot move two from other dimensions at once, and would make
    # the array whole on every device first.
    for axes in (("fsdp",), ("fsdp", "tensor")):
        x = jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *free))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("fsdp", "tensor", "data")))


def collect(x: Array, length: int) -> Array:
    """What `spread` split, whole on every device again: the first `length` along a dimension."""
    if jax.sharding.get_abstract_mesh().size > 1:
        x = jax.lax.with_sharding_constraint(x, PartitionSpec())
    return x[:length]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch [A, B, ...]: its rows B are split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


# ---- Inside of `jax.shard_map`, where a function sees the rows of one device


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes that split the batch over several devices."""
    return tuple(axis for axis in BATCH_AXES if mesh.shape[axis] > 1)


def automatic_axes(mesh: Mesh) -> set[str]:
    """The axes that XLA still splits arrays over.

    None where "tensor" has one device: cuDNN's attention then needs a mesh that shard_map splits
    alone.
    """
    return {"tensor"} if mesh.shape["tensor"] > 1 else set()


def automatic_rules(mesh: Mesh) -> list[tuple[str, str]]:
    """AXIS_RULES, without those of axes that shard_map splits."""
    return [(name, axis) for name, axis in AXIS_RULES if axis in automatic_axes(mesh)]


def manual_spec(spec: PartitionSpec) -> PartitionSpec:
    """`spec` for shard_map, which must not name axes that XLA splits arrays over."""
    return PartitionSpec(*(None if axis == "tensor" else axis for axis in spec))


def split_all_axes(function: Callable[[Any], Any], specs: Any, mesh: Mesh) -> Callable[[Any], Any]:
    """`function` of a tree of parameters with `specs`, for which shard_map splits all axes.

    Around a collective XLA would make the arrays that it splits whole on every device.
    """
    axes = automatic_axes(mesh)
    if not axes:
        return function
    split = jax.tree.map(
        lambda spec: PartitionSpec(*(axis if axis in axes else None for axis in spec)), specs
    )
    return jax.shard_map(
        function, in_specs=(split,), out_specs=split, axis_names=axes, check_vma=False
    )


def fsdp_dimension(spec: PartitionSpec, mesh: Mesh) -> int:
    """The dimension of a parameter that is split over "fsdp", -1 if none is."""
    return spec.index("fsdp") if "fsdp" in spec and mesh.shape["fsdp"] > 1 else -1


def gather(parameter: Array, dimension: int, dtype: DTypeLike) -> Array:
    """The whole parameter on every device; it crosses in `dtype` and has its own dtype again.

    `dimension`: see `fsdp_dimension`.
    """
    if dimension < 0:
        return parameter
    whole = jax.lax.all_gather(parameter.astype(dtype), "fsdp", axis=dimension, tiled=True)
    return whole.astype(parameter.dtype)


def scatter(gradient: Array, dimension: int) -> Array:
    """The sum over "fsdp" of a gradient, of which every device keeps its part of the parameter.

    `dimension`: see `fsdp_dimension`.
    """
    if dimension < 0:
        return gradient
    return jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=dimension, tiled=True)


def sum_over_rows(gradient: Array, dimension: int, mesh: Mesh) -> Array:
    """The sum over the axes of the batch that `scatter` has not summed over."""
    axes = tuple(axis for axis in batch_axes(mesh) if dimension < 0 or axis != "fsdp")
    return jax.lax.psum(gradient, axes) if axes else gradient
