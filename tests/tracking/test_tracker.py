"""A tracker gets each step once, in order, whatever happens; nothing of it can stop training."""

import math
import signal
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_jax.errors import InputError
from minigpt_jax.preflight import check_inputs
from minigpt_jax.tracking import tracker
from minigpt_jax.tracking.run_log import StepLog
from minigpt_jax.tracking.tracker import (
    VERSIONS,
    Tracker,
    require_tracker,
    tracker_environment,
)
from minigpt_jax.tracking.tracker_rows import GrowingFile, Rows
from minigpt_jax.tracking.tracker_session import tracker_identity
from tests.faults.processes import wait_until
from tests.harness import ROOT, arguments, command
from tests.tracking.runs import evaluation_record, make_run, record_of_0_1_0, step_record


def one_go(steps: list[dict], evaluations: list[dict], **settings) -> list[tuple[int, dict]]:
    return Rows(**settings).add(steps, evaluations)


# ---- the rows


def test_a_row_holds_a_step_and_the_evaluation_after_it():
    steps = [step_record(step, loss=float(step)) for step in range(4)]
    evaluations = [evaluation_record(0, 9.0), evaluation_record(4, 3.0)]
    evaluations[1]["validation_loss/my texts"] = 2.5
    rows = one_go(steps, evaluations, every=2, horizon=4)
    assert [x for x, _ in rows] == [0, 1, 2, 4]
    by_step = dict(rows)
    assert by_step[0] == {
        "evaluation/train_loss": 8.9,
        "evaluation/validation_loss": 9.0,
        "evaluation/bits_per_byte": 2.25,
    }
    # Step 3 of metrics.jsonl is the fourth update.
    assert by_step[4]["training/loss"] == 3.0
    assert by_step[4]["evaluation/validation_loss"] == 3.0
    assert by_step[4]["evaluation/validation_loss/my texts"] == 2.5


def test_rates_are_those_since_the_row_before():
    steps = [step_record(s, seconds=1.0 + s, save_seconds=2.0, mfu=0.5) for s in range(5)]
    steps[0]["tokens_per_s"] = None
    row = dict(one_go(steps, [evaluation_record(5, 3.0)], every=4, horizon=5))[4]
    # Steps 1 to 3; step 0 was a row of its own.
    assert row["training/tokens_per_s"] == pytest.approx(3 * 1000 / (2 + 3 + 4))
    assert row["training/save_seconds"] == 6.0
    assert row["training/mfu"] / 0.5 == pytest.approx(
        row["training/tokens_per_s"] / steps[3]["tokens_per_s"]
    )


def test_what_cannot_be_drawn_is_left_out():
    steps = [step_record(0, loss=math.nan, grad_norm=math.inf), step_record(1)]
    ((_, values), *_) = one_go(steps, [], every=1, horizon=9)
    assert "training/loss" not in values and "training/grad_norm" not in values
    assert "training/tokens_per_s" not in values
    assert all(math.isfinite(value) for value in values.values())


def test_records_of_version_0_1_0_are_rows_too():
    steps = [record_of_0_1_0(step) for step in range(3)]
    assert [x for x, _ in one_go(steps, [], every=1, horizon=9)] == [1, 2]


HORIZON = 12
# A record in the order of time: ("step" or "evaluation", the record).
Recorded = tuple[str, dict]


def resumed_at(begin: int, recorded: list[Recorded]) -> list[Recorded]:
    """What the files hold when a run goes on from its checkpoint of step `begin`."""
    after = {"step": begin, "evaluation": begin + 1 if begin else 0}
    return [(kind, record) for kind, record in recorded if record["step"] < after[kind]]


def train(kept: list[Recorded], begin: int, end: int, every: int, stopped: bool) -> list[Recorded]:
    """What a start records that evaluates after each `every` steps, and at its end if not asked
    to stop there."""
    evaluated = [record["step"] for kind, record in kept if kind == "evaluation"]
    recorded = []
    if begin % every == 0 and begin not in evaluated:
        recorded.append(("evaluation", evaluation_record(begin, 3.0)))
    for step in range(begin, end):
        recorded.append(("step", step_record(step)))
        due = (step + 1) % every == 0 or step + 1 == HORIZON
        if due and not (stopped and step + 1 == end):
            recorded.append(("evaluation", evaluation_record(step + 1, 3.0)))
    return recorded


