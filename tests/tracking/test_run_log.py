"""The log of a run holds each step once, in order, after any crash, and its numbers are correct."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from minigpt_jax.errors import RunError
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.tracking.run_log import TOO_MANY_SKIPPED, RunLog, StepLog
from tests.harness import ROOT

TOKENS_PER_STEP = 50
PROCESS_TIMEOUT = 120
# Appends records until it is killed, and prints each step that it has appended.
ENDLESS_WRITER = """
import itertools, sys
from pathlib import Path
from minigpt_jax.tracking.run_log import StepLog
log = StepLog(Path(sys.argv[1]), 0)
for step in itertools.count():
    log.write({"step": step, "text": "x" * 5000})
    print(step, flush=True)
"""


def steps_in(path: Path) -> list[int]:
    return [record["step"] for record in read_jsonl(path)]


def run_log(run: Path, **changes) -> RunLog:
    settings = {
        "start": 0,
        "horizon": 100,
        "every": 1,
        "tensorboard": False,
        "tracker": "",
        "main_process": True,
        "tokens_per_step": TOKENS_PER_STEP,
        "flops_per_step": 1e6,
    }
    return RunLog(run, **(settings | changes))


def metrics(loss: float = 2.5, skipped: int = 0) -> dict:
    """What a training step returns."""
    numbers = {
        "loss": loss,
        "weight": TOKENS_PER_STEP,
        "grad_norm": 1.25,
        "learning_rate": 3e-4,
        "skipped": skipped,
    }
    return {name: jnp.float32(number) for name, number in numbers.items()}


def do_step(log: RunLog, step: int, batch: str, values: dict) -> None:
    """Do a step that returns these metrics, and record it."""
    log.clock.timed(lambda: (None, values))()
    log.step(step, batch, values)


# ---- the file


def test_after_a_crash_at_any_byte_each_step_is_there_once_and_in_order(tmp_path: Path):
    """The log ends after any of its bytes, and continues from any step with a checkpoint."""
    path = tmp_path / "metrics.jsonl"
    records = [{"step": step, "loss": 1 / (step + 3)} for step in range(4)]
    log = StepLog(path, 0)
    for record in records:
        log.write(record)
    log.close()
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        complete = whole[:end].count(b"\n")
        for first in range(complete + 1):
            path.write_bytes(whole[:end])
            continued = StepLog(path, first)
            assert steps_in(path) == list(range(first))
            for record in records[first:]:
                continued.write(record)
                # Others can read it as soon as it is written.
                assert steps_in(path) == list(range(record["step"] + 1))
            continued.close()
            assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_ignores_a_half_written_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_jsonl(path) == []
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2')
    assert steps_in(path) == [0, 1]
    path.write_text('{"step": 0}')
    assert steps_in(path) == []


def test_numbers_are_read_back_bit_for_bit(tmp_path: Path):
    numbers = [0.1, 1 / 3, 1e-300, float("inf"), float(jnp.float32(0.1)), 123456789.123456789]
    log = StepLog(tmp_path / "log.jsonl", 0)
    for step, number in enumerate(numbers):
        log.write({"step": step, "loss": number})
    log.close()
    found = [record["loss"].hex() for record in read_jsonl(tmp_path / "log.jsonl")]
    assert found == [number.hex() for number in numbers]


def test_what_was_written_before_a_kill_is_there_and_the_rest_follows(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    writer = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_WRITER, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout
    for _ in range(50):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    printed = 50 + len(writer.communicate(timeout=PROCESS_TIMEOUT)[0].splitlines())
    # The last line that it printed may be half of a number.
    assert len(steps_in(path)) >= printed - 1
    log = StepLog(path, 40)
    for step in range(40, 45):
        log.write({"step": step})
    log.close()
    assert steps_in(path) == list(range(45))


def test_records_that_cannot_be_written_are_no_full_disk(tmp_path: Path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"Is a directory.*metrics\.jsonl") as refused:
        run_log(tmp_path)
    assert "space" not in str(refused.value)


def test_every_line_is_json_even_if_the_loss_is_not_a_number(tmp_path: Path):
    log = run_log(tmp_path)
    do_step(log, 0, "", metrics(loss=float("nan"), skipped=1))
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["skipped"] == 1.0 and record["loss"] != record["loss"]


# ---- the log of a run


def test_a_resumed_log_drops_the_steps_to_come_and_keeps_the_evaluation_at_its_start(
    tmp_path: Path,
):
    evaluation = {"train_loss": 1.0, "validation_loss": 1.0, "bits_per_byte": 1.0, "samples": []}
    first = run_log(tmp_path)
    first.evaluation({"step": 0} | evaluation)
    for step in range(6):
        do_step(first, step, "hash", metrics())
        if step in (2, 5):
            first.evaluation({"step": step + 1} | evaluation)
    first.close()
    run_log(tmp_path, start=3).close()
    assert steps_in(tmp_path / "metrics.jsonl") == [0, 1, 2]
    assert steps_in(tmp_path / "evaluations.jsonl") == [0, 3]
    run_log(tmp_path).close()
    assert steps_in(tmp_path / "metrics.jsonl") == steps_in(tmp_path / "evaluations.jsonl") == []


def test_a_record_holds_what_the_step_measured(tmp_path: Path, capsys):
    log = run_log(tmp_path)
    for step in range(2):
        for kind in ("data", "save", "evaluation"):
            with log.clock.pause(kind):
                time.sleep(0.1)
        do_step(log, step, "abcd", metrics(loss=0.1))
    log.close()
    first, second = read_jsonl(tmp_path / "metrics.jsonl")
    assert second["loss"] == float(jnp.float32(0.1)) and second["batch"] == "abcd"
    assert second["learning_rate"] == pytest.approx(3e-4)
    assert second["tokens"] == TOKENS_PER_STEP
    assert second["tokens_per_s"] == pytest.approx(TOKENS_PER_STEP / second["seconds"])
    for wait in ("data_seconds", "save_seconds", "evaluation_seconds"):
        # The pauses themselves, and what the machine adds to a sleep.
        assert 0.1 <= first[wait] < 1 and 0.1 <= second[wait] < 1
    of_training = second["seconds"] + second["data_seconds"]
    assert second["data_wait"] == pytest.approx(second["data_seconds"] / of_training)
    # The first step compiles, and a CPU is not in the table of peak rates.
    assert first["tokens_per_s"] is None and first["mfu"] is second["mfu"] is None
    lines = capsys.readouterr().out.splitlines()
    for part in (
        "step   0/100",
        "loss 0.1000",
        "lr 3.00e-04",
        "grad 1.25",
        "n/a tokens/s",
        "ETA n/a",
    ):
        assert part in lines[0]
    for part in (
        f"{second['tokens_per_s']:,.0f} tokens/s",
        "MFU n/a",
        "data wait",
        "  save 0.",
        "  evaluation 0.",
    ):
        assert part in lines[1]
    # 98 steps, each with 0.3 s of waits.
    assert re.search(r"ETA (29|[3-9]\d)s|ETA [1-9]m", lines[1])
    # Without a terminal the line is not rewritten.
    assert len(lines) == 2 and "\r" not in lines[0]


def test_lines_appear_at_the_first_the_last_and_every_nth_step(tmp_path: Path, capsys):
    log = run_log(tmp_path, horizon=10, every=4)
    for step in range(10):
        do_step(log, step, "", metrics())
    log.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["0/10", "3/10", "7/10", "9/10"]
    # The file has all of them.
    assert steps_in(tmp_path / "metrics.jsonl") == list(range(10))


def test_on_a_terminal_the_line_is_rewritten_until_a_message_follows(
    tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    log = run_log(tmp_path)
    do_step(log, 0, "", metrics())
    do_step(log, 1, "", metrics())
    log.say("done")
    log.say("and more")
    log.close()
    text = capsys.readouterr().out
    assert text.count("\r\x1b[K") == 2
    assert text.count("\n") == 3 and text.endswith("\ndone\nand more\n")


def test_only_the_main_process_writes(tmp_path: Path, capsys):
    log = run_log(tmp_path, main_process=False, tensorboard=True, tracker="trackio")
    do_step(log, 0, "", metrics())
    log.say("hello")
    log.close()
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_the_end_of_a_diverged_run_names_its_newest_checkpoint(tmp_path: Path):
    for step in (3, 6):
        (tmp_path / "checkpoints" / str(step) / "params").mkdir(parents=True)
    log = run_log(tmp_path)
    with pytest.raises(RunError, match="the checkpoint of step 6 is good"):
        for step in range(6, 11):
            do_step(log, step, "", metrics(loss=float("nan"), skipped=1))
    log.close()


@pytest.mark.parametrize("main_process", [True, False])
def test_five_skipped_updates_in_a_row_end_the_run_and_four_do_not(
    tmp_path: Path, main_process: bool
):
    assert TOO_MANY_SKIPPED == 5
    not_finite = metrics(loss=float("nan"), skipped=1)
    log = run_log(tmp_path, main_process=main_process)
    for step in range(10):
        do_step(log, step, "", not_finite if step % 5 else metrics())
    with pytest.raises(RunError, match=r"step 10: .* 5 times in a row") as diverged:
        do_step(log, 10, "", not_finite)
    log.close()
    # There is none.
    assert "checkpoint" not in str(diverged.value)
    if main_process:
        # These steps are recorded too.
        assert steps_in(tmp_path / "metrics.jsonl") == list(range(11))


def test_a_resumed_run_counts_the_skipped_updates_before_it(tmp_path: Path):
    not_finite = metrics(loss=float("nan"), skipped=1)
    log = run_log(tmp_path)
    for step in range(4):
        do_step(log, step, "", not_finite)
    log.close()
    resumed = run_log(tmp_path, start=4)
    with pytest.raises(RunError, match=r"step 4: .* 5 times in a row"):
        do_step(resumed, 4, "", not_finite)
    resumed.close()


@pytest.mark.parametrize("wanted", [True, False])
def test_tensorboard_is_written_if_it_is_wanted(tmp_path: Path, wanted: bool):
    log = run_log(tmp_path, tensorboard=wanted)
    do_step(log, 0, "", metrics())
    log.close()
    events = list(tmp_path.glob("tensorboard/events.*"))
    assert bool(events) == wanted
    assert all(b"training/loss" in path.read_bytes() for path in events)
