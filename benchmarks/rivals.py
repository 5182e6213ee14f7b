"""Measure rivals fairly: each in a process of its own, a round of one after a round of the other, medians at the end.

A slow minute of the machine meets all of them, and none has the other's libraries, threads or memory in its way.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Measured(NamedTuple):
    """What became of one rival."""

    first: float  # s for its first piece of work, which compiles
    seconds: list[float]  # of each round
    peak: int  # bytes of memory: of the process in the rounds, or of the device since its start
    notes: dict  # what else it says of itself

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.seconds)


def compete(
    module: str, rivals: Sequence[str], options: Sequence[str], rounds: int
) -> dict[str, Measured]:
    """Let the `rivals` of a benchmark run `rounds` rounds in turn; one that cannot start is left out and says why on stderr."""
    running, ready = {}, {}
    for name in rivals:  # one after the other: compilation is timed too
        if _missing(name):
            print(f"{name}: torch and transformers are not installed", file=sys.stderr)
            continue
        process = _start(module, name, options)
        if reply := _read(process):
            running[name], ready[name] = process, reply
        else:
            print(f"{name}: did not start (exit {process.wait()})", file=sys.stderr)
    replies: dict[str, list[dict]] = {name: [] for name in ready}
    for number in range(rounds):
        # Every other round backwards: nobody always comes right after the same one.
        for name in list(running)[:: -1 if number % 2 else 1]:
            replies[name].append(_ask(running[name]))
    for process in running.values():
        process.communicate()
    return {
        name: Measured(
            ready[name]["first"],
            [r["seconds"] for r in own],
            max(r["peak"] for r in own),
            ready[name]["notes"],
        )
        for name, own in replies.items()
    }


def serve(
    prepare: Callable[[], Callable[[], None]],
    *,
    peak: Callable[[], int | None] = lambda: None,
    notes: Callable[[], dict] = dict,
) -> None:
    """Be a rival: make the piece of work, do it twice, then once whenever the other end asks."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    work = prepare()
    began = time.perf_counter()
    work()
    first = time.perf_counter() - began
    work()
    _forget_peak()
    print(json.dumps({"first": first, "notes": notes()}), file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        print(
            json.dumps({"seconds": seconds, "peak": peak() or _peak_of_process()}),
            file=answers,
            flush=True,
        )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, the first to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = (
        (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    )
    return "\n".join("  ".join(line) for line in lines)


def _missing(name: str) -> bool:
    return name.startswith("torch") and (
        find_spec("torch") is None or find_spec("transformers") is None
    )


def _start(module: str, name: str, options: Sequence[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", module, "--rival", name, *options]
    # All of them have the same one GPU, and share its memory.
    environment = (
        {"CUDA_VISIBLE_DEVICES": "0"} | os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    )
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _read(process: subprocess.Popen) -> dict | None:
    assert process.stdout
    line = process.stdout.readline()
    return json.loads(line) if line else None


def _ask(process: subprocess.Popen) -> dict:
    assert process.stdin
    with suppress(BrokenPipeError):
        process.stdin.write("\n")
        process.stdin.flush()
    reply = _read(process)
    if reply is None:
        raise RuntimeError(f"{' '.join(map(str, process.args))} ended in the middle of a round")  # pyright: ignore[reportArgumentType]
    return reply


def _forget_peak() -> None:
    """Compilers need memory too; it is not counted where the kernel can forget it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_of_process() -> int:
    with suppress(OSError, ValueError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
