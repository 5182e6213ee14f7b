"""What a launcher's variables say: which process this is, of how many, and which GPUs are its own.

JAX alone would give each process of Slurm and of Open MPI one GPU, whatever their number. All here
is computed from the environment and the number of GPUs, so each launcher can be tested without its
cluster.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from minigpt_jax.errors import InputError
from minigpt_jax.runtime.gpus import HIDING_VARIABLES, Gpus

# The launcher, and its variables for: processes, index, processes of this machine, index there.
_MPI = (
    (
        "Open MPI",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    ("MPICH", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
)
_PMI = (
    ("PALS", "PMI_SIZE", "PMI_RANK", "PMI_LOCAL_SIZE", "PMI_LOCAL_RANK"),
    ("PMI", "PMI_SIZE", "PMI_RANK"),
)
# What JAX needs to derive the coordinator's address.
_SLURM_ADDRESS = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Place:
    """A process among those that a launcher started. None: the launcher does not say."""

    launcher: str
    count: int | None
    index: int
    local_count: int | None = None
    local_index: int | None = None
    # Whether JAX can derive the coordinator's address.
    has_address: bool = False


class JoinArguments(NamedTuple):
    """Arguments of jax.distributed.initialize. None: JAX finds it."""

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    # Of the visible GPUs. An empty list stands for all of them, while None lets JAX take one.
    local_device_ids: list[int] | None = None


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Where a launcher put this process; None where no launcher started several processes.

    Also None where JAX_NUM_PROCESSES is another number: the launcher then speaks of others, such as
    those that started these processes, or those of an earlier job of the same shell.
    """
    # mpirun and mpiexec start their helpers by srun, and what these start inherits the helpers'
    # SLURM variables: the variables of MPI come first.
    place = _mpi_place(environment, _MPI) or _slurm_place(environment)
    place = place or _mpi_place(environment, _PMI)
    if place is None and "JOB_COMPLETION_INDEX" in environment:
        place = Place("Kubernetes", None, _number(environment, "JOB_COMPLETION_INDEX") or 0)
    if place is None or place.count == 1:
        return None
    asked = _number(environment, "JAX_NUM_PROCESSES")
    is_other = asked == 1 or (asked is not None and place.count not in (None, asked))
    return None if is_other else place


def _mpi_place(environment: Mapping[str, str], launchers: tuple) -> Place | None:
    for launcher, *names in launchers:
        values = [environment.get(name, "") for name in names]
        if all(value.isdecimal() for value in values):
            # Open MPI 4 announces its address, Open MPI 5 and the others do not.
            has_address = launcher == "Open MPI" and "OMPI_MCA_orte_hnp_uri" in environment
            count, index, *local = map(int, values)
            local_count, local_index = local or (None, None)
            return Place(launcher, count, index, local_count, local_index, has_address)
    return None


def _slurm_place(environment: Mapping[str, str]) -> Place | None:
    # Of the job step, not of the job: SLURM_NTASKS also counts tasks that srun has not started.
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
    values = [environment.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values):
        return None
    count, index, local_index = map(int, values)
    local_count = _slurm_local_count(environment)
    has_address = all(name in environment for name in _SLURM_ADDRESS)
    return Place("Slurm", count, index, local_count, local_index, has_address)


def _slurm_local_count(environment: Mapping[str, str]) -> int | None:
    """The number of tasks on this node, of a list such as "8(x2),4": 8 on nodes 0 and 1."""
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    nodes = [
        int(count)
        for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed or "")
        for _ in range(int(repeat or 1))
    ]
    node = _number(environment, "SLURM_NODEID") or 0
    return nodes[node] if node < len(nodes) else None


