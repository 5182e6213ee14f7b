"""A process that joins others as its environment says, without the others.

JAX's own code reads the environment and sets which GPUs are used; its connection is left out.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from jax._src import distributed, xla_bridge

from minigpt_jax.runtime.distributed import join_processes

# What a launcher of the tests themselves may have set.
LAUNCHERS = ("SLURM", "OMPI", "PMI", "MPI", "JAX_", "TPU", "MEGASCALE", "KUBE", "JOB_", "CUDA")


class Joined(NamedTuple):
    """What JAX knows when it has joined. "all": GPUs are not restricted."""

    index: int
    count: int
    gpus: str
    address: str | None


Join = Callable[..., Joined | None]


@pytest.fixture
def join(monkeypatch, tmp_path: Path) -> Iterator[Join]:
    """join_processes on a machine with this environment and these GPUs; None: it works alone."""
    joined: list[Joined] = []

    def initialize(**arguments) -> None:
        state = distributed.State()
        state.initialize(**arguments)
        visible = xla_bridge.CUDA_VISIBLE_DEVICES.value
        joined.append(
            Joined(state.process_id, state.num_processes, visible, state.coordinator_address)
        )

    def join(environment: dict[str, str], gpus: int = 8) -> Joined | None:
        for name in os.environ:
            if name.startswith(LAUNCHERS):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "dev").mkdir()
        for number in range(gpus):
            (tmp_path / "dev" / f"nvidia{number}").touch()
        # They belong to all GPUs.
        for name in ("nvidiactl", "nvidia-uvm"):
            (tmp_path / "dev" / name).touch()
        join_processes(root=tmp_path)
        return joined[0] if joined else None

    class Connection:
        def connect(self) -> None: ...

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(distributed.State, "initialize_preemption_sync_manager", lambda self: None)
    for name in ("get_distributed_runtime_service", "get_distributed_runtime_client"):
        monkeypatch.setattr(distributed._jax, name, lambda *_, **__: Connection())
    yield join
    jax.config.update("jax_cuda_visible_devices", "all")
    jax.config.update("jax_rocm_visible_devices", "all")
