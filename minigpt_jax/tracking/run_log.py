"""Record a run: JSON lines for programs, curves for TensorBoard or a tracker, the console."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import jax

from minigpt_jax.errors import RunError, os_error_text
from minigpt_jax.hardware import peak_flops
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.runtime.files import atomic_write, read_jsonl, shell_word
from minigpt_jax.tracking.console import Console
from minigpt_jax.tracking.rates import (
    StepTime,
    Window,
    data_share,
    is_shown,
    seconds_left,
    tokens_per_second,
)
from minigpt_jax.tracking.records import losses_by_folder
from minigpt_jax.tracking.step_clock import StepClock
from minigpt_jax.tracking.tracker import Tracker

# Updates in a row that were not finite, after which the run has diverged.
TOO_MANY_SKIPPED = 5


class StepLog:
    """A `.jsonl` file that holds each step at most once, in order, after any number of crashes.

    Opening it for a run that continues at `first_step` drops what an interrupted process wrote
    from there on.
    """

    def __init__(self, path: Path, first_step: int):
        kept = [record for record in read_jsonl(path) if record["step"] < first_step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        atomic_write(path, lambda file: file.write(text.encode()))
        self._file = path.open("a")

    def write(self, record: dict) -> None:
        """Append one record, whose "step" is larger than all before it."""
        self._file.write(json.dumps(record) + "\n")
        failpoint("before_flush", record["step"])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RunLog:
    """Writes a record per step and per evaluation to its file, to TensorBoard and to the console.

    A `tracker`, "trackio" or "wandb", gets its curves from these files.
    The console gets a line every `every` steps; on a terminal one line is rewritten more often. The
    rates of a line are those of the steps since the line before. `clock` measures the steps.
    Only the main process writes; the others count the skipped updates. `start` is the first step to
    come: what an interrupted process wrote from there on is dropped. Raises RunError if the disk is
    full.
    """

    def __init__(
        self,
        run: Path,
        *,
        start: int,
        horizon: int,
        every: int,
        tensorboard: bool,
        tracker: str,
        main_process: bool,
        tokens_per_step: int,
        flops_per_step: float,
    ):
        self.run = run
        self.horizon = horizon
        self.every = every
        self.main_process = main_process
        self.tokens_per_step = tokens_per_step
        peak = peak_flops(jax.devices()[0].device_kind)
        # Tokens per second at the peak FLOP/s of all devices.
        self._peak_rate = None
        if peak:
            self._peak_rate = peak * jax.device_count() / flops_per_step * tokens_per_step
        self.clock = StepClock()
        # Since the last line that stays on the console, and since the first step.
        self._window = self._whole = Window()
        self._start = self._steps_done = start
        self._console = Console()
        self._steps = None
        self._evaluations = None
        self._wants_tensorboard = tensorboard and main_process
        self._tensorboard = None
        self._wanted_tracker = tracker if main_process else ""
        self._tracker = None
        with self._on_disk():
            records = read_jsonl(run / "metrics.jsonl")
            self._skipped_in_a_row = count_skipped([r for r in records if r["step"] < start])
            if main_process:
                self._steps = StepLog(run / "metrics.jsonl", start)
                # The evaluation "at step n" follows update n, so that of step `start` is done.
                self._evaluations = StepLog(run / "evaluations.jsonl", start + 1 if start else 0)

    def step(self, step: int, batch: str, values: dict[str, jax.Array]) -> None:
        """Record 0-based `step` from the metrics of the step (waits for them).

        `clock` must have timed it. `batch`: hash of its rows. Raises RunError if the run has
        diverged.
        """
        # While the devices compute their first step.
        with self._on_disk():
            self._open_tensorboard()
        self._start_tracker()
        numbers = {name: float(value) for name, value in jax.device_get(values).items()}
        self._steps_done = step + 1
        time = self.clock.next()
        record = {
            "step": step,
            **numbers,
            "batch": batch,
            "tokens": self.tokens_per_step,
            "seconds": time.seconds,
            "data_seconds": time.data_seconds,
            "save_seconds": time.save_seconds,
            "evaluation_seconds": time.evaluation_seconds,
            "data_wait": data_share(time.seconds, time.data_seconds),
            **self._rates(int(time.measured), time.seconds),
        }
        if self._steps:
            due = is_shown(step + 1, self.every, self.horizon)
            shown = self._of_window(record, time)
            with self._on_disk():
                self._steps.write(record)
                if due:
                    self._write_points("training", shown)
            remaining = seconds_left(self.horizon - step - 1, self._window, self._whole)
            self._console.progress(shown, self.horizon, remaining, due=due)
            if due:
                self._window = Window()
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if record["skipped"] else 0
        if self._skipped_in_a_row == TOO_MANY_SKIPPED:
            saved = checkpoint_steps(self.run)
            good = f"; the checkpoint of step {saved[-1]} is good" if saved else ""
            raise RunError(
                f"step {step}: loss or gradient was not finite {TOO_MANY_SKIPPED} times in a row; "
                f"these updates were skipped{good}. To see the curves: "
                f"python -m minigpt_jax.report {shell_word(self.run)}. To continue: a lower "
                "schedule.peak or a longer schedule.warmup, with --config.accept_changes=True"
            )

    def evaluation(self, record: dict) -> None:
        """Record an evaluation.

        `record`: "step" (updates done), "train_loss", "validation_loss", "bits_per_byte", "samples"
        with "prompt" and "text", "hellaswag" (accuracy) where it was measured, and of a mixture
        "validation_loss/FOLDER".
        """
        hellaswag = f", HellaSwag {record['hellaswag']:.1%}" if "hellaswag" in record else ""
        self.say(
            f"after {record['step']} steps: validation loss {record['validation_loss']:.4f} "
            f"({record['bits_per_byte']:.3f} bits per byte), "
            f"on rows of the training set {record['train_loss']:.4f}{hellaswag}"
        )
        for folder, loss in losses_by_folder(record).items():
            self.say(f"    validation loss {loss:.4f} of {folder}")
        for sample in record["samples"]:
            self.say(f"    {sample['prompt']!r} -> {sample['text']!r}")
        if self._evaluations:
            self._start_tracker()
            with self._on_disk():
                self._evaluations.write(record)
                self._write_points("evaluation", record)

    def say(self, text: str) -> None:
        """Print a line that stays on the console, in the main process."""
        if self.main_process:
            self._console.message(text)

    def close(self) -> None:
        """Close the files and the clock."""
        self.clock.close()
        for writer in (self._steps, self._evaluations, self._tensorboard):
            if writer:
                writer.close()
        if self._tracker:
            # A stopped run must end in the time that its scheduler gives.
            self._tracker.close(wait=self._steps_done == self.horizon)

    def _of_window(self, record: dict, time: StepTime) -> dict:
        """`record` with the rates and waits since the line before, which now include this step."""
        self._window = self._window.add(time)
        # The first step is compiled, and may follow an evaluation: no other step is like it.
        if time.measured or self._whole.steps:
            self._whole = self._whole.add(time)
        shown = record | {
            "save_seconds": self._window.save_seconds,
            "evaluation_seconds": self._window.evaluation_seconds,
            **self._rates(self._window.steps, self._window.seconds),
        }
        if self._window.steps:
            shown["data_wait"] = data_share(self._window.seconds, self._window.data_seconds)
        return shown

    def _rates(self, steps: int, seconds: float) -> dict[str, float | None]:
        """Tokens per second, and the share of the peak where that is known."""
        rate = tokens_per_second(steps * self.tokens_per_step, seconds, self._peak_rate)
        mfu = rate / self._peak_rate if rate and self._peak_rate else None
        return {"tokens_per_s": rate, "mfu": mfu}

    def _write_points(self, group: str, record: dict) -> None:
        """A point for each number of the record, if TensorBoard is wanted."""
        self._open_tensorboard()
        if self._tensorboard:
            values = {f"{group}/{k}": v for k, v in record.items() if isinstance(v, float)}
            self._tensorboard.write(record["step"], values)

    def _open_tensorboard(self) -> None:
        """Not before it is needed: tensorboardX imports torch if it is installed, for seconds."""
        if self._wants_tensorboard and not self._tensorboard:
            from minigpt_jax.tracking.tensorboard import TensorBoardWriter

            self._tensorboard = TensorBoardWriter(self.run / "tensorboard", self._start + 1)

    def _start_tracker(self) -> None:
        """Not before train.py has written the config of this start."""
        if self._wanted_tracker and not self._tracker:
            self._tracker = Tracker(
                self.run,
                self._wanted_tracker,
                start=self._start,
                every=self.every,
                horizon=self.horizon,
            )

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.run}: the records of the run cannot be written "
                f"({os_error_text(error)}). Correct this, then run the same command again"
            ) from error


def count_skipped(records: list[dict]) -> int:
    """How many of the newest records in a row are skipped updates."""
    return len(list(takewhile(lambda record: record.get("skipped"), reversed(records))))
