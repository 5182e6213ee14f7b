"""Show the curves of a run in trackio or W&B, from a process of its own.

A tracker imports for a second, has threads and a server to wait for, prints, and may hang. In its
own process none of that can stop training or slow its steps. That process (tracker_session.py)
reads what the run records anyway, so nothing is handed to it and nothing can pile up here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from minigpt_jax.errors import InputError

PACKAGE_FOLDER = Path(__file__).parents[2]
# What was tested; the code uses parts of them that are not public. pyproject.toml has the same.
VERSIONS = {"trackio": ">=0.43,<0.44", "wandb": ">=0.31,<0.32"}
# Seconds that a tracker has after the end of training, to send the rest.
FINISH_SECONDS = 60
# Seconds of waiting that need no word.
QUICK_SECONDS = 3


def require_tracker(name: str) -> None:
    """Raise InputError if the tracker `name` ("trackio" or "wandb") is not installed."""
    found = find_spec(name)
    # A folder of this name, such as W&B's own ./wandb, can be imported too; it has no origin.
    if found is None or found.origin is None:
        raise InputError(
            f"log.tracker {name!r}: the package {name} is not installed: "
            f'`pip install "{name}{VERSIONS[name]}"` '
            'into this environment, or go without it (--config.log.tracker="")'
        )


class Tracker:
    """The process that sends the curves of the run in folder `run` to the tracker `name`.

    Its metrics.jsonl, evaluations.jsonl and config.json must be those of this start, which begins
    at step `start`. `every` and `horizon`: which steps are shown, as in RunLog. Raises nothing: if
    there is no such process, a warning says so.
    """

    def __init__(self, run: Path, name: str, *, start: int, every: int, horizon: int):
        self._name = name
        self._process = None
        module = "minigpt_jax.tracking.tracker_session"
        arguments = (name, run, start, every, horizon, FINISH_SECONDS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                env=tracker_environment(name, os.environ),
                # It ends when this pipe does: when this process has ended, however it ends.
                stdin=subprocess.PIPE,
                # Ctrl-C on the terminal ends training, which then ends the tracker.
                start_new_session=True,
            )
        except OSError as error:
            self._warn(f"its process cannot be started ({error})")

    def close(self, *, wait: bool = True) -> None:
        """Tell the process that training has ended. The records must be closed.

        `wait`: until everything is sent, for FINISH_SECONDS at most. Without, it goes on alone as
        long, and what it cannot send then is sent when the run is resumed.
        """
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        if not wait:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(QUICK_SECONDS)
        if self._process.returncode is None:
            print(f"{self._name}: sends the rest, for {FINISH_SECONDS} s at most", file=sys.stderr)
        try:
            # It ends itself in time; a little more is for a machine that is busy.
            code = self._process.wait(FINISH_SECONDS + 10)
        except subprocess.TimeoutExpired:
            # With the processes that it started, which would keep the next start waiting.
            os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        if code > 0:
            self._warn(f"its process failed (exit code {code}): see tracker.log")
        if code < 0:
            cause = signal.Signals(-code).name
            if -code == signal.SIGALRM:
                cause = f"it had {FINISH_SECONDS} s for the rest"
            self._warn(f"its process was ended ({cause}): the end of the curves may be missing")

    def _warn(self, problem: str) -> None:
        print(f"warning: {self._name}: {problem}", file=sys.stderr)


def tracker_environment(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for the tracker's process: nothing is sent that nobody asked for."""
    paths = [str(PACKAGE_FOLDER), environment.get("PYTHONPATH", "")]
    changed = dict(environment) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # Otherwise W&B reports its own errors to its makers.
    changed.setdefault("WANDB_ERROR_REPORTING", "false")
    if name == "trackio" and not {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & environment.keys():
        # Otherwise trackio asks the hub for the name of the user who is logged in there.
        changed["HF_HUB_OFFLINE"] = "1"
    return changed
