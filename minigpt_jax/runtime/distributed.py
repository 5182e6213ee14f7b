"""What the processes of a run do together: join, agree, wait for each other, stop."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from minigpt_jax.errors import InputError

T = TypeVar("T")

# Seconds until the other processes detect that one has failed. JAX's default is 100.
HEARTBEAT_SECONDS = 10


def join_processes(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of the run where a launcher started several.

    Must precede any other JAX call. JAX itself recognises Slurm, Open MPI and Kubernetes;
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID serve any other launcher.
    Raises InputError where the launcher's variables are incomplete.
    """
    if "JAX_COORDINATOR_ADDRESS" in environment:
        names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        missing = [name for name in names if not environment.get(name, "").isdigit()]
        if missing:
            raise InputError(
                "JAX_COORDINATOR_ADDRESS is set, but these are missing or not numbers: "
                f"{', '.join(missing)}. Set them too"
            )
        count, index = (int(environment[name]) for name in names)
        jax.distributed.initialize(
            environment["JAX_COORDINATOR_ADDRESS"],
            count,
            index,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    elif _several_processes(environment):
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        except ValueError as error:
            raise InputError(
                "a launcher announces several processes, but JAX does not find them "
                f"({error}): set JAX_COORDINATOR_ADDRESS"
            ) from None


def _several_processes(environment: Mapping[str, str]) -> bool:
    """Whether srun, mpirun or an indexed Kubernetes job started several processes."""
    # Of the job step, not of the job: SLURM_NTASKS also counts tasks that srun has not started.
    slurm = environment.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_PROCID" in environment else "1"
    sizes = (slurm, environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    if any(size.isdigit() and int(size) > 1 for size in sizes):
        return True
    in_indexed_job = (
        "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    )
    # JAX needs this package to ask the cluster for the number of pods. Without it, the process
    # runs alone.
    return in_indexed_job and find_spec("kubernetes") is not None


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def broadcast_from_main(value: T) -> T:
    """The `value` of the main process on all processes. All of them must call it.

    For values that depend on a shared disk, where another host may see a file later. JSON must be
    able to hold `value`; tuples come back as lists.
    """
    if jax.process_count() == 1:
        return value
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(encoded))))
    # All processes must pass the same shape, and only the main process's content counts.
    received = multihost_utils.broadcast_one_to_all(np.resize(encoded, size))
    return json.loads(np.asarray(received).tobytes())


def all_agree(condition: bool) -> bool:
    """Whether `condition` is true on every process. All of them must call it."""
    if jax.process_count() == 1:
        return condition
    return bool(np.all(multihost_utils.process_allgather(np.array(condition))))


def min_over_processes(value: float) -> float:
    """The smallest `value` of all processes. All of them must call it."""
    if jax.process_count() == 1:
        return value
    # Without jax_enable_x64 the values are rounded to float32, alike on all processes.
    return float(np.min(multihost_utils.process_allgather(np.float64(value))))


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def should_stop(stop_requested: Callable[[], bool], step: int) -> bool:
    """Whether the run stops after `step`: the same answer on all processes.

    All of them must call it after every step. A single process calls `stop_requested`. Several use
    JAX's agreement on a common step.
    """
    if jax.process_count() == 1:
        return stop_requested()
    if stop_requested():
        # JAX reacts to SIGTERM only. The request may have been a Ctrl-C, or a SIGTERM that came
        # before JAX installed its handler.
        signal.raise_signal(signal.SIGTERM)
    # True at the step after the last one that any process had reached when the request arrived.
    return multihost_utils.reached_preemption_sync_point(step)
