"""Choose into how many micro-batches the global batch is cut on the available devices."""

from functools import partial
from typing import Any, NamedTuple

import jax

from minigpt_jax import hardware
from minigpt_jax.attention import attention_kernel
from minigpt_jax.kernel_choice import has_kernels
from minigpt_jax.memory import (
    StepSettings,
    choose_accumulation_steps,
    scatters_each,
    step_memory,
)
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.distributed import min_over_processes
from minigpt_jax.runtime.host_memory import host_bytes
from minigpt_jax.sharding import data_parallel_size


class MicroBatches(NamedTuple):
    """How a step goes through its batch."""

    # A, the number of micro-batches.
    number: int
    # See `sum_gradients`.
    scatter_each: bool


def choose_micro_batches(
    model_config: GPTConfig,
    mesh: jax.sharding.Mesh,
    compute: Any,
    *,
    batch: int,
    micro_batch: int,
    loss_chunk: int,
    optimizer: str,
) -> MicroBatches:
    """The micro-batches of a global batch of `batch` rows: the same on all processes.

    `compute`: the config section; `micro_batch`: rows per device, 0 for the most that fit;
    `optimizer`: its kind. Raises InputError if the rows cannot be divided evenly, or a micro-batch
    cannot fit.
    """
    replicas = data_parallel_size(mesh)
    settings = StepSettings(
        dtype=compute.dtype,
        remat=compute.remat,
        attention=attention_kernel(compute.attention, compute.dtype, mesh.size),
        loss_chunk=loss_chunk,
        on_cpu=jax.default_backend() == "cpu",
        has_kernels=has_kernels(hardware.this_device(), mesh.shape["tensor"]),
        unroll=compute.unroll,
        fsdp=mesh.shape["fsdp"],
        tensor=mesh.shape["tensor"],
        optimizer=optimizer,
    )

    def bytes_of(scatter_each: bool, rows: int) -> float:
        own = settings._replace(scatter_each=scatter_each)
        steps = batch // replicas // rows
        return step_memory(model_config, own, rows=rows, accumulation_steps=steps).total

    # A CPU reports no limit, and its devices share the memory of the host.
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    # The minimum, because all processes must choose the same.
    device_bytes = min_over_processes(limit or host_bytes() / jax.local_device_count())
    scatter_each = scatters_each(batch // replicas, micro_batch, device_bytes, bytes_of)
    number = choose_accumulation_steps(
        batch,
        replicas,
        micro_batch=micro_batch,
        device_bytes=device_bytes,
        bytes_of=partial(bytes_of, scatter_each),
    )
    return MicroBatches(number, scatter_each)
