"""Where a run is on disk, which run is the newest, and the lock that allows one trainer per run.

runs/<name>/config.json       the config of its last start
runs/<name>/environment.json  machine, versions and command of its last start
runs/<name>/data.json         folders of its data, their parts of the rows and checksums
runs/<name>/checkpoints/      see checkpoint.py
runs/<name>/metrics.jsonl     one line per step
runs/<name>/tensorboard/      the same for TensorBoard
runs/<name>/tracker.json      what trackio or W&B knows the run by; tracker.log beside it
runs/<name>/evaluations.jsonl one line per evaluation, with generated samples
runs/<name>/report.html       plots and tables of the run
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
    """Steps with a committed checkpoint, oldest first; other entries of the folder are ignored.

    Orbax commits by renaming a folder. So a folder with a number as its name and anything in it was
    a checkpoint once; if it is damaged now, the reader must report that. Raises OSError.
    """
    folder = run / "checkpoints"
    names = [name for name in _names_in(folder) if name.isdecimal()]
    return sorted(int(name) for name in names if _names_in(folder / name))


def _names_in(folder: Path) -> list[str]:
    """What the folder holds; nothing if there is no such folder.

    Any other error is raised: a run whose folder cannot be read now is not a run without
    checkpoints, which would start again.
    """
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.is_symlink():
            cause = "what this link leads to is not there (a disk that is not mounted?)"
            raise OSError(error.errno, cause, str(folder)) from error
        return []


def newest_run(root: Path) -> Path:
    """The run with the most recent checkpoint. Raises InputError if there is none."""
    folders = root.iterdir() if root.is_dir() else ()
    trained = [run for run in folders if checkpoint_steps(run)]
    if not trained:
        raise InputError(
            f"no trained run in {root}/: train one first (`make demo` takes minutes), "
            "make one with `minigpt import`, or name a folder with --run"
        )
    # Of two runs of the same time always the same one, whatever order the folder is listed in.
    return max(trained, key=lambda run: (_newest_checkpoint_time(run), run))


def _newest_checkpoint_time(run: Path) -> float:
    return (run / "checkpoints" / str(checkpoint_steps(run)[-1])).stat().st_mtime


def lock_owner(run: Path) -> str:
    """The number of the process that has locked the run; empty if none has."""
    try:
        return (run / "lock").read_text().strip()
    except FileNotFoundError:
        return ""


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Lock the run for this process. Raises RunError if another process holds the lock.

    The operating system releases it when the process ends, however it ends. The file has the number
    of the process that holds it.
    """
    with (run / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = lock_owner(run) or "unknown"
            raise RunError(
                f"{run}: another trainer works on this run (process {owner}): "
                "wait for it, or choose another name"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
