"""Compare programs fairly: each has its own process, they take turns, and medians are reported.

A slow minute of the machine affects all contenders, and none is slowed by the libraries, threads or
memory of another.
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
    """The results of one contender."""

    # Seconds of the first piece of work, which compiles.
    first: float
    # Seconds of each round.
    seconds: list[float]
    # Bytes of memory at the peak: of the process in the rounds, or of the device since the start.
    peak: int
    # Other numbers that the contender reports.
    notes: dict

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.seconds)


def run_interleaved(
    module: str, names: Sequence[str], options: Sequence[str], rounds: int
) -> dict[str, Measured]:
    """Results by name, after `rounds` rounds in turn.

    Each contender is `python -m module --contender name options`, which calls `worker`. One that
    cannot start is left out, with a message on stderr.
    """
    processes = {}
    ready = {}
    # Started one after the other, because compilation is timed too.
    for name in names:
        if _is_missing(name):
            print(f"{name}: torch and transformers are not installed", file=sys.stderr)
            continue
        process = _start(module, name, options)
        if reply := _read(process):
            processes[name] = process
            ready[name] = reply
        else:
            print(f"{name}: did not start (exit {process.wait()})", file=sys.stderr)

    rounds_of: dict[str, list[dict]] = {name: [] for name in ready}
    for number in range(rounds):
        # Every other round is in reverse order, so that no contender always follows the same one.
        order = list(processes)
        if number % 2:
            order.reverse()
        for name in order:
            rounds_of[name].append(_run_round(processes[name]))
    for process in processes.values():
        process.communicate()

    return {
        name: Measured(
            first=ready[name]["first"],
            seconds=[reply["seconds"] for reply in own],
            peak=max(reply["peak"] for reply in own),
            notes=ready[name]["notes"],
        )
        for name, own in rounds_of.items()
    }


def worker(
    prepare: Callable[[], Callable[[], None]],
    *,
    peak: Callable[[], int | None] = lambda: None,
    notes: Callable[[], dict] = dict,
) -> None:
    """Be a contender: prepare the work, do it twice, then once for each line on stdin.

    `peak`: bytes of device memory at the peak, None to report those of the process.
    """
    replies = os.fdopen(os.dup(1), "w")
    # What a library prints must not look like a reply.
    os.dup2(2, 1)

    def reply(content: dict) -> None:
        print(json.dumps(content), file=replies, flush=True)

    work = prepare()
    first = seconds_of(work)
    work()
    _reset_peak()
    reply({"first": first, "notes": notes()})
    for _ in sys.stdin:
        seconds = seconds_of(work)
        reply({"seconds": seconds, "peak": peak() or _process_peak()})


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *rest in (head, *rows):
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _is_missing(name: str) -> bool:
    needs_torch = name.startswith("torch")
    return needs_torch and not (find_spec("torch") and find_spec("transformers"))


def _start(module: str, name: str, options: Sequence[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", module, "--contender", name, *options]
    # All contenders use the same GPU and share its memory.
    environment = {"CUDA_VISIBLE_DEVICES": "0"} | os.environ
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _read(process: subprocess.Popen) -> dict | None:
    assert process.stdout
    line = process.stdout.readline()
    return json.loads(line) if line else None


def _run_round(process: subprocess.Popen) -> dict:
    assert process.stdin
    with suppress(BrokenPipeError):
        process.stdin.write("\n")
        process.stdin.flush()
    reply = _read(process)
    if reply is None:
        raise RuntimeError(f"a contender ended in a round: {process.args}")
    return reply


def _reset_peak() -> None:
    """Memory that a compiler needed does not count, where the kernel can reset the peak."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _process_peak() -> int:
    with suppress(OSError, ValueError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
