"""Steps that are computed asynchronously are measured correctly, whatever the host waits for."""

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from minigpt_jax.orbax_io import Writer
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.tracking.rates import StepTime
from minigpt_jax.tracking.step_clock import StepClock
from tests.harness import train_here

# How long the simulated device needs for a step: longer than a busy machine delays a thread.
STEP_SECONDS = 0.2
STEPS = 8
PAUSE = 5 * STEP_SECONDS
ATTEMPTS = 10


class Metric:
    """A number that the simulated device has at a certain moment."""

    def __init__(self, ready: float):
        self.ready = ready

    def is_ready(self) -> bool:
        return time.monotonic() >= self.ready

    def block_until_ready(self) -> None:
        time.sleep(max(self.ready - time.monotonic(), 0))


class Device:
    """Computes steps one after the other, while the host goes on: as a GPU does."""

    def __init__(self):
        self.free = 0.0

    def train_step(self) -> tuple[None, dict[str, Metric]]:
        self.free = max(self.free, time.monotonic()) + STEP_SECONDS
        return None, {"loss": Metric(self.free)}


def times_with_a_pause(kind: str) -> tuple[list[StepTime], float]:
    """The times of STEPS steps and of all together, with a pause after half of them."""
    clock = StepClock()
    step = clock.timed(Device().train_step)
    began = time.monotonic()
    pending = None
    times = []
    for number in range(STEPS):
        _, metrics = step()
        if pending:
            if number == STEPS // 2:
                with clock.pause(kind):
                    time.sleep(PAUSE)
            pending["loss"].block_until_ready()
            times.append(clock.next())
        pending = metrics
    times.append(clock.next())
    wall = time.monotonic() - began
    clock.close()
    return times, wall


@pytest.mark.parametrize("kind", ["data", "save", "evaluation"])
def test_a_pause_while_two_steps_are_in_flight_is_no_part_of_a_step(kind: str):
    """Two steps end during the pause; both are read after it, at the same moment."""
    # A busy machine may hold up the thread that watches: that step then has no rate.
    attempts = (times_with_a_pause(kind) for _ in range(ATTEMPTS))
    times, wall = next((t, w) for t, w in attempts if all(time.measured for time in t[1:]))
    assert not times[0].measured
    # Read at the moment of the record, the step after the pause would take no time.
    assert min(t.seconds for t in times) > STEP_SECONDS / 10
    waits = [t.data_seconds + t.save_seconds + t.evaluation_seconds for t in times]
    # The device has computed two steps during the pause.
    assert waits[STEPS // 2 + 1] == getattr(times[STEPS // 2 + 1], f"{kind}_seconds")
    assert PAUSE - 4 * STEP_SECONDS < waits[STEPS // 2 + 1] < wall - STEPS * STEP_SECONDS
    assert sum(waits) == waits[STEPS // 2 + 1]
    # No second is counted twice.
    assert STEPS * STEP_SECONDS <= sum(t.seconds for t in times) <= wall - sum(waits)


def test_two_steps_that_end_before_anyone_looks_have_no_rate_of_their_own():
    """The thread that waits for the steps is held up."""
    clock = StepClock()
    step = clock.timed(Device().train_step)
    step()
    clock.next()
    go_on = threading.Event()
    clock._watcher.submit(go_on.wait)
    step()
    _, metrics = step()
    metrics["loss"].block_until_ready()
    go_on.set()
    late, at_once = clock.next(), clock.next()
    clock.close()
    assert late.seconds >= 2 * STEP_SECONDS
    assert not at_once.measured


def test_a_step_that_fails_is_no_time():
    class Lost:
        def is_ready(self) -> bool:
            raise RuntimeError("lost")

    clock = StepClock()
    clock.timed(lambda: (None, {"loss": Lost()}))()
    with pytest.raises(RuntimeError, match="lost"):
        clock.next()
    clock.close()


@pytest.fixture
def slow_disk(monkeypatch):
    """A checkpoint needs more than a second to be written."""
    save, wait = Writer.save, Writer.wait
    unwritten = []

    def slow_save(*arguments, **items):
        save(*arguments, **items)
        unwritten.append(1.5)

    def slow_wait(writer: Writer):
        time.sleep(sum(unwritten))
        unwritten.clear()
        wait(writer)

    monkeypatch.setattr(Writer, "save", slow_save)
    monkeypatch.setattr(Writer, "wait", slow_wait)


@pytest.mark.campaign
@pytest.mark.usefixtures("slow_disk")
def test_a_slow_disk_makes_no_rate_of_a_run_impossible(tmp_path: Path, corpus: Path):
    """A real run that saves every three steps."""
    began = time.monotonic()
    output = train_here(
        tmp_path,
        name="slow_disk",
        data__folder=corpus,
        save__every=3,
        horizon__steps=8,
        eval__every=100,
        log__every=1,
        log__tensorboard=False,
    )
    wall = time.monotonic() - began
    records = read_jsonl(tmp_path / "slow_disk" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(8))
    waits = ("data_seconds", "save_seconds", "evaluation_seconds")
    assert sum(r["seconds"] + sum(r[w] for w in waits) for r in records) < wall
    # Before each of these steps the run has waited for the disk.
    assert all(records[step]["save_seconds"] > 0.1 for step in (3, 6))
    rates = [record["tokens_per_s"] for record in records]
    assert rates[0] is None
    known = [rate for rate in rates if rate]
    # The second step after a save would seem to be a thousand times faster than the others.
    assert len(known) > 4 and max(known) < 30 * np.median(known)
    # Each line covers one step, so it shows the rate of its record.
    shown = re.findall(r"step +(\d+)/8 .*?(\S+) tokens/s", output)
    assert [int(step) for step, _ in shown] == list(range(8))
    expected = ["n/a" if rate is None else f"{rate:,.0f}" for rate in rates]
    assert [rate for _, rate in shown] == expected
    assert len(re.findall(r"  save [\d.]+s  ", output)) >= 2
    assert re.search(r"step 7/8 .* ETA 0s", output)
