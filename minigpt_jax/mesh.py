"""The only file that knows how arrays lie on devices: three mesh axes, and which named dimension goes to which axis.

    data      copies of the model, each with its share of the batch
    fsdp      the same, but parameters and optimizer state are cut up among them too (ZeRO-3)
    tensor    heads, MLP and vocabulary are cut up inside a layer (Megatron-LM)

The model names dimensions ("embed", "heads", ...) and never learns about devices; XLA inserts the communication.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
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


def join_processes(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of a multi-host run when a launcher announces them; must precede any other JAX call.

    Slurm, Open MPI and Kubernetes are recognised by JAX itself; JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID serve any other launcher.
    """
    # The others learn of a dead process after this long; JAX's own default is 100 s.
    heartbeat = 10
    if "JAX_COORDINATOR_ADDRESS" in environment:
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        missing = [name for name in names if not environment.get(name, "").isdigit()]
        if missing:
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS is set, so {' and '.join(missing)} must be a number too"
            )
        count, index = (int(environment[name]) for name in names)
        jax.distributed.initialize(
            environment["JAX_COORDINATOR_ADDRESS"],
            count,
            index,
            heartbeat_timeout_seconds=heartbeat,
        )
    elif _announced(environment):
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
        except ValueError as error:
            raise InputError(
                f"a launcher announces several processes, but JAX does not find them ({error}): set JAX_COORDINATOR_ADDRESS"
            ) from None


def _announced(environment: Mapping[str, str]) -> bool:
    """Whether this process was started as one of several: a task of srun or mpirun, or a pod of an indexed Kubernetes job."""
    slurm = environment.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_PROCID" in environment else "1"
    sizes = (slurm, environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    pod = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    # JAX asks the cluster through this package for how many pods there are; without it a pod is alone.
    return any(size.isdigit() and int(size) > 1 for size in sizes) or (
        pod and find_spec("kubernetes") is not None
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


def least(value: float) -> float:
    """The smallest `value` of all processes, which all must ask for."""
    return (
        float(np.min(multihost_utils.process_allgather(np.float64(value))))
        if jax.process_count() > 1
        else value
    )


def data_shards(mesh: Mesh) -> int:
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
