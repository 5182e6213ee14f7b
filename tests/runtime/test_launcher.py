"""Each launcher's processes find each other, and each process takes the GPUs that are its own.

The fixture `join` (conftest.py) lets JAX's own code decide; only the connection is left out.
"""

import socket
import sys

import pytest

from minigpt_jax.errors import InputError
from tests.runtime.conftest import Join
from tests.runtime.launchers import explicit, kubernetes, mpich, open_mpi, slurm, slurm_batch

ADDRESS = {"JAX_COORDINATOR_ADDRESS": "host0:8476"}
PAIR = ADDRESS | {"JAX_NUM_PROCESSES": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        # One process a machine uses all of its GPUs.
        (slurm(1, 1, nodes=2), (1, 2, "all")),
        (slurm(1, 1, nodes=2) | explicit(1, 2), (1, 2, "all")),
        (slurm(1, 1, nodes=2) | ADDRESS, (1, 2, "all")),
        (open_mpi(1, 2, 1, version=4), (1, 2, "all")),
        (open_mpi(1, 2, 1) | ADDRESS, (1, 2, "all")),
        (mpich(1, 2, 1) | ADDRESS, (1, 2, "all")),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"} | ADDRESS, (1, 2, "all")),
        (kubernetes(1) | PAIR, (1, 2, "all")),
        (kubernetes(1) | explicit(0, 2), (0, 2, "all")),
        (explicit(1, 2), (1, 2, "all")),
        # One process a GPU.
        (slurm(3, 8), (3, 8, "3")),
        (slurm(11, 8, nodes=2), (11, 16, "3")),
        (slurm(11, 8, nodes=2) | explicit(11, 16), (11, 16, "3")),
        (open_mpi(11, 16, 8, version=4), (11, 16, "3")),
        (open_mpi(11, 16, 8) | ADDRESS, (11, 16, "3")),
        (mpich(11, 16, 8) | ADDRESS, (11, 16, "3")),
        (
            {"PMI_SIZE": "16", "PMI_RANK": "11", "PMI_LOCAL_SIZE": "8", "PMI_LOCAL_RANK": "3"}
            | ADDRESS,
            (11, 16, "3"),
        ),
        # srun --mpi=pmi2, of which MPI's variables do not know the machine.
        (slurm(3, 8) | {"PMI_SIZE": "8", "PMI_RANK": "3"}, (3, 8, "3")),
        # --gpus-per-task hides the GPUs of the other tasks, by number or by control group.
        (slurm(3, 4, gpus=4, listed="3"), (3, 4, "0")),
        (slurm(3, 4, gpus=4, listed="0"), (3, 4, "0")),
        (slurm(3, 4, gpus=4, listed="GPU-8f1c"), (3, 4, "0")),
        (slurm(1, 2, gpus=4, listed="2,3"), (1, 2, "all")),
        (slurm(1, 2, gpus=8, listed="0,1,2,3"), (1, 2, "all")),
        # --gpu-bind=none: no list, and two GPUs of this machine are the job's.
        (slurm(1, 2, gpus=2, listed=""), (1, 2, "1")),
        # A script hides GPUs by the local index.
        (open_mpi(3, 8, 8) | ADDRESS | {"CUDA_VISIBLE_DEVICES": "3"}, (3, 8, "0")),
        (mpich(3, 8, 8) | ADDRESS | {"CUDA_VISIBLE_DEVICES": "MIG-1f"}, (3, 8, "0")),
        (open_mpi(1, 2, 2) | ADDRESS | {"CUDA_VISIBLE_DEVICES": "4,6"}, (1, 2, "1")),
        # The choice of the user.
        (slurm(1, 2) | {"JAX_LOCAL_DEVICE_IDS": "4,5,6,7"}, (1, 2, "4,5,6,7")),
        # mpirun and mpiexec in a job of Slurm: the tasks of srun are their helpers.
        (slurm(1, 1, nodes=2) | mpich(11, 16, 8) | ADDRESS, (11, 16, "3")),
        (slurm_batch() | open_mpi(3, 16, 8) | ADDRESS, (3, 16, "3")),
        # A script starts eight processes by itself, in a job of Slurm or in one of its tasks.
        (slurm_batch() | explicit(3, 8), (3, 8, "all")),
        (slurm(1, 1, nodes=2) | explicit(11, 16), (11, 16, "all")),
        (slurm(1, 1, nodes=2) | explicit(11, 16) | {"JAX_LOCAL_DEVICE_IDS": "3"}, (11, 16, "3")),
    ],
)
def test_each_process_finds_its_place_and_its_gpus(join: Join, environment: dict, expected: tuple):
    assert join(environment)[:3] == expected


