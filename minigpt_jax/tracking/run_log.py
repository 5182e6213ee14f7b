"""What a run says about itself while it runs: JSON lines for programs, TensorBoard for curves, one line for people."""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import jax

from minigpt_jax.errors import RunError
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.runtime.files import read_jsonl

TOO_MANY_SKIPPED = 5  # updates in a row that were not finite: the run has diverged

# Dense bf16 peak, FLOP/s without sparsity, from the vendors' data sheets; matched as words of JAX's device_kind.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of one device in bf16 (V100 and T4: fp16), None where the table has no entry (a CPU)."""
    return next(
        (peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_kind)), None
    )


class StepLog:
    """A `.jsonl` file that holds each step at most once, in order, after any number of crashes.

    Opening it for a run that goes on at `first_step` drops what an interrupted process wrote from there on.
    """

    def __init__(self, path: Path, first_step: int):
        kept = [record for record in read_jsonl(path) if record["step"] < first_step]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        temporary.replace(path)
        self._file = path.open("a")

    def write(self, record: dict) -> None:
        """Append one record; it has a "step" larger than all before it."""
        self._file.write(json.dumps(record) + "\n")
        failpoint("before_flush", record["step"])
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RunLog:
    """The diary of a run: a record a step and one an evaluation, each to its file, to TensorBoard and to the console.

    The console has one line that renews itself on a terminal, and a plain line every `every` steps elsewhere. Only the
    `main_process` process writes; the others keep count. `start` is the first step to come: what an interrupted process wrote
    from there on is dropped. Raises RunError when the disk is full, and where the run has diverged.
    """

    def __init__(
        self,
        run: Path,
        *,
        start: int,
        horizon: int,
        every: int,
        tensorboard: bool,
        main_process: bool,
        tokens_per_step: int,
        flops_per_step: float,
    ):
        self.run, self.horizon, self.every, self.main_process = run, horizon, every, main_process
        self.tokens_per_step, self.flops_per_step = tokens_per_step, flops_per_step
        self._steps = self._evaluations = self._board = None
        self._wants_board, self._begin = tensorboard and main_process, start
        with self._on_disk():
            before = [
                record for record in read_jsonl(run / "metrics.jsonl") if record["step"] < start
            ]
            self._skipped_in_a_row = len(
                list(takewhile(lambda record: record["skipped"], reversed(before)))
            )
            if main_process:
                self._steps = StepLog(run / "metrics.jsonl", start)
                # The evaluation "at step n" follows update n, so that of the step we go on from is already there.
                self._evaluations = StepLog(run / "evaluations.jsonl", start + 1 if start else 0)
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = peak * jax.device_count() if peak else None
        self._live, self._line_open, self._shown = sys.stdout.isatty(), False, 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Begin to measure a step: call it after a pause that is none of training."""
        self._began, self._waited = time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what happens inside as time that the devices may be waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def step(self, step: int, batch: str, values: dict[str, jax.Array]) -> None:
        """Record 0-based `step` from the step's metrics (waits for them). Raises RunError when the run has diverged."""
        with self._on_disk():
            self._open_board()  # while the devices are at their first step
        numbers = {name: float(value) for name, value in jax.device_get(values).items()}
        seconds = max(time.monotonic() - self._began, 1e-9)
        record = {
            "step": step,
            **numbers,
            "batch": batch,
            "seconds": seconds,
            "data_wait": min(self._waited / seconds, 1.0),
        }
        record["tokens_per_s"] = self.tokens_per_step / seconds
        record["mfu"] = self.flops_per_step / seconds / self._peak if self._peak else None
        self.start_clock()
        if self._steps:
            with self._on_disk():
                self._steps.write(record)
                self._show(record)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if record["skipped"] else 0
        if self._skipped_in_a_row == TOO_MANY_SKIPPED:
            raise RunError(
                f"step {step}: loss or gradient was not finite {TOO_MANY_SKIPPED} times in a row; these updates were skipped and "
                f"the last checkpoint is good. To see how it came: python -m minigpt_jax.report {self.run}. To go on: a lower schedule.peak "
                "or a longer schedule.warmup, with --config.accept_changes=True"
            )

    def evaluation(self, record: dict) -> None:
        """Record an evaluation: "step" (updates done), losses, bits per byte, samples with prompt and text, "hellaswag" (accuracy) if asked."""
        fitting = f", HellaSwag {record['hellaswag']:.1%}" if "hellaswag" in record else ""
        self.say(
            f"after {record['step']} steps: validation loss {record['validation_loss']:.4f} ({record['bits_per_byte']:.3f} bits per byte), "
            f"on rows of the training set {record['train_loss']:.4f}{fitting}"
        )
        for sample in record["samples"]:
            self.say(f"    {sample['prompt']!r} -> {sample['text']!r}")
        if self._evaluations:
            with self._on_disk():
                self._evaluations.write(record)
                self._points(
                    record["step"],
                    {f"evaluation/{k}": v for k, v in record.items() if isinstance(v, float)},
                )

    def say(self, text: str) -> None:
        """A lasting line on the console."""
        if self.main_process:
            print("\n" * self._line_open + text, flush=True)
            self._line_open = False

    def close(self) -> None:
        """Close the files."""
        for writer in (self._steps, self._evaluations, self._board):
            if writer:
                writer.close()

    def _show(self, record: dict) -> None:
        done = record["step"] + 1
        due = done % self.every == 0 or done in (1, self.horizon)
        if due:
            self._points(
                record["step"],
                {f"training/{k}": v for k, v in record.items() if isinstance(v, float)},
            )
        if not (due or (self._live and time.monotonic() - self._shown > 0.2)):
            return
        line = self._line(record)
        print(f"\r\x1b[K{line}" if self._live else line, end="" if self._live else "\n", flush=True)
        self._shown, self._line_open = time.monotonic(), self._live

    def _line(self, r: dict) -> str:
        columns = (
            f"step {r['step']:>{len(str(self.horizon))}}/{self.horizon}",
            f"loss {r['loss']:.4f}",
            f"lr {r['learning_rate']:.2e}",
            f"grad {r['grad_norm']:.2f}",
            f"{r['tokens_per_s']:,.0f} tokens/s",
            f"MFU {'n/a' if r['mfu'] is None else format(r['mfu'], '.1%')}",
            f"data wait {r['data_wait']:.1%}",
            f"ETA {duration((self.horizon - r['step'] - 1) * r['seconds'])}",
        )
        return "  ".join(columns) + "  skipped: not finite" * bool(r["skipped"])

    def _points(self, step: int, values: dict[str, float]) -> None:
        self._open_board()
        if self._board:
            self._board.write(step, values)

    def _open_board(self) -> None:
        """Not before it is needed: tensorboardX loads torch where there is one, which takes seconds."""
        if self._wants_board and not self._board:
            from minigpt_jax.tracking.tensorboard import TensorBoardWriter

            self._board = TensorBoardWriter(self.run / "tensorboard", self._begin + 1)

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # the console, not the disk
            raise
        except OSError as error:
            raise RunError(
                f"{self.run}: what it says about itself cannot be written ({error.strerror}). Free space, then run the same command again"
            ) from error


def duration(seconds: float) -> str:
    """Seconds in words: 45s, 12m05s, 7h31m, 3d04h."""
    seconds = int(seconds)
    for size, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if seconds >= size:
            return f"{seconds // size}{names[0]}{seconds % size // small:02d}{names[1]}"
    return f"{seconds}s"
