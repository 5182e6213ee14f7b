"""trackio's and W&B's own stores hold each step once. Runs where these packages are installed."""

import json
import math
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt_jax.runtime.files import read_jsonl, write_json
from minigpt_jax.tracking.run_log import StepLog
from minigpt_jax.tracking.tracker import Tracker
from tests.faults.processes import start_one, wait_for, wait_until
from tests.tracking.runs import evaluation_record, make_run, step_record

BLOCK = 32768

# Step -> the numbers of its row; a step that is there twice is an error.
Rows = list[tuple[int, dict]]


def read_trackio(folder: Path) -> Rows:
    """The rows of the only run in trackio's database."""
    # What a dashboard does first; nothing but for a network file system.
    load = "from trackio.fragments import import_inbox_dir; import_inbox_dir()"
    environment = os.environ | {"TRACKIO_DIR": str(folder)}
    subprocess.run([sys.executable, "-c", load], env=environment, check=True)
    database = sqlite3.connect(folder / "minigpt-jax.db")
    rows = database.execute("select step, run_id, metrics from metrics order by id").fetchall()
    database.close()
    assert len({run for _, run, _ in rows}) == 1
    return [(step, json.loads(metrics)) for step, _, metrics in rows]


def read_wandb(folder: Path) -> Rows:
    """The rows in all of W&B's files in `folder`, which are of one run."""
    internal = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    rows, runs = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for content in log_records(path.read_bytes()):
            record = internal.Record()
            record.ParseFromString(content)
            if record.HasField("run"):
                runs.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                rows.append((record.history.step.num, values))
    assert len(runs) == 1
    return rows


def log_records(data: bytes) -> list[bytes]:
    """The records of a file in LevelDB's log format, after W&B's header of seven bytes."""
    records, record, position = [], b"", 7
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        record += data[position : position + size]
        position += size
        # 1: a whole record, 2: its first part, 3: a part, 4: its last part.
        if kind in (1, 4):
            records.append(record)
            record = b""
    return records


class Store:
    """A run whose curves go to one of the trackers."""

    def __init__(self, tracker: str, folder: Path, corpus: Path):
        self.tracker = tracker.split()[0]
        pytest.importorskip(self.tracker)
        self.folder = folder
        self.run = folder / "runs" / "tracked"
        self.environment = {"TRACKIO_DIR": str(folder / "trackio"), "WANDB_MODE": "offline"}
        if "network" in tracker:
            self.environment["TRACKIO_STORAGE_MODE"] = "jsonl"
        self.settings = {
            "runs": folder / "runs",
            "name": "tracked",
            "data__folder": corpus,
            "log__tracker": tracker,
            "log__every": 1,
            "eval__every": 4,
            # So that a longer horizon does not change the steps before it.
            "schedule__kind": "constant",
        }

    def steps(self) -> int:
        return len(read_jsonl(self.run / "metrics.jsonl"))

    def start(self) -> subprocess.Popen:
        """A start that is at work, and so is its tracker."""
        process = start_one(self.settings | {"horizon__steps": 10**6}, **self.environment)
        wait_for(process, f"{self.tracker}: ")
        before = self.steps()
        wait_until(lambda: self.steps() > before + 8)
        # Some steps are sent, and some are not.
        time.sleep(1.5)
        return process

    def train(self, horizon: int) -> None:
        process = start_one(self.settings | {"horizon__steps": horizon}, **self.environment)
        output, _ = process.communicate()
        assert process.returncode == 0 and "warning" not in output, output

    def check(self, horizon: int) -> None:
        """Each step is there once, in order, with the numbers of the run's own records."""
        if self.tracker == "trackio":
            rows = read_trackio(self.folder / "trackio")
        else:
            rows = read_wandb(self.run)
        assert [step for step, _ in rows] == list(range(horizon + 1))
        losses = [record["loss"] for record in read_jsonl(self.run / "metrics.jsonl")]
        assert [row["training/loss"] for _, row in rows[1:]] == losses
        name = "validation_loss"
        evaluations = read_jsonl(self.run / "evaluations.jsonl")
        found = [(s, row[f"evaluation/{name}"]) for s, row in rows if f"evaluation/{name}" in row]
        assert found == [(record["step"], record[name]) for record in evaluations]


def with_descendants(pid: int) -> list[int]:
    """A process and all that it and they have started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *(found for child in children.split() for found in with_descendants(int(child)))]


TRACKERS = ("trackio", "trackio on a network disk", "wandb")


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_that_is_killed_has_each_step_once_in_the_end(
    tmp_path: Path, monkeypatch, tracker: str
):
    """Without training: the records of a run of 40 steps, of which the first start has made 20."""
    store = Store(tracker, tmp_path, tmp_path)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    steps = [step_record(step) for step in range(40)]
    evaluations = [evaluation_record(step, 3.0) for step in (0, 20, 40)]
    store.run.parent.mkdir()
    make_run(store.run.parent, steps[:20], evaluations[:2], name=store.run.name)
    write_json(store.run / "config.json", {"fresh": False, "optimizer": {"clip": math.inf}})

    def start(begin: int) -> Tracker:
        return Tracker(store.run, store.tracker, start=begin, every=1, horizon=40)

    killed = start(0)
    assert killed._process
    wait_until(lambda: (store.run / "tracker.json").exists())
    # Most likely it has sent something, which may be on disk or not.
    time.sleep(3)
    for pid in with_descendants(killed._process.pid):
        os.kill(pid, signal.SIGKILL)
    killed.close()
    for begin in (20, 40):
        log = StepLog(store.run / "metrics.jsonl", begin)
        evaluation_log = StepLog(store.run / "evaluations.jsonl", begin + 1)
        second = start(begin)
        for record in steps[begin:]:
            log.write(record)
        for record in evaluations[begin // 20 + 1 :]:
            evaluation_log.write(record)
        log.close()
        evaluation_log.close()
        second.close()
        store.check(40)


@pytest.mark.campaign
@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_run_that_is_killed_twice_and_extended_has_each_step_once(
    tmp_path: Path, corpus: Path, tracker: str
):
    store = Store(tracker, tmp_path, corpus)
    # The trainer alone is killed; its tracker ends after it.
    first = store.start()
    first.kill()
    first.communicate()
    # The machine fails.
    second = store.start()
    for pid in with_descendants(second.pid):
        os.kill(pid, signal.SIGKILL)
    second.communicate()
    # To the next multiple of the evaluations' and the saves' distance.
    horizon = store.steps() // 12 * 12 + 24
    store.train(horizon)
    store.check(horizon)
    # Longer, from the step that has the last evaluation.
    store.train(horizon + 5)
    store.check(horizon + 5)