def join_arguments(
    environment: Mapping[str, str], place: Place | None, gpus: Gpus
) -> JoinArguments | None:
    """How this process joins the others; None where it works alone.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID come before what the launcher
    says. Raises InputError where something is missing or contradicts itself.
    """
    address = environment.get("JAX_COORDINATOR_ADDRESS") or None
    count = _number(environment, "JAX_NUM_PROCESSES")
    index = _number(environment, "JAX_PROCESS_ID")
    announced = [
        name
        for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        if environment.get(name)
    ]
    if place and place.count:
        announced.append(place.launcher)
    # A single process needs no coordinator, and receives SIGTERM itself.
    if not announced or count == 1:
        return None
    if place:
        count = place.count if count is None else count
        index = place.index if index is None else index
    missing = [
        name
        for name, known in (
            ("JAX_COORDINATOR_ADDRESS", address or (place and place.has_address)),
            ("JAX_NUM_PROCESSES", count is not None),
            ("JAX_PROCESS_ID", index is not None),
        )
        if not known
    ]
    if missing:
        raise InputError(
            f"several processes are announced ({', '.join(announced)}), but these are missing: "
            f"{', '.join(missing)}. Set them for each process, as docs/running.md shows; for a "
            "process that works alone: JAX_NUM_PROCESSES=1"
        )
    assert count is not None and index is not None
    if not count:
        raise InputError("JAX_NUM_PROCESSES: found 0, expected 1 or more")
    if index >= count:
        raise InputError(f"this is process {index}, expected 0 to {count - 1} of {count} processes")
    port = re.fullmatch(r".+:([0-9]{1,5})", address) if address else None
    if address and not (port and 0 < int(port[1]) < 2**16):
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS: found {address!r}, expected HOST:PORT, such as host0:8476"
        )
    return JoinArguments(address, count, index, local_device_ids(environment, place, gpus))


def local_device_ids(environment: Mapping[str, str], place: Place | None, gpus: Gpus) -> list[int]:
    """This process's own of the visible GPUs; an empty list stands for all of them.

    Raises InputError where the processes of this machine and its GPUs are not equally many.
    """
    given = environment.get("JAX_LOCAL_DEVICE_IDS")
    if given:
        if not re.fullmatch(r"[0-9]+(,[0-9]+)*", given):
            raise InputError(f"JAX_LOCAL_DEVICE_IDS: found {given!r}, expected numbers like 0,1")
        return [int(number) for number in given.split(",")]
    if not place or place.local_index is None or place.local_count in (None, 1):
        return []
    processes, visible = place.local_count, gpus.visible
    # Slurm allots a part of the machine to a job, and may hide from each task the GPUs of others.
    allotted = _number(environment, "SLURM_GPUS_ON_NODE") or gpus.machine
    if visible == 1 and not 0 < allotted < processes:
        return [0]
    if visible and "SLURM_GPUS_ON_NODE" in environment and visible * processes <= allotted:
        return []
    if visible in (0, processes):
        return [place.local_index]
    raise InputError(
        f"{place.launcher} started {processes} processes on this machine, each of which sees "
        f"{visible} GPU{'s' * (visible > 1)}: expected one process for all of them, or one for "
        "each. Otherwise name the GPUs of each process in its JAX_LOCAL_DEVICE_IDS"
    )


def idle_gpus(
    environment: Mapping[str, str],
    place: Place | None,
    arguments: JoinArguments | None,
    gpus: Gpus,
) -> str | None:
    """One line about GPUs of this machine that this run leaves idle; None where it uses all.

    Of the processes of a machine the first says it for all.
    """
    processes, index, most = 1, 0, ""
    if place and place.local_count:
        processes, index = place.local_count, place.local_index
    elif arguments:
        # Nobody says how many of the processes share this machine: all of them may.
        processes, index, most = arguments.num_processes or 1, arguments.process_id, "at most "
    own = arguments and arguments.local_device_ids
    used = (len(own) if own else gpus.visible) * processes
    if not 0 < used < gpus.machine or index:
        return None
    if processes > 1:
        who, reason = f"{processes} processes use", ""
    else:
        listed = [f"{name}={environment[name]}" for name in HIDING_VARIABLES if name in environment]
        who, reason = "one process uses", f" ({listed[0]})" if listed else ""
    return f"{who} {most}{used} of the {gpus.machine} GPUs{reason}; this run leaves the others idle"


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """The value of a variable; None where it is not set or empty."""
    value = environment.get(name)
    if not value:
        return None
    if not value.isdecimal():
        raise InputError(f"{name}: found {value!r}, expected a whole number")
    return int(value)
