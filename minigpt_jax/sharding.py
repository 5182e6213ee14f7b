"""The only file that knows how arrays lie on devices: three mesh axes, and which named dimension goes to which axis.

    data      copies of the model, each with its share of the batch
    fsdp      the same, but parameters and optimizer state are cut up among them too (ZeRO-3)
    tensor    heads, MLP and vocabulary are cut up inside a layer (Megatron-LM)

The model names dimensions ("embed", "heads", ...) and never learns about devices; XLA inserts the communication.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from minigpt_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# Dimension -> mesh axis; one table for parameters and activations. What is not listed is whole on every device.
RULES = (
    ("batch", BATCH_AXES),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)


def mesh_sizes(devices: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> tuple[int, ...]:
    """Sizes of the three axes on so many devices; one may be -1, for what the others leave. Raises InputError if they do not fit."""
    sizes = [data, fsdp, tensor]
    free = [i for i, size in enumerate(sizes) if size == -1]
    known = data * fsdp * tensor * (-1 if free else 1)
    if len(free) > 1 or known < 1 or devices % known:
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {devices} devices: one may be -1, the product must divide {devices}"
        )
    if free:
        sizes[free[0]] = devices // known
    elif known != devices:
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} uses {known} of {devices} devices: try mesh.data=-1, or hide devices"
        )
    return tuple(sizes)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Mesh of all devices, with axes as `mesh_sizes` says."""
    # Newer JAX makes axes Explicit unless told otherwise, which linen cannot work with; sizes go by position
    # because their keyword was renamed between versions.
    return jax.make_mesh(
        mesh_sizes(jax.device_count(), data, fsdp, tensor),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
    )


def check_divides(mesh: Mesh, dimensions: Mapping[str, int]) -> None:
    """Refuse sizes that the mesh cannot cut evenly; `dimensions` maps the names of RULES to sizes."""
    for name, axes in RULES:
        axes = (axes,) if isinstance(axes, str) else axes
        parts = 1
        for axis in axes:
            parts *= mesh.shape[axis]
        if name in dimensions and dimensions[name] % parts:
            raise InputError(
                f"{name} = {dimensions[name]} cannot be cut into {parts} equal parts (mesh {' x '.join(axes)}): change the mesh or the model"
            )


def data_parallel_size(mesh: Mesh) -> int:
    """Into how many parts the batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def state_sharding(abstract_state, mesh: Mesh):
    """Shardings for a state whose leaves still carry logical names (from `jax.eval_shape`), unboxed like the state."""
    specs = nn.get_partition_spec(abstract_state)
    return nn.logical_to_mesh_sharding(specs, mesh, list(RULES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch [A, B/A, ...]: micro-batches stay whole, rows are cut over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
