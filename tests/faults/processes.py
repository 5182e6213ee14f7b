"""Trainers in the background, for tests that send signals or watch two of them."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.harness import ENVIRONMENT, ROOT, command

# A process that takes longer hangs: it is killed, and the test fails on its exit code.
DEADLINE = 300

Start = Callable[..., subprocess.Popen]
StartTwo = Callable[..., list[subprocess.Popen]]


def start_one(settings: dict, **environment: str) -> subprocess.Popen:
    """Start train.py with these variables; it is killed at the deadline."""
    process = subprocess.Popen(
        command(**settings),
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    kill_at_deadline(process)
    return process


def kill_at_deadline(process: subprocess.Popen) -> None:
    """Make sure that a test which waits for this process ends."""
    timer = threading.Timer(DEADLINE, process.kill)
    timer.daemon = True
    timer.start()


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Read what the process prints until a line has `text` in it."""
    assert process.stdout
    output = ""
    for line in process.stdout:
        output += line
        if text in line:
            return
    raise AssertionError(f"it ended ({process.wait()}) and never printed {text!r}: {output}")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most until the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal, as the kernel reports it."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)
