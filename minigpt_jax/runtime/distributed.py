"""Act as one program when a run consists of several processes: join, agree, wait for each other, stop together."""

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
    elif _several_processes(environment):
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
        except ValueError as error:
            raise InputError(
                f"a launcher announces several processes, but JAX does not find them ({error}): set JAX_COORDINATOR_ADDRESS"
            ) from None


def _several_processes(environment: Mapping[str, str]) -> bool:
    """Whether this process was started as one of several: a task of srun or mpirun, or a pod of an indexed Kubernetes job."""
    slurm = environment.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_PROCID" in environment else "1"
    sizes = (slurm, environment.get("OMPI_COMM_WORLD_SIZE", "1"))
    pod = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    # JAX asks the cluster through this package for how many pods there are; without it a pod is alone.
    return any(size.isdigit() and int(size) > 1 for size in sizes) or (
        pod and find_spec("kubernetes") is not None
    )


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def broadcast_from_main(value: T) -> T:
    """The main process's `value` (anything that JSON can hold) on all processes.

    For what each process reads from a shared disk: another host may see a file later.
    """
    if jax.process_count() == 1:
        return value
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(encoded))))
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
    return float(np.min(multihost_utils.process_allgather(np.float64(value))))


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def should_stop(stop_requested: Callable[[], bool], step: int) -> bool:
    """Whether the run stops after `step`: the same answer on all processes.

    A single process asks `stop_requested`. Several let JAX find a step at which all can stop.
    """
    if jax.process_count() == 1:
        return stop_requested()
    if stop_requested():
        # JAX only knows SIGTERM; the request may have been a Ctrl-C, or a SIGTERM before JAX
        # installed its own handler.
        signal.raise_signal(signal.SIGTERM)
    return multihost_utils.reached_preemption_sync_point(step)
