"""Note when the steps of a run are started and ready, without slowing them down.

A thread waits for the metrics of each step, so the moment at which a step is ready is known even if
the main thread saves, evaluates or waits for data at that moment. The devices are never waited for
before the next step is in flight.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from minigpt_jax.tracking.rates import Pause, StepTime, step_time


class _Started(NamedTuple):
    """A step that was started and not yet asked for."""

    dispatched: float
    pauses: list[Pause]
    # When it was ready, and whether it was seen unfinished before.
    ready: Future[tuple[float, bool]]


class StepClock:
    """The times of the steps of a run, in their order."""

    def __init__(self):
        self._watcher = ThreadPoolExecutor(max_workers=1)
        self._started: deque[_Started] = deque()
        # Since the newest step was started.
        self._pauses: list[Pause] = []
        self._previous_ready: float | None = None

    @contextmanager
    def pause(self, kind: str) -> Iterator[None]:
        """Count the time inside as a wait for "data", a "save" or an "evaluation"."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._pauses.append(Pause(kind, began, time.monotonic()))

    def timed(self, train_step: Callable) -> Callable:
        """`train_step`, which returns (state, metrics), with its calls measured."""

        def step(*arguments: Any) -> tuple[Any, dict[str, jax.Array]]:
            dispatched, pauses = time.monotonic(), self._pauses
            self._pauses = []
            state, metrics = train_step(*arguments)
            ready = self._watcher.submit(_wait, metrics)
            self._started.append(_Started(dispatched, pauses, ready))
            return state, metrics

        return step

    def next(self) -> StepTime:
        """The time of the oldest step that was not asked for; waits until it is ready."""
        started = self._started.popleft()
        ready, seen_waiting = started.ready.result()
        previous, self._previous_ready = self._previous_ready, ready
        return step_time(
            previous, started.dispatched, ready, started.pauses, seen_waiting=seen_waiting
        )

    def close(self) -> None:
        """End the thread."""
        self._watcher.shutdown()


def _wait(metrics: Any) -> tuple[float, bool]:
    """Wait for the metrics of a step: when they were ready, and whether they were not before."""
    seen_waiting = not all(value.is_ready() for value in metrics.values())
    jax.block_until_ready(metrics)
    return time.monotonic(), seen_waiting
