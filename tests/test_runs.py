"""One trainer per run, however the last one ended; the newest run has the newest checkpoint."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt_jax import runs
from minigpt_jax.errors import InputError, RunError

LOCK_UNTIL_STDIN_CLOSES = """
import sys
from pathlib import Path
from minigpt_jax.runs import lock
with lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


def start_locker(run: Path) -> subprocess.Popen:
    """A process that locks the run until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK_UNTIL_STDIN_CLOSES, str(run)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "locked\n"
    return process


def write_checkpoint(run: Path, step: int, at: float) -> None:
    """What counts as a committed checkpoint, written at time `at`."""
    folder = run / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    os.utime(folder, (at, at))


def test_a_second_trainer_is_refused_and_the_message_names_the_first(tmp_path: Path):
    first = start_locker(tmp_path)
    with (
        pytest.raises(
            RunError, match=rf"another trainer works on this run \(process {first.pid}\)"
        ),
        runs.lock(tmp_path),
    ):
        pass
    third = subprocess.run(
        [sys.executable, "-c", LOCK_UNTIL_STDIN_CLOSES, str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert third.returncode != 0 and "RunError" in third.stderr and str(first.pid) in third.stderr
    assert first.poll() is None
    first.communicate("", timeout=60)
    assert first.returncode == 0
    with runs.lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_trainer_leaves_its_run_unlocked(tmp_path: Path, ending: signal.Signals):
    process = start_locker(tmp_path)
    process.send_signal(ending)
    process.communicate(timeout=60)
    assert process.returncode == -ending
    with (
        runs.lock(tmp_path),
        pytest.raises(RunError, match=f"process {os.getpid()}"),
        runs.lock(tmp_path),
    ):
        pass


def test_two_runs_can_be_locked_at_the_same_time(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with runs.lock(tmp_path / "a"), runs.lock(tmp_path / "b"):
        pass


def test_only_committed_checkpoints_count(tmp_path: Path):
    assert runs.checkpoint_steps(tmp_path) == []
    for step in (100, 9, 20):
        write_checkpoint(tmp_path, step, at=1)
    folder = tmp_path / "checkpoints"
    # Empty: nothing was committed.
    (folder / "30").mkdir()
    (folder / "40").write_text("a file")
    (folder / "50.tmp").mkdir()
    (folder / "60.orbax-checkpoint-tmp-7").mkdir()
    (folder / "60.orbax-checkpoint-tmp-7" / "_CHECKPOINT_METADATA").write_text("{}")
    for name in ("abc", "deleting-70", "-80", "9.5", " 90", ".hidden"):
        (folder / name).mkdir()
        (folder / name / "_CHECKPOINT_METADATA").write_text("{}")
    assert runs.checkpoint_steps(tmp_path) == [9, 20, 100]


def test_the_newest_run_is_the_one_with_the_newest_checkpoint(tmp_path: Path):
    write_checkpoint(tmp_path / "early", 900, at=1_000)
    write_checkpoint(tmp_path / "late", 10, at=2_000)
    # The last step of a run counts, even if an earlier one was touched since.
    write_checkpoint(tmp_path / "late", 5, at=9_000)
    write_checkpoint(tmp_path / "middle", 99, at=1_500)
    assert runs.newest_run(tmp_path) == tmp_path / "late"
    # Other entries, all of them younger, hold no checkpoint.
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / ".compiled").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("a file")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "checkpoints").write_text("a file")
    assert runs.newest_run(tmp_path) == tmp_path / "late"
    write_checkpoint(tmp_path / "early", 901, at=3_000)
    assert runs.newest_run(tmp_path) == tmp_path / "early"


def test_without_a_run_the_message_explains_what_to_do(tmp_path: Path):
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    for root in (tmp_path, tmp_path / "nowhere", tmp_path / "begun"):
        with pytest.raises(InputError, match=r"no trained run in .*make demo.*--run"):
            runs.newest_run(root)


def test_the_folder_of_a_run_is_directly_in_the_root(tmp_path: Path):
    assert runs.run_folder(tmp_path, "pretrain-2") == tmp_path / "pretrain-2"
    for name in ("", ".", "..", "a/b", "/tmp/x", "../x", ".hidden", "a/", "./a"):
        with pytest.raises(InputError, match="must be a plain folder name"):
            runs.run_folder(tmp_path, name)


def test_a_folder_that_cannot_be_listed_is_not_a_run_without_checkpoints(tmp_path):
    """A run whose disk is away for a moment would start again."""
    assert runs.checkpoint_steps(tmp_path) == []
    (tmp_path / "checkpoints").symlink_to("checkpoints")
    with pytest.raises(OSError, match="symbolic links"):
        runs.checkpoint_steps(tmp_path)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/12"])
def test_a_link_to_a_disk_that_is_not_mounted_is_not_a_run_without_checkpoints(
    tmp_path: Path, name: str
):
    """The run would start again, or lose the steps since the checkpoint before."""
    real = tmp_path / "disk"
    (tmp_path / "checkpoints" / "12" / "meta").mkdir(parents=True)
    (tmp_path / name).rename(real)
    (tmp_path / name).symlink_to(real)
    assert runs.checkpoint_steps(tmp_path) == [12]
    real.rename(tmp_path / "unmounted")
    with pytest.raises(OSError, match=rf"not mounted\?\): '.*/{name}'"):
        runs.checkpoint_steps(tmp_path)


def test_the_lock_names_its_process_only_while_it_is_held(tmp_path):
    with runs.lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
    assert (tmp_path / "lock").read_text() == ""