def test_on_a_cpu_the_number_of_processes_is_free(join: Join):
    assert join(slurm(2, 3, gpus=0, listed="") | {"JAX_PLATFORMS": "cpu"})[:2] == (2, 3)


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        # JAX's ports: 61440 + the job's number modulo 4096.
        (slurm(1, 1, nodes=2), "localhost:61440"),
        (open_mpi(1, 2, 1, version=4), "127.0.0.1:61442"),
        (slurm(1, 1, nodes=2) | ADDRESS, "host0:8476"),
    ],
)
def test_the_coordinator_is_that_of_the_launcher_or_of_the_user(
    join: Join, environment: dict, address: str
):
    joined = join(environment)
    assert joined and joined.address == address


@pytest.mark.parametrize(
    "environment",
    [
        {},
        slurm(0, 1),
        slurm_batch(),
        open_mpi(0, 1, 1),
        mpich(0, 1, 1),
        explicit(0, 1),
        # What a launcher has left in the shell, or says of other processes.
        {"SLURM_JOB_ID": "4096", "SLURM_NTASKS": "16", "SLURM_NNODES": "2"},
        {"PMI_RANK": "3"},
        open_mpi(1, 4, 4) | {"JAX_NUM_PROCESSES": "1"},
        slurm(0, 3) | {"JAX_NUM_PROCESSES": "1"},
        kubernetes(1) | {"JAX_NUM_PROCESSES": "1"},
        {"JAX_COORDINATOR_ADDRESS": "", "JAX_NUM_PROCESSES": "", "JAX_PROCESS_ID": ""},
    ],
)
def test_one_process_works_alone(join: Join, environment: dict, capsys):
    """JAX must not join: it would then take SIGTERM away from a single process."""
    assert join(environment) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (slurm(0, 3), ["Slurm started 3 processes", "8 GPUs", "one process", "one for each"]),
        (slurm(0, 2), ["2 processes", "8 GPUs"]),
        (slurm(0, 16), ["16 processes", "8 GPUs"]),
        (slurm(0, 8, gpus=1), ["8 processes", "1 GPU:"]),
        (slurm(0, 2) | explicit(0, 2), ["2 processes", "8 GPUs"]),
        (open_mpi(0, 4, 4, version=4), ["Open MPI started 4 processes", "8 GPUs"]),
        (mpich(0, 4, 4) | ADDRESS, ["MPICH started 4 processes", "8 GPUs"]),
        (
            mpich(0, 4, 4) | ADDRESS | {"CUDA_VISIBLE_DEVICES": "0,1"},
            ["4 processes", "2 GPUs", "JAX_LOCAL_DEVICE_IDS"],
        ),
        (slurm(0, 2) | {"JAX_LOCAL_DEVICE_IDS": "0-3"}, ["JAX_LOCAL_DEVICE_IDS", "'0-3'"]),
        # Incomplete variables.
        (
            open_mpi(0, 2, 1),
            ["Open MPI", "missing: JAX_COORDINATOR_ADDRESS", "alone: JAX_NUM_PROCESSES=1"],
        ),
        (mpich(0, 2, 1), ["MPICH", "missing: JAX_COORDINATOR_ADDRESS"]),
        (ADDRESS, ["missing: JAX_NUM_PROCESSES, JAX_PROCESS_ID"]),
        (slurm_batch() | ADDRESS, ["missing: JAX_NUM_PROCESSES, JAX_PROCESS_ID"]),
        ({"JAX_NUM_PROCESSES": "2"}, ["missing: JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"]),
        (kubernetes(0) | {"JAX_NUM_PROCESSES": "2"}, ["missing: JAX_COORDINATOR_ADDRESS"]),
        (kubernetes(0) | ADDRESS, ["missing: JAX_NUM_PROCESSES."]),
        (slurm(0, 2) | {"JAX_NUM_PROCESSES": "4"}, ["missing: JAX_COORDINATOR_ADDRESS"]),
        # Contradictions.
        (explicit(2, 2), ["process 2", "0 to 1"]),
        (kubernetes(2) | PAIR, ["process 2", "0 to 1"]),
        (explicit(0, 2) | {"JAX_PROCESS_ID": "one"}, ["JAX_PROCESS_ID", "'one'"]),
        (explicit(0, 0), ["JAX_NUM_PROCESSES", "found 0"]),
        (explicit(0, 2) | {"JAX_NUM_PROCESSES": "-2"}, ["JAX_NUM_PROCESSES", "'-2'"]),
        (explicit(0, 2) | {"JAX_NUM_PROCESSES": "²"}, ["JAX_NUM_PROCESSES", "'²'"]),
        (explicit(0, 2) | {"JAX_COORDINATOR_ADDRESS": "host0"}, ["'host0'", "HOST:PORT"]),
        (explicit(0, 2) | {"JAX_COORDINATOR_ADDRESS": "host0:84760"}, ["HOST:PORT"]),
    ],
)
def test_what_does_not_fit_is_one_clear_line(join: Join, environment: dict, words: list[str]):
    with pytest.raises(InputError) as refused:
        join(environment)
    message = str(refused.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_port_that_another_program_uses_is_named(join: Join):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"{address}: process 0 cannot use the port"):
            join(explicit(0, 2) | {"JAX_COORDINATOR_ADDRESS": address})


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (slurm(0, 1, gpus=1), "one process uses 1 of the 8 GPUs (CUDA_VISIBLE_DEVICES=0)"),
        (slurm(1, 1, nodes=2, gpus=4), "one process uses 4 of the 8 GPUs"),
        ({"CUDA_VISIBLE_DEVICES": "5"}, "one process uses 1 of the 8 GPUs"),
        (slurm(0, 4, gpus=4, listed="0"), "4 processes use 4 of the 8 GPUs;"),
        (slurm(0, 2, gpus=2, listed=""), "2 processes use 2 of the 8 GPUs;"),
        (slurm(0, 2) | {"JAX_LOCAL_DEVICE_IDS": "0"}, "2 processes use 2 of the 8 GPUs;"),
        (explicit(0, 2) | {"JAX_LOCAL_DEVICE_IDS": "0"}, "2 processes use at most 2 of the 8 GPUs"),
        (
            open_mpi(0, 4, 4) | {"JAX_NUM_PROCESSES": "1", "CUDA_VISIBLE_DEVICES": "0"},
            "one process uses 1 of the 8 GPUs (CUDA_VISIBLE_DEVICES=0)",
        ),
        # All are used, or the first process of the machine says it.
        (slurm(0, 1), None),
        (slurm(0, 8), None),
        (slurm(0, 2, gpus=8, listed="0,1,2,3"), None),
        (slurm(1, 4, gpus=4, listed="1"), None),
        # Eight processes may share this machine, although no launcher says so.
        (explicit(0, 8) | {"JAX_LOCAL_DEVICE_IDS": "0"}, None),
        (explicit(0, 8) | {"CUDA_VISIBLE_DEVICES": "0"}, None),
        ({"PMI_SIZE": "8", "PMI_RANK": "0", "CUDA_VISIBLE_DEVICES": "0"} | ADDRESS, None),
        ({}, None),
        # The user wants none.
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({"JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_gpus_that_lie_idle_are_named_once(join: Join, environment: dict, line: str | None, capsys):
    join(environment)
    printed = capsys.readouterr().err
    if line is None:
        assert printed == ""
    else:
        assert line in printed and "idle" in printed and printed.count("\n") == 1


def test_a_pod_of_an_indexed_job_that_works_alone_says_so(join: Join, capsys):
    assert join(kubernetes(1)) is None
    assert "pod 1" in capsys.readouterr().err
    assert "kubernetes" not in sys.modules