def of_kind(kind: str, recorded: list[Recorded]) -> list[dict]:
    return [record for found, record in recorded if found == kind]


@settings(max_examples=60)
@given(
    every=st.integers(1, 4),
    evaluate_every=st.integers(1, 4),
    # How far back the checkpoint is, how many steps follow, and whether it is asked to stop.
    starts=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8), st.booleans()), max_size=4),
    data=st.data(),
)
def test_each_row_is_sent_once_after_any_kills(every, evaluate_every, starts, data):
    """The tracker of a start that is killed has seen any part of its records, in any portions."""
    sent: list[tuple[int, dict]] = []
    recorded: list[Recorded] = []
    for back, more, stopped in [*starts, (0, HORIZON, False)]:
        done = len(of_kind("step", recorded))
        begin = max(done - back, 0)
        kept = resumed_at(begin, recorded)
        new = train(kept, begin, min(begin + more, HORIZON), evaluate_every, stopped)
        recorded = kept + new
        rows = Rows(every=every, horizon=HORIZON)
        seen_to = len(recorded) if more == HORIZON else data.draw(st.integers(0, len(recorded)))
        # What is kept is there from the beginning.
        steps_read, evaluations_read = 0, 0
        look = len(kept)
        while look <= seen_to:
            # Evaluations are read a moment later than steps.
            later = min(look + data.draw(st.integers(0, 2)), seen_to)
            complete = rows.add(
                of_kind("step", recorded[steps_read:look]),
                of_kind("evaluation", recorded[evaluations_read:later]),
            )
            steps_read, evaluations_read = look, later
            last = sent[-1][0] if sent else -1
            sent += [row for row in complete if row[0] > last]
            look += data.draw(st.integers(1, 5))
            if look > seen_to > steps_read:
                look = seen_to
    files = of_kind("step", recorded), of_kind("evaluation", recorded)
    expected = one_go(*files, every=every, horizon=HORIZON)
    assert [(x, values.keys()) for x, values in sent] == [(x, v.keys()) for x, v in expected]


def test_a_file_that_grows_is_read_once_and_line_by_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    text = b'{"step": 0}\n{"step": 1, "a": 2.5}\nbroken\n{"step": 2}\n{"step'
    path.write_bytes(b"")
    growing = GrowingFile(path)
    found = []
    with path.open("ab", buffering=0) as file:
        for byte in text:
            file.write(bytes([byte]))
            found += growing.read()
    assert found == [{"step": 0}, {"step": 1, "a": 2.5}, {"step": 2}]
    # The trainer of the next start replaces the file.
    StepLog(path, 1).close()
    assert growing.read() == []


# ---- which run it is in the tracker


CONFIG = {"fresh": False, "log": {"every": 1}, "model": {"layers": 2}}


@pytest.mark.parametrize(
    ("start", "changes", "same"),
    [
        (0, {}, True),
        (7, {}, True),
        (0, {"log": {"every": 2}}, True),
        # Killed before its first checkpoint, and begun again as another run.
        (0, {"model": {"layers": 3}}, False),
        (7, {"model": {"layers": 3}}, True),
        (0, {"fresh": True}, False),
    ],
)
def test_a_resumed_run_is_the_same_run_in_the_tracker(
    tmp_path: Path, start: int, changes: dict, same: bool
):
    file = tmp_path / "tracker.json"
    first = tracker_identity(file, CONFIG, 0)
    second = tracker_identity(file, CONFIG | changes, start)
    assert (first == second) == same
    # What is new is noted.
    assert tracker_identity(file, CONFIG | changes, 7) == second


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": 3'])
def test_a_damaged_note_makes_a_new_run(tmp_path: Path, text: str):
    file = tmp_path / "tracker.json"
    file.write_text(text)
    assert tracker_identity(file, CONFIG, 7) == tracker_identity(file, CONFIG, 7)


