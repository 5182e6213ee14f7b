"""Stop the real train.py as people and machines do: through the programs that started it.

make, uv and timeout pass a signal on that a terminal has sent to the whole process group already,
so a run gets each request more than once. It must have saved, and continue.
"""

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.interrupt import SIGNALS
from tests.faults.processes import catches, wait_until
from tests.faults.scenarios import RUN_TIMEOUT, Outcome
from tests.faults.workspace import Workspace, resumed_step
from tests.harness import ENVIRONMENT, ROOT, command, history, run_train

# As `uv run` does where uv is not installed: start a program, and pass signals on to it.
PASS_ON = """
import signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: child.send_signal(number))
sys.exit(child.wait())
"""
# Less than SAME_REQUEST_SECONDS, also where the machine is busy.
LONGEST_GAP = 1.0
# Seconds after which most runs train.
LONGEST_START = 10.0
# Only the stop saves.
UNTIL_STOPPED = {"horizon__steps": 10**6, "save__every": 10**6, "eval__every": 10**6}
REQUESTS = (signal.SIGINT, signal.SIGTERM)


def through_make(program: list[str], folder: Path) -> list[str]:
    """make with a file whose only target runs the program."""
    folder.mkdir(parents=True, exist_ok=True)
    line = shlex.join(program).replace("$", "$$")
    (folder / "Makefile").write_text(f"go:\n\t@{line}\n")
    return ["make", "--no-print-directory", "-f", str(folder / "Makefile")]


def through_uv(program: list[str], _: Path) -> list[str]:
    """`uv run`, or what does the same."""
    uv = shutil.which("uv")
    run = [uv, "run", "--no-project"] if uv else [sys.executable, "-c", PASS_ON]
    return [*run, *program]


def through_timeout(program: list[str], _: Path) -> list[str]:
    """timeout, long before the time is over."""
    return ["timeout", str(RUN_TIMEOUT), *program]


def by_itself(program: list[str], _: Path) -> list[str]:
    """The program, whose whole process group is signalled."""
    return program


LAUNCHERS: dict[str, Callable[[list[str], Path], list[str]]] = {
    "make": through_make,
    "uv run": through_uv,
    "timeout": through_timeout,
    "group": by_itself,
}


def stop(workspace: Workspace, launcher: str, number: signal.Signals, seed: int) -> Outcome:
    """Start a run through a launcher, stop it at a random moment, and let it continue."""
    draw = random.Random(f"{launcher} {number} {seed}")
    name = f"stop_{launcher.replace(' ', '_')}_{number.name}_{seed}"
    settings = workspace.settings(name, **UNTIL_STOPPED)
    run = workspace.runs / name
    log = workspace.folder / f"{name}.log"
    program = LAUNCHERS[launcher](command(**settings), workspace.folder / name)
    with log.open("w") as file:
        process = subprocess.Popen(
            program,
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        moment = _wait_for_moment(process, run, draw, workspace.seconds)
        sent = _send(process, launcher, number, draw)
        code = process.wait(RUN_TIMEOUT)
        wait_until(lambda: _trainer(process.pid) is None)
    finally:
        _kill_group(process.pid)
    outcome = Outcome("stop", f"{launcher}, {sent}, {moment}, seed {seed}")
    output = log.read_text()
    outcome.problems += _not_saved(output, run)
    # make ends by the signal itself, once the trainer has ended.
    if code and launcher != "make":
        outcome.problems.append(f"exit code {code}")
    if not outcome.problems:
        outcome.remark = f"saved step {len(history(run))}, continued"
        outcome.problems += _not_continued(settings, run)
    return outcome


def _wait_for_moment(
    process: subprocess.Popen, run: Path, draw: random.Random, seconds: float
) -> str:
    """Wait until the trainer handles signals, and then for a while; returns a description.

    Half of the moments are while it loads and compiles, half while it trains.
    """
    wait_until(lambda: process.poll() is not None or _handles_signals(process.pid))
    if draw.random() < 0.5:
        delay = draw.uniform(0, min(seconds, LONGEST_START))
        time.sleep(delay)
        return f"{delay:.2f} s after its start"
    wait_until(lambda: process.poll() is not None or bool(history(run)))
    delay = draw.uniform(0, 1)
    time.sleep(delay)
    return f"{delay:.2f} s after its first step"


def _send(
    process: subprocess.Popen, launcher: str, number: signal.Signals, draw: random.Random
) -> str:
    """Signal the whole group, as a terminal does, or the launcher alone; half the time twice."""
    # make leaves Ctrl-C to the terminal, which signals all.
    alone = launcher in ("uv run", "timeout") or (launcher, number) == ("make", signal.SIGTERM)
    to_group = not alone or draw.random() < 0.5
    times = 2 if launcher == "group" or draw.random() < 0.5 else 1
    for again in range(times):
        if again:
            time.sleep(draw.uniform(0, LONGEST_GAP))
        if process.poll() is None:
            (os.killpg if to_group else os.kill)(process.pid, number)
    return f"{times} x {number.name} to {'all' if to_group else 'the launcher'}"


def _trainer(session: int) -> int | None:
    """The process that runs train.py in the session of a launcher."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if int(fields[3]) == session and arguments[1:2] == [b"train.py"]:
                return int(folder.name)
    return None


def _handles_signals(session: int) -> bool:
    pid = _trainer(session)
    try:
        # Handlers are installed in this order.
        return pid is not None and catches(pid, SIGNALS[-1])
    except OSError:  # it has ended
        return False


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _not_saved(output: str, run: Path) -> Iterator[str]:
    """What is wrong with the end of a stopped run."""
    if "Traceback" in output:
        yield "a traceback"
    if "stopped immediately" in output:
        yield "it stopped without saving"
    stopped = re.search(r"stopped after step (\d+) of", output)
    if stopped is None:
        yield f"it does not say that it stopped: {output.splitlines()[-2:]}"
        return
    reached = int(stopped[1])
    steps = [step for step, *_ in history(run)]
    if steps != list(range(reached)):
        yield f"{len(steps)} steps are on record, it stopped after {reached}"
    if checkpoint_steps(run)[-1:] != [reached] * bool(reached):
        yield f"checkpoints {checkpoint_steps(run)}, it stopped after {reached}"


def _not_continued(settings: dict, run: Path) -> Iterator[str]:
    """Run the same command for a few more steps; what is wrong with them."""
    reached = len(history(run))
    # Not a shorter horizon, for which the program would be compiled again.
    done = run_train(
        environment={"MINIGPT_FAILPOINT": f"after_step@{reached + 2}:term"}, **settings
    )
    if done.returncode:
        yield f"continued with exit code {done.returncode}: {done.stdout.splitlines()[-1:]}"
    elif resumed_step(done.stdout) != reached:
        yield f"stopped after step {reached}, continued from {resumed_step(done.stdout)}"
    else:
        yield from _not_saved(done.stdout, run)
