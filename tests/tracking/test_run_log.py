"""The record of a run holds each step exactly once, in order, after any crash; and the numbers people read are right."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from minigpt_jax.errors import RunError
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.tracking.run_log import (
    PEAK_FLOPS,
    TOO_MANY_SKIPPED,
    RunLog,
    StepLog,
    duration,
    peak_flops,
)


def steps_in(path: Path) -> list[int]:
    return [record["step"] for record in read_jsonl(path)]


def journal(run: Path, **how) -> RunLog:
    settings = {
        "start": 0,
        "horizon": 100,
        "every": 1,
        "tensorboard": False,
        "main_process": True,
        "tokens_per_step": 50,
        "flops_per_step": 1e6,
    }
    return RunLog(run, **(settings | how))


def values(loss: float = 2.5, skipped: int = 0) -> dict:
    return {
        name: jnp.float32(v)
        for name, v in {
            "loss": loss,
            "weight": 50,
            "grad_norm": 1.25,
            "learning_rate": 3e-4,
            "skipped": skipped,
        }.items()
    }


# ---- the file


def test_after_a_crash_at_any_byte_each_step_stands_once_and_in_order(tmp_path: Path):
    """The log cut after each of its bytes, as a kill may leave it, and continued from each step that a checkpoint may have."""
    path = tmp_path / "metrics.jsonl"
    log = StepLog(path, 0)
    for step in range(6):
        log.write({"step": step, "loss": 1 / (step + 3)})
    log.close()
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        complete = whole[:cut].count(b"\n")
        for first in range(complete + 1):
            path.write_bytes(whole[:cut])
            again = StepLog(path, first)
            assert steps_in(path) == list(range(first))
            for step in range(first, 6):
                again.write({"step": step, "loss": 1 / (step + 3)})
                assert steps_in(path) == list(range(step + 1))  # written means readable by others
            again.close()
            assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_passes_over_a_half_written_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_jsonl(path) == []
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2')
    assert steps_in(path) == [0, 1]
    path.write_text('{"step": 0}')
    assert steps_in(path) == []


def test_numbers_survive_the_file_bit_for_bit(tmp_path: Path):
    numbers = [0.1, 1 / 3, 1e-300, float("inf"), float(jnp.float32(0.1)), 123456789.123456789]
    log = StepLog(tmp_path / "log.jsonl", 0)
    for step, number in enumerate(numbers):
        log.write({"step": step, "loss": number})
    log.close()
    assert [r["loss"].hex() for r in read_jsonl(tmp_path / "log.jsonl")] == [
        n.hex() for n in numbers
    ]


def test_what_was_written_before_a_kill_is_there_and_the_rest_follows(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import itertools, sys; from pathlib import Path; from minigpt_jax.tracking.run_log import StepLog\nlog = StepLog(Path(sys.argv[1]), 0)\n"
        "for step in itertools.count(): log.write({'step': step, 'text': 'x' * 5000}); print(step, flush=True)"
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
    }
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout
    for _ in range(50):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    told = 50 + len(writer.communicate(timeout=60)[0].splitlines())
    on_record = len(steps_in(path))
    assert on_record >= told - 1  # the last line it printed may be half of one
    log = StepLog(path, 40)
    for step in range(40, 45):
        log.write({"step": step})
    log.close()
    assert steps_in(path) == list(range(45))


# ---- the journal


def test_a_resumed_journal_drops_the_steps_to_come_and_keeps_the_evaluation_it_begins_after(
    tmp_path: Path,
):
    evaluation = {"train_loss": 1.0, "validation_loss": 1.0, "bits_per_byte": 1.0, "samples": []}
    first = journal(tmp_path)
    first.evaluation({"step": 0} | evaluation)
    for step in range(6):
        first.step(step, "hash", values())
        if step in (2, 5):
            first.evaluation({"step": step + 1} | evaluation)
    first.close()
    second = journal(tmp_path, start=3)
    assert steps_in(tmp_path / "metrics.jsonl") == [0, 1, 2]
    assert steps_in(tmp_path / "evaluations.jsonl") == [0, 3]
    second.close()
    journal(tmp_path).close()
    assert steps_in(tmp_path / "metrics.jsonl") == steps_in(tmp_path / "evaluations.jsonl") == []


def test_a_record_holds_what_the_step_measured(tmp_path: Path, capsys):
    diary = journal(tmp_path)
    with diary.waiting():
        pass
    diary.step(0, "abcd", values(loss=0.1))
    diary.close()
    (record,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert (
        record["loss"] == float(jnp.float32(0.1))
        and record["batch"] == "abcd"
        and record["learning_rate"] == pytest.approx(3e-4)
    )
    assert (
        record["tokens_per_s"] == pytest.approx(50 / record["seconds"])
        and 0 <= record["data_wait"] <= 1
    )
    assert record["mfu"] is None  # a CPU has no entry in the table of peak rates
    line = capsys.readouterr().out
    for part in (
        "step   0/100",
        "loss 0.1000",
        "lr 3.00e-04",
        "grad 1.25",
        "tokens/s",
        "MFU n/a",
        "data wait",
        "ETA",
    ):
        assert part in line
    assert line.count("\n") == 1 and "\r" not in line  # no terminal: plain lines


def test_lines_appear_at_the_first_the_last_and_every_nth_step(tmp_path: Path, capsys):
    diary = journal(tmp_path, horizon=10, every=4)
    for step in range(10):
        diary.step(step, "", values())
    diary.close()
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        "0/10",
        "3/10",
        "7/10",
        "9/10",
    ]
    assert steps_in(tmp_path / "metrics.jsonl") == list(range(10))  # the file has them all


def test_only_the_main_process_writes(tmp_path: Path, capsys):
    diary = journal(tmp_path, main_process=False, tensorboard=True)
    diary.step(0, "", values())
    diary.say("hello")
    diary.close()
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("main_process", [True, False])
def test_five_skipped_updates_in_a_row_end_the_run_and_four_do_not(
    tmp_path: Path, main_process: bool
):
    assert TOO_MANY_SKIPPED == 5
    diary = journal(tmp_path, main_process=main_process)
    for step in range(10):
        diary.step(step, "", values(loss=float("nan") if step % 5 else 2.0, skipped=bool(step % 5)))
    with pytest.raises(
        RunError, match=r"step 10: .* 5 times in a row.*the last checkpoint is good"
    ):
        diary.step(10, "", values(loss=float("nan"), skipped=1))
    diary.close()
    if main_process:  # those steps are on record all the same, as JSON that every reader takes
        assert steps_in(tmp_path / "metrics.jsonl") == list(range(11))


def test_tensorboard_is_written_when_wanted(tmp_path: Path):
    for wanted in (True, False):
        run = tmp_path / str(wanted)
        run.mkdir()
        diary = journal(run, tensorboard=wanted)
        diary.step(0, "", values())
        diary.close()
        events = list(run.glob("tensorboard/events.*"))
        assert bool(events) == wanted
        assert all(b"training/loss" in path.read_bytes() for path in events)


# ---- small functions


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("Tesla T4", 65e12),
        ("cpu", None),
        ("", None),
        ("NVIDIA of the year 2100", None),
    ],
)
def test_the_peak_rate_is_that_of_the_device(kind: str, peak: float | None):
    assert peak_flops(kind) == peak


def test_each_device_of_the_table_finds_itself_and_not_another():
    assert {name: peak_flops(f"NVIDIA {name} SXM") for name in PEAK_FLOPS} == PEAK_FLOPS


def test_a_duration_reads_as_a_person_would_say_it():
    words = {
        0: "0s",
        0.9: "0s",
        59.9: "59s",
        60: "1m00s",
        725: "12m05s",
        3599: "59m59s",
        3600: "1h00m",
        27_060: "7h31m",
        86_399: "23h59m",
        273_600: "3d04h",
    }
    assert {seconds: duration(seconds) for seconds in words} == words


def test_every_line_is_json_also_of_a_loss_that_is_none(tmp_path: Path):
    diary = journal(tmp_path)
    diary.step(0, "", values(loss=float("nan"), skipped=1))
    diary.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert (
        json.loads(line)["skipped"] == 1.0 and json.loads(line)["loss"] != json.loads(line)["loss"]
    )
