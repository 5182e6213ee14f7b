"""Rates follow from the moments at which steps are ready, whatever the host does between them."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_jax.tracking.rates import (
    Pause,
    StepTime,
    Window,
    seconds_left,
    step_time,
    tokens_per_second,
    window_rates,
)

TOKENS = 1000


def times(seconds: float, data: float = 0, save: float = 0, evaluation: float = 0) -> StepTime:
    return StepTime(seconds, data, save, evaluation, measured=True)


# The step before is ready at 10; the times are chosen so that binary fractions are exact.
CASES = {
    "in flight behind the step before": ((10, 9.25, 11, []), times(1)),
    "the host works while the device waits": ((10, 10.25, 11, []), times(1)),
    "a save hidden behind the step before": ((10, 9.75, 11, [("save", 9, 9.5)]), times(1)),
    "a save that ends after the step before": (
        (10, 15, 16, [("save", 8, 15)]),
        times(1, save=5),
    ),
    "a wait for data, half of it hidden": (
        (10, 10.5, 11.5, [("data", 9.5, 10.5)]),
        times(1, data=0.5),
    ),
    "an evaluation, a save and a wait for data": (
        (10, 14, 15, [("evaluation", 10, 12), ("save", 12, 13.5), ("data", 13.5, 14)]),
        times(1, data=0.5, save=1.5, evaluation=2),
    ),
    "two saves": (
        (10, 14, 15, [("save", 9, 11), ("save", 12, 14)]),
        # Between the two the host did something that has no name.
        times(2, save=3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_takes_the_time_in_which_the_device_could_compute(name: str):
    (previous, dispatched, ready, pauses), expected = CASES[name]
    found = step_time(previous, dispatched, ready, [Pause(*pause) for pause in pauses])
    assert found == expected


def test_a_step_whose_beginning_is_not_known_is_not_measured():
    # The first one compiles.
    first = step_time(None, 10, 40, [Pause("data", 9, 10)])
    assert first == StepTime(30, 1, 0, 0, measured=False)
    # It was in flight, and was ready as soon as anyone looked: the thread that waits was late.
    assert not step_time(10, 9.5, 10.0001, [], seen_waiting=False).measured
    # It was started later, so it was computed after that, however fast.
    assert step_time(10, 10.5, 10.5001, [], seen_waiting=False).measured


def run_of(
    steps: list[tuple[float, float]], *, duration: float, write: float, every: int
) -> tuple[list[StepTime], float]:
    """The times of a run as train.py does it, on a device that needs `duration` for each step.

    `steps`: how long the data and the evaluation after it took. A save begins after every `every`
    steps, and its file is written in `write` seconds. Also returns when the last step was ready.
    """
    now = device_free = written = 0.0
    previous = pending = None
    pauses: list[Pause] = []
    found = []

    def pause(kind: str, end: float) -> float:
        pauses.append(Pause(kind, now, max(now, end)))
        return max(now, end)

    for index, (data, evaluation) in enumerate(steps):
        now = pause("data", now + data)
        device_free = max(device_free, now) + duration
        started, ready, pauses = (now, pauses), device_free, []
        found.append(step_time(previous, *started[:1], ready, started[1]))
        previous = ready
        if pending:
            now = pause("save", written)
            now = max(now, pending)
        pending = ready
        save_now = (index + 1) % every == 0
        if evaluation or save_now:
            now = pause("save", written)
            now = max(now, ready)
            pending = None
        if evaluation:
            now = pause("evaluation", now + evaluation)
        if save_now:
            now = pause("save", now + 0.25)
            written = now + write
    return found, device_free


# Eighths of a second, so that sums are exact.
EIGHTHS = st.integers(0, 80).map(lambda n: n / 8)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(EIGHTHS, EIGHTHS), min_size=2, max_size=30),
    st.integers(1, 40).map(lambda n: n / 8),
    EIGHTHS,
    st.integers(1, 5),
)
def test_every_step_of_a_run_takes_the_time_of_the_device(steps, duration, write, every):
    """Saves, evaluations and slow data at any time change no rate, and no second is lost."""
    found, end = run_of(steps, duration=duration, write=write, every=every)
    assert [time.seconds for time in found] == [duration] * len(steps)
    total = sum(t.seconds + t.data_seconds + t.save_seconds + t.evaluation_seconds for t in found)
    assert total == end


def test_a_window_adds_up_what_is_measured():
    window = Window()
    compiled = StepTime(30, 0.5, 0, 7, measured=False)
    for time in (compiled, times(1, save=3), StepTime(0, 0, 0, 0, measured=False), times(2)):
        window = window.add(time)
    # The step that compiles does not count; the one within the window was computed in the time of
    # its neighbours.
    assert window == Window(3, 3.0, 0.5, 3.0, 7.0)


def test_there_is_no_rate_above_the_peak_and_none_of_nothing():
    assert tokens_per_second(1000, 2, None) == 500
    assert tokens_per_second(1000, 2, 500) == 500
    assert tokens_per_second(1000, 2, 499) is None
    assert tokens_per_second(1000, 0, None) is None
    assert tokens_per_second(0, 0, None) is None


def test_the_time_left_counts_the_average_wait_of_a_step():
    newest = Window(10, 20.0)
    whole = Window(100, 300.0, 10.0, 20.0, 70.0)
    # 2 s for a step and 1 s of waits.
    assert seconds_left(50, newest, whole) == 150
    assert seconds_left(50, Window(), Window()) is None


# ---- the records of a whole run


def columns(seconds: list[float], mfu_of_a_second: float = np.nan) -> dict[str, np.ndarray]:
    """Columns of a run whose records claim a step in each of these times."""
    time = np.array(seconds)
    count = len(seconds)
    return {
        "step": np.arange(count, dtype=float),
        "tokens": np.full(count, float(TOKENS)),
        "seconds": time,
        "tokens_per_s": TOKENS / time,
        "mfu": mfu_of_a_second / time,
    }


def read_late(period: int, late: float) -> Callable[[int], float]:
    """Records of version 0.1.0: after every save, a step is read `late` and the next at once."""
    return lambda step: {1: 0.5 + late, 2: 0.001}.get(step % period, 0.5)


@pytest.mark.parametrize("period", [3, 4, 10, 50])
@pytest.mark.parametrize("late", [0.5, 4.0])
def test_windows_undo_what_was_read_late(period: int, late: float):
    """Steps of 0.5 s, at 40% of the peak; single records claim 200 times the peak."""
    run = columns([30.0, *map(read_late(period, late), range(1, 200))], mfu_of_a_second=0.2)
    assert run["mfu"].max() == pytest.approx(200)
    rates = window_rates(run)
    # Two steps in ten, or fewer, are one step late.
    assert rates.tokens_per_s.max() <= 2000 * 10 / 9 and rates.mfu.max() <= 0.4 * 10 / 9
    assert rates.steps_above_peak == (run["mfu"] > 1).sum() and rates.windows_above_peak == 0
    if late == 0.5:
        # Nothing was lost, so the rate is the true one.
        assert np.median(rates.tokens_per_s) == pytest.approx(2000, rel=0.12)


def test_the_same_without_a_known_peak():
    rates = window_rates(columns([30.0, *map(read_late(4, 0.5), range(1, 200))]))
    assert rates.tokens_per_s.max() <= 2000 * 10 / 9 and np.isnan(rates.mfu).all()
    assert rates.steps_above_peak == rates.windows_above_peak == 0


def test_windows_above_the_peak_are_left_out():
    rates = window_rates(columns([30.0] + [0.001] * 40 + [0.5] * 60, mfu_of_a_second=0.2))
    assert rates.windows_above_peak == 4 and rates.steps_above_peak == 40
    assert len(rates.step) == 6 and rates.mfu.max() == pytest.approx(0.4)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_of_hardly_any_steps_has_no_rates(count: int):
    assert len(window_rates(columns([0.5] * count)).step) == 0
