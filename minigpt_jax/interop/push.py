"""Push the newest weights of a run to the hub while it trains, without the trainer waiting for it.

    python -m minigpt_jax.interop.push RUN STEP OWNER/NAME

is what the trainer starts after a save: a process of its own, which reads the checkpoint from the
disk, verifies it and uploads it. So a hub that is slow or never answers takes no time from the
steps, and the process can be ended at any time. It also ends when the trainer does.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from minigpt_jax import load_run
from minigpt_jax.errors import RunError
from minigpt_jax.interop.hub import is_offline, upload
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import shell_word

# Seconds between the attempts to upload, one more than these.
PAUSES = (1, 5, 25)
# Seconds after which a push has failed. For the next one, which would otherwise wait forever.
LONGEST_PUSH = 3600
# Seconds that a finished run waits for its last push: less than JAX lets the other processes of
# the run wait for this one, 300.
LAST_PUSH = 240
# The same for a run that was told to stop. Schedulers end such a process after some 30 seconds or
# more, and a run that continues pushes its next save.
LAST_PUSH_IF_STOPPED = 5


class Push:
    """Uploads checkpoints of a run to `repository` in the background, only the newest at a time.

    Does nothing if `repository` is "". `say` prints a line. What goes wrong is said once, and never
    raised: the run goes on.
    """

    def __init__(self, run: Path, repository: str, say: Callable[[str], None]):
        self._run = run
        self._repository = repository
        self._say = say
        self._process: subprocess.Popen | None = None
        self._started = 0.0
        # The newest step that came while a push went on.
        self._waiting: int | None = None
        self._problem = ""
        if repository and is_offline():
            say(f"note: HF_HUB_OFFLINE is set, so nothing is pushed to {repository}")
            self._repository = ""

    def start(self, step: int) -> None:
        """Push the checkpoint of `step` as soon as it is on disk. Returns at once.

        While the push before it goes on, nothing is started; the newest such step is pushed by
        `finish`, unless another one is pushed before.
        """
        if not self._repository:
            return
        self._waiting = step
        if self._process and self._process.poll() is None:
            if time.monotonic() < self._started + LONGEST_PUSH:
                return
            self._give_up(f"no end after {LONGEST_PUSH:,} s")
        self._report()
        self._begin()

    def finish(self, stopped: bool, stop_requested: Callable[[], bool]) -> None:
        """Wait for the last push, a limited time.

        `stopped`: the run was told to stop. `stop_requested`: whether it is told now.
        """
        seconds = LAST_PUSH_IF_STOPPED if stopped else LAST_PUSH
        deadline = time.monotonic() + seconds
        if self._process or self._waiting is not None:
            self._say(
                f"waiting for the last push to {self._repository}, up to {seconds} s "
                "(Ctrl-C ends it)"
            )
        while self._process or self._waiting is not None:
            if not self._process:
                self._begin()
            elif self._process.poll() is not None:
                self._report()
            elif time.monotonic() > deadline or (stop_requested() and not stopped):
                self._waiting = None
                if stopped:
                    self._say("the push was not finished; the run's next save is pushed")
                    self._end()
                else:
                    self._give_up("it was ended")
            else:
                time.sleep(0.1)
        if self._problem and not stopped:
            self._say(
                f"{self._repository} does not have the newest weights. To push them: "
                f"minigpt export hf --run {shell_word(self._run)} "
                f"--out exported --push {shell_word(self._repository)}"
            )

    def _begin(self) -> None:
        """Start a process for the step that waits."""
        arguments = [str(self._run), str(self._waiting), self._repository]
        self._waiting = None
        root = Path(__file__).parents[2]
        environment = {
            # The devices are the trainer's.
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "minigpt_jax.interop.push", *arguments],
                env=os.environ | environment,
                # Closed when the trainer ends, however it ends: see _end_with_trainer.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal is for the trainer alone.
                start_new_session=True,
            )
            self._started = time.monotonic()
        except OSError as error:
            self._warn(str(error))

    def _report(self) -> None:
        """Say how the process ended, if there was one."""
        if not self._process:
            return
        output = self._process.communicate()[0].decode(errors="replace").strip()
        last = output.splitlines()[-1] if output else f"exit code {self._process.returncode}"
        if self._process.returncode:
            self._warn(last.removeprefix("error: ").removeprefix("failed: "))
        else:
            self._problem = ""
            self._say(last)
        self._process = None

    def _give_up(self, reason: str) -> None:
        self._end()
        self._warn(f"{self._repository}: {reason}")

    def _end(self) -> None:
        assert self._process
        self._process.kill()
        self._process.communicate()
        self._process = None
        shutil.rmtree(_folder(self._run), ignore_errors=True)

    def _warn(self, problem: str) -> None:
        if problem != self._problem:
            self._say(f"warning: a push failed ({problem})")
        self._problem = problem


def push_newest(run: Path, step: int, repository: str) -> str:
    """Upload the newest checkpoint that verifies, once that of `step` is on disk.

    Returns what was done. Raises InputError or RunError.
    """
    # The trainer writes a checkpoint while the next steps run.
    while checkpoint_steps(run)[-1:] < [step]:
        time.sleep(0.1)
    # Imported here, because the trainer needs nothing of it.
    from minigpt_jax.interop.hugging_face import write_folder

    shutil.rmtree(_folder(run), ignore_errors=True)
    try:
        loaded = load_run(run)
        folder = _folder(run) / "model"
        write_folder(folder, loaded, run.resolve().name)
        message = f"Step {loaded.meta['step']} of {run.resolve().name}"
        address = upload_patiently(folder, repository, message)
    finally:
        shutil.rmtree(_folder(run), ignore_errors=True)
    return f"pushed step {loaded.meta['step']}: {address}"


def upload_patiently(folder: Path, repository: str, message: str) -> str:
    """`upload` to a private repository, again after each of PAUSES where that may succeed."""
    for pause in PAUSES:
        try:
            return upload(folder, repository, message, private=True)
        except RunError:
            time.sleep(pause)
    return upload(folder, repository, message, private=True)


def _folder(run: Path) -> Path:
    """Where the files to upload are written: on the disk of the run, which has room for it."""
    return run / "push"


def _end_with_trainer() -> None:
    """End this process when standard input is closed: the trainer has the other end."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    """Push what the arguments say, and say what was pushed."""
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    # Where the trainer computes on the same processors, it comes first.
    os.nice(10)
    run, step, repository = sys.argv[1:]
    print(push_newest(Path(run), int(step), repository))


if __name__ == "__main__":
    exit_cleanly(main)
