"""The process that sends the curves of a run to its tracker, as long as training lasts.

It is started by tracker.py, follows the records of the run, and ends when its standard input does.
What the tracker prints is in <run>/tracker.log.
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import traceback
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from minigpt_jax.errors import first_line
from minigpt_jax.runtime.files import shell_word, write_json
from minigpt_jax.tracking.tracker_rows import GrowingFile, Rows

PROJECT = "minigpt-jax"
# Seconds between two looks at the records.
INTERVAL = 1.0


class OpenTracker(NamedTuple):
    """The run in the tracker."""

    # The last step that it has; -1 where it has none.
    last: int
    log: Callable[[dict[str, float], int], object]
    finish: Callable[[], object]
    # Where to see it.
    place: str


def open_trackio(trackio: Any, run: Path, identity: str, config: dict, _: float) -> OpenTracker:
    """Begin or continue the run in trackio's store."""
    # On a network file system trackio writes fragments, which it does not look into when it
    # continues a run. Its dashboard puts them into the database in the same way.
    import_module("trackio.fragments").import_inbox_dir()
    opened = trackio.init(
        project=PROJECT,
        # trackio finds a run by its name.
        name=f"{run.name}-{identity}",
        config=config,
        resume="allow",
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    return OpenTracker(
        last=opened._next_step - 1,
        log=lambda values, step: trackio.log(values, step=step),
        finish=trackio.finish,
        place=f"trackio show --project {PROJECT}",
    )


def open_wandb(
    wandb: Any, run: Path, identity: str, config: dict, finish_seconds: float
) -> OpenTracker:
    """Begin or continue the run in W&B, or write it to <run>/wandb with WANDB_MODE=offline.

    Offline, W&B cannot continue a run: each start writes the whole curve to a folder of its own,
    and at its end removes those of earlier starts.
    """
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=identity,
        name=run.name,
        config=config,
        resume="allow",
        dir=os.environ.get("WANDB_DIR", run),
        # Nothing but the curves and the config.
        settings=wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            finish_timeout=finish_seconds / 2,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        ),
    )
    folder = Path(opened.dir).parent
    earlier = [path for path in folder.parent.glob(f"offline-run-*-{identity}") if path != folder]

    def finish() -> None:
        opened.finish()
        if opened.offline:
            for path in earlier:
                shutil.rmtree(path)

    return OpenTracker(
        last=-1 if opened.offline else opened.step - 1,
        log=lambda values, step: opened.log(values, step=step, commit=True),
        finish=finish,
        place=f"wandb sync {shell_word(folder)}" if opened.offline else opened.url or "disabled",
    )


def tracker_identity(file: Path, config: dict, start: int) -> str:
    """What the tracker knows the run by: the same in every start of a run, noted in `file`.

    A run that begins at step 0 again with another config, or with `fresh`, is another run.
    """
    what = {name: value for name, value in config.items() if name not in ("fresh", "log")}
    try:
        noted = json.loads(file.read_text())
        if start or (noted["config"] == what and not config["fresh"]):
            return noted["id"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    identity = uuid.uuid4().hex[:12]
    write_json(file, {"id": identity, "config": what})
    return identity


class Trainer:
    """The process that trains: when it has ended, and its console, which no tracker writes to."""

    def __init__(self, name: str, log: Path, finish_seconds: int):
        self.ended = threading.Event()
        self._prefix = f"warning: {name}: "
        self._suffix = f" ({log}). Training goes on"
        self._finish_seconds = finish_seconds
        self._console = os.dup(2)
        self._warned = False
        threading.Thread(target=self._await_end, daemon=True).start()

    def say(self, line: str) -> None:
        """Print a line on the console, if there still is one."""
        with suppress(OSError):
            os.write(self._console, f"{line}\n".encode())

    def warn(self, problem: BaseException) -> None:
        """Print the first problem; those that follow from it are in the log."""
        if not self._warned:
            self._warned = True
            self.say(self._prefix + first_line(problem) + self._suffix)

    def _await_end(self) -> None:
        # Not through Python's buffer, whose lock would abort this process if it ended before.
        while os.read(0, 4096):
            pass
        # Ends this process, whatever it waits for.
        signal.alarm(self._finish_seconds)
        self.ended.set()


def follow(run: Path, tracker: OpenTracker, rows: Rows, ended: threading.Event) -> None:
    """Send the rows of the run that the tracker lacks, until training has ended."""
    steps = GrowingFile(run / "metrics.jsonl")
    evaluations = GrowingFile(run / "evaluations.jsonl")
    last = tracker.last
    last_look = False
    while not last_look:
        # All that was recorded is there when training has ended.
        last_look = ended.wait(INTERVAL)
        for step, values in rows.add(steps.read(), evaluations.read()):
            if step > last:
                tracker.log(values, step)
                last = step
    tracker.finish()


def main(name: str, folder: str, start: str, every: str, horizon: str, finish_seconds: str) -> None:
    """Follow a run until training ends; an error is one line on the console."""
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Schedulers signal all processes of a job, but training decides when it ends.
        signal.signal(request, signal.SIG_IGN)
    # Training comes first where processors are few.
    os.nice(10)
    run = Path(folder).resolve()
    log_path = run / "tracker.log"
    trainer = Trainer(name, log_path, int(finish_seconds))

    def show_warning(message: Any, *_: Any) -> None:
        traceback.print_stack()
        print(message, file=sys.stderr, flush=True)
        trainer.warn(message)

    # The errors of trackio are warnings.
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=UserWarning, module="trackio")
    warnings.showwarning = show_warning
    try:
        log = log_path.open("a")
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        # The tracker of the start before may still be at work: it and the processes that it started
        # have the lock until they end.
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            trainer.say(f"{name}: waits for the tracker of the start before")
            fcntl.flock(log, fcntl.LOCK_EX)
        config = json.loads((run / "config.json").read_text())
        identity = tracker_identity(run / "tracker.json", config, int(start))
        open_tracker = {"trackio": open_trackio, "wandb": open_wandb}[name]
        tracker = open_tracker(import_module(name), run, identity, config, float(finish_seconds))
        trainer.say(f"{name}: {tracker.place}")
        follow(run, tracker, Rows(every=int(every), horizon=int(horizon)), trainer.ended)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        traceback.print_exc()
        trainer.warn(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
