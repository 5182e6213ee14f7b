"""What the processes of a run do together: join, agree, wait for each other, stop."""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from minigpt_jax.errors import InputError, first_line
from minigpt_jax.runtime.cloud_tpu import tpu_hosts
from minigpt_jax.runtime.gpus import count_gpus
from minigpt_jax.runtime.launcher import (
    JoinArguments,
    Place,
    find_place,
    idle_gpus,
    join_arguments,
)

T = TypeVar("T")

# Seconds until the other processes detect that one has failed. JAX's default is 100.
HEARTBEAT_SECONDS = 10


def join_processes(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Join the other processes of the run where a launcher started several.

    Must precede any other JAX call. Says on the console where GPUs of this machine lie idle.
    `root`: where /dev and /proc are. Raises InputError where the variables of the launcher are
    incomplete, or where its processes and the GPUs of a machine are not equally many.
    """
    gpus = count_gpus(environment, root)
    place = find_place(environment)
    arguments = join_arguments(environment, place, gpus) or _found_by_jax(environment, place)
    idle = idle_gpus(environment, place, arguments, gpus)
    if idle:
        print(f"note: {socket.gethostname()}: {idle}", file=sys.stderr)
    if arguments is None:
        return
    if arguments.coordinator_address:
        if arguments.process_id == 0:
            _check_port(arguments.coordinator_address)
        else:
            # JAX waits silently for five minutes, and then ends without naming the address.
            print(f"joining process 0 at {arguments.coordinator_address}", file=sys.stderr)
    try:
        jax.distributed.initialize(
            **arguments._asdict(), heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except jax.errors.JaxRuntimeError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(
            "a launcher announces several processes, but JAX does not find them "
            f"({first_line(error)}): set JAX_COORDINATOR_ADDRESS"
        ) from None


def _check_port(address: str) -> None:
    """Raise InputError if process 0 cannot listen at the port of `address`: JAX would crash."""
    with socket.socket() as probe:
        # A port that an ended program has used is free at once.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS {address}: process 0 cannot use the port "
                f"({error.strerror}): name another one"
            ) from None


def _found_by_jax(environment: Mapping[str, str], place: Place | None) -> JoinArguments | None:
    """The arguments where JAX asks others who belongs together; None where nobody else does."""
    if environment.get("JAX_NUM_PROCESSES") == "1":
        return None
    # JAX sets this variable on a machine without TPUs.
    on_tpu = find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in environment
    if tpu_hosts(environment, ask_machine=on_tpu) > 1:
        return JoinArguments()
    if place is None or place.launcher != "Kubernetes":
        return None
    if find_spec("kubernetes") is not None:
        # With it, JAX asks the cluster for the number of pods.
        return JoinArguments()
    print(
        f"note: pod {place.index} of an indexed job works alone: several work together with "
        "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES (docs/running.md)",
        file=sys.stderr,
    )
    return None


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
