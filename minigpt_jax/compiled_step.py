"""Compile the training step that train.py would run, for the memory that XLA itself says it needs.

Slower than the estimate of memory.py (seconds to minutes), but no estimate.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minigpt_jax import optim
from minigpt_jax.architectures import make_model
from minigpt_jax.data import Batch
from minigpt_jax.described_gpu import COMPILER_OPTIONS, described_gpus
from minigpt_jax.errors import InputError
from minigpt_jax.hardware import is_accelerator, resolve_compute_dtype
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.backend import start_jax
from minigpt_jax.sharding import batch_sharding, make_mesh
from minigpt_jax.step import abstract_state, make_train_step
from minigpt_jax.tokenizer import END_OF_TEXT


class CompiledMemory(NamedTuple):
    """Bytes on one device, by XLA."""

    arguments: float
    # With results that take no memory of an argument.
    temporaries: float
    # How long it took to compile.
    seconds: float


class Target(NamedTuple):
    """What a step is compiled for."""

    devices: list[Any]
    compiler_options: dict[str, bool | int]
    # In words: where the devices are.
    origin: str


def compile_step(
    c, target: Target, *, accumulation_steps: int, scatter_each: bool
) -> CompiledMemory:
    """The memory of the step of the config `c`. Call it within `compilation_target`."""
    mesh = make_mesh(**c.mesh, devices=target.devices)
    step, arguments = step_and_arguments(c, mesh, accumulation_steps, scatter_each)
    began = time.perf_counter()
    compiled = step.lower(*arguments).compile(compiler_options=target.compiler_options)
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledMemory(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + results,
        seconds=seconds,
    )


@contextmanager
def compilation_target(device: str, number: int) -> Iterator[Target]:
    """`number` devices to compile for: of this machine if it has them, else described ones.

    `device`: "cpu" or a name of hardware.ACCELERATORS. Raises InputError where this machine cannot
    compile for it.
    """
    start_jax()
    here = jax.devices()
    kind = here[0].device_kind
    is_cpu = here[0].platform == "cpu"
    is_same = is_cpu if device == "cpu" else is_accelerator(device, kind)
    if is_same and number <= len(here):
        yield Target(here[:number], {}, "the devices of this machine")
    elif device == "cpu":
        found = f"JAX has {len(here)} devices here" if is_cpu else f"JAX uses {kind} here"
        raise InputError(
            f"--devices {number} --device cpu: {found}. To compile for {number} devices of a CPU: "
            f"JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count={number}"
        )
    else:
        with described_gpus(device, number) as described:
            origin = f"a described {device}, without autotuning"
            yield Target(described, COMPILER_OPTIONS, origin)


def step_and_arguments(c, mesh: jax.sharding.Mesh, steps: int, scatter_each: bool):
    """The jitted step of the config `c` as train.py makes it, and its abstract arguments.

    `steps`: the number of micro-batches.
    """
    config = GPTConfig(**c.model)
    compute = {**c.compute, "dtype": resolve_compute_dtype(c.compute.dtype)}
    model = make_model(config, **compute)
    optimizer = optim.make_optimizer(**c.optimizer, dtype=compute["dtype"])
    # No memory depends on the length of the schedule.
    schedule = partial(optim.learning_rate, horizon=c.schedule.warmup + 1, **c.schedule)
    step = make_train_step(
        model,
        optimizer,
        schedule,
        mesh,
        seed=c.seed,
        loss_chunk=c.loss.chunk,
        separator=END_OF_TEXT if c.data.isolate_documents else None,
        scatter_each=scatter_each,
    )
    rows = c.data.batch // steps
    # A type that stands for arrays.
    abstract: Any = partial(jax.ShapeDtypeStruct, sharding=batch_sharding(mesh))
    batch = Batch(
        abstract((steps, rows, config.context + 1), jnp.uint16),
        abstract((steps, rows, config.context), jnp.uint8),
    )
    return step, (abstract_state(model, optimizer, mesh), batch)