# ---- bad input, and trackers that fail


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_jax(
    corpus: Path, tmp_path: Path, monkeypatch, name: str
):
    monkeypatch.setitem(sys.modules, name, None)
    argv = command(tmp_path, data__folder=corpus, log__tracker=name)[1:]
    sys.modules.pop("config_config", None)
    with arguments(*argv), pytest.raises(InputError, match=f'pip install "{name}>') as refused:
        check_inputs(sys.argv)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_the_name_of_a_tracker_is_none(tmp_path: Path, monkeypatch):
    """W&B writes to ./wandb, which Python can import as an empty package."""
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(VERSIONS, "some_tracker", "")
    with pytest.raises(InputError, match="not installed"):
        require_tracker("some_tracker")
    (tmp_path / "some_tracker" / "__init__.py").touch()
    require_tracker("some_tracker")


def test_nothing_is_sent_that_nobody_asked_for():
    assert tracker_environment("trackio", {})["HF_HUB_OFFLINE"] == "1"
    assert tracker_environment("wandb", {})["WANDB_ERROR_REPORTING"] == "false"
    asked = {"TRACKIO_SPACE_ID": "me/space", "WANDB_ERROR_REPORTING": "true", "A": "b"}
    found = tracker_environment("trackio", asked)
    assert found.pop("PYTHONPATH")
    assert found == asked


def start_broken(tmp_path: Path, monkeypatch, code: str) -> tuple[Path, Tracker]:
    """A tracker whose library does `code` when it is imported, for a run of three steps."""
    (tmp_path / "trackio").mkdir()
    (tmp_path / "trackio" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = make_run(tmp_path, [step_record(step) for step in range(3)], [])
    return run, Tracker(run, "trackio", start=0, every=1, horizon=3)


def test_a_tracker_that_fails_is_one_warning(tmp_path: Path, monkeypatch, capfd):
    run, broken = start_broken(tmp_path, monkeypatch, "print('hi')\nraise OSError('no disk')")
    broken.close()
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("warning: trackio: no disk") and "Training goes on" in err
    log = (run / "tracker.log").read_text()
    assert "hi" in log and "Traceback" in log


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise SystemExit('no')", "no ("),
        ("raise KeyboardInterrupt", "KeyboardInterrupt ("),
        ("import os; os._exit(3)", "its process failed (exit code 3)"),
        ("syntax error here", "invalid syntax ("),
    ],
)
def test_a_tracker_that_ends_is_one_warning(
    tmp_path: Path, monkeypatch, capfd, code: str, problem: str
):
    _, broken = start_broken(tmp_path, monkeypatch, code)
    broken.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"warning: trackio: {problem}")


def test_a_tracker_that_hangs_is_ended(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 1)
    ready = tmp_path / "ready"
    code = f"import pathlib, time\npathlib.Path({str(ready)!r}).touch()\ntime.sleep(99)"
    _, hanging = start_broken(tmp_path, monkeypatch, code)
    wait_until(ready.exists)
    began = time.monotonic()
    hanging.close()
    assert time.monotonic() - began < 30
    assert "warning: trackio: its process was ended (it had 1 s" in capfd.readouterr().err


def test_a_tracker_that_cannot_be_started_is_one_warning(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    run = make_run(tmp_path, [], [])
    Tracker(run, "wandb", start=0, every=1, horizon=3).close()
    assert capfd.readouterr().err.startswith("warning: wandb: its process cannot be started")


def test_after_a_stop_nobody_waits_for_the_tracker(tmp_path: Path, monkeypatch, capfd):
    ready = tmp_path / "ready"
    code = f"import pathlib, time\npathlib.Path({str(ready)!r}).touch()\ntime.sleep(99)"
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 1)
    _, hanging = start_broken(tmp_path, monkeypatch, code)
    wait_until(ready.exists)
    assert hanging._process
    hanging.close(wait=False)
    assert hanging._process.poll() is None
    # It ends in the same time.
    assert hanging._process.wait(30) == -signal.SIGALRM
    assert capfd.readouterr().err == ""


def test_the_tested_versions_are_those_of_the_extra():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = wanted["optional-dependencies"]["trackers"]
    assert extra == [f"{name}{versions}" for name, versions in VERSIONS.items()]
