"""One workspace per test process, and trainers in the background that do not outlive their test."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minigpt_jax import optim
from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.checkpoint_meta import read_meta
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sharding import make_mesh
from minigpt_jax.step import TrainState, abstract_state
from tests.faults.processes import Start, StartTwo, kill_at_deadline, start_one
from tests.faults.workspace import Workspace
from tests.harness import explicit_launcher, start_pair

Restore = Callable[[Path], tuple[TrainState, dict] | None]


@pytest.fixture(scope="session")
def workspace(request, shared: Path, tmp_path_factory) -> Workspace:
    """Data, an uninterrupted run, and programs that are compiled already.

    Of the plain recipe, unless a test names another of RECIPES as the parameter.
    """
    recipe = getattr(request, "param", "plain")
    return Workspace(tmp_path_factory.mktemp("workspace"), shared / "faults", recipe)


@pytest.fixture(scope="session")
def restore(workspace: Workspace) -> Restore:
    """Restores a run of the workspace as its trainer would."""
    meta = read_meta(workspace.two_checkpoints, 18)
    config = GPTConfig(**meta["model"])
    optimizer = optim.make_optimizer(**meta["config"]["optimizer"])
    abstract = abstract_state(GPT(config), optimizer, make_mesh())

    def restore_run(run: Path) -> tuple[TrainState, dict] | None:
        checkpoints = Checkpoints(run, keep=2)
        restored = checkpoints.restore(abstract, config, lambda meta: None)
        checkpoints.close()
        return restored

    return restore_run


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    """The processes of a test, which are killed at its end."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()


@pytest.fixture
def start(started: list[subprocess.Popen]) -> Start:
    """`start(settings, VARIABLE=value)` starts train.py."""

    def start_and_remember(settings: dict, **environment: str) -> subprocess.Popen:
        process = start_one(settings, **environment)
        started.append(process)
        return process

    return start_and_remember


@pytest.fixture
def start_two(started: list[subprocess.Popen]) -> StartTwo:
    """`start_two(settings, {}, {})` starts two processes of one run, each with its variables.

    `launcher(index)`: what a launcher gives each of them.
    """

    def start_and_remember(
        settings: dict,
        *environments: dict,
        launcher: Callable[[int], dict] = explicit_launcher,
    ) -> list[subprocess.Popen]:
        pair = start_pair(environments=environments or ({}, {}), launcher=launcher, **settings)
        started.extend(pair)
        for process in pair:
            kill_at_deadline(process)
        return pair

    return start_and_remember
