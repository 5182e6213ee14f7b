"""One workspace per test process, and trainers in the background that do not outlive their test."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.processes import Start, StartTwo, kill_at_deadline, start_one
from tests.faults.workspace import Workspace
from tests.harness import explicit_launcher, start_pair


@pytest.fixture(scope="session")
def workspace(shared: Path, tmp_path_factory) -> Workspace:
    """Data, an uninterrupted run, and programs that are compiled already."""
    return Workspace(tmp_path_factory.mktemp("workspace"), shared / "faults")


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
