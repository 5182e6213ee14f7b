"""Where a run lives on disk, which run is the newest, and that only one trainer works on it.

runs/<name>/config.json       the configuration of its last start
runs/<name>/environment.json  machine, versions and command of its last start
runs/<name>/checkpoints/      Orbax; see checkpoint.py
runs/<name>/metrics.jsonl     one line a step
runs/<name>/tensorboard/      the same for TensorBoard
runs/<name>/evaluations.jsonl one line an evaluation, with what the model wrote
runs/<name>/report.html       the run at a glance
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt_jax.errors import InputError, RunError


def run_folder(root: Path, name: str) -> Path:
    """Folder of the run `name`. Raises InputError for a name that is no plain folder name."""
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"name {name!r} must be a plain folder name, such as 'pretrain'")
    return root / name


def checkpoint_steps(run: Path) -> list[int]:
    """Steps with a committed checkpoint, oldest first; anything else lying in the folder is ignored.

    Orbax commits by renaming a folder, so a folder with a number for a name and something in it was one once, and
    whoever reads it must say so if it no longer is.
    """
    folder = run / "checkpoints"
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        int(e.name) for e in entries if e.name.isdecimal() and e.is_dir() and any(e.iterdir())
    )


def newest_run(root: Path) -> Path:
    """The run whose newest checkpoint is the most recent of all. Raises InputError when there is none."""
    newest = [
        (_written(run), run)
        for run in (root.iterdir() if root.is_dir() else ())
        if checkpoint_steps(run)
    ]
    if not newest:
        raise InputError(
            f"no trained run in {root}/: train one first (`make demo` takes minutes), or name a folder with --run"
        )
    return max(newest)[1]


def _written(run: Path) -> float:
    return (run / "checkpoints" / str(checkpoint_steps(run)[-1])).stat().st_mtime


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold the run for this process; the lock goes with the process, however it ends. Raises RunError if it is held."""
    with (run / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RunError(
                f"{run}: another trainer works on this run (process {file.read().strip() or 'unknown'}): wait for it, or choose another name"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
