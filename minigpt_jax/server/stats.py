"""What an engine counts since its start, and its recent speed: for /health and /metrics."""

import time
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np

from minigpt_jax.server.metrics import Metrics
from minigpt_jax.server.request import ActiveRequest, Delta

_RECENT_ANSWERS = 1024
_RECENT_BLOCKS = 512
_COMPILATION_EVENT = "/jax/core/compile/backend_compile_duration"
# The reason by which an answer is counted where it is not the one that its client gets.
_ENDED = {"closed": "error"}


class CompilationCounter:
    """Counts compilations of this process, programs that come from the disk cache included.

    The engines of a process share one.
    """

    def __init__(self):
        self.count = 0
        self._count_when_warm = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    @property
    def since_warm_up(self) -> int:
        """Compilations since the last engine was ready."""
        return self.count - self._count_when_warm

    def mark_warm(self) -> None:
        """An engine is ready."""
        self._count_when_warm = self.count

    def _on_event(self, event: str, duration_secs: float, **_) -> None:
        self.count += event == _COMPILATION_EVENT


class EngineStats:
    """Counts since the start, and times of the most recent answers and blocks, in seconds."""

    def __init__(self):
        self.metrics = Metrics()
        self.submitted = 0
        # Tokens of a block, and the seconds that it took.
        self.blocks: deque[tuple[int, float]] = deque(maxlen=_RECENT_BLOCKS)
        self._tokens = 0
        self._recent_first_token: deque[float] = deque(maxlen=_RECENT_ANSWERS)
        # From the slot to the end, of complete answers.
        self._recent_in_slot: deque[float] = deque(maxlen=_RECENT_ANSWERS)

    @property
    def seconds_in_slot(self) -> float | None:
        """How long an answer occupies its slot, on average; None before the first one ended."""
        return float(np.mean(self._recent_in_slot)) if self._recent_in_slot else None

    def admit(self, active: ActiveRequest) -> None:
        """Count an answer that gets a slot."""
        self.metrics.queue_time.observe(time.monotonic() - active.submitted)
        self.metrics.prompt_tokens.inc(len(active.request.prompt))

    def add(self, active: ActiveRequest, delta: Delta) -> None:
        """Count `delta`, which is about to be sent for `active`."""
        now = time.monotonic()
        if delta.num_generated and not active.first_token_sent:
            active.first_token_sent = True
            self._recent_first_token.append(now - active.submitted)
            self.metrics.first_token.observe(now - active.submitted)
        self._tokens += delta.num_generated
        self.metrics.generation_tokens.inc(delta.num_generated)
        if delta.finish_reason:
            # A prompt alone, without an answer, has its slot for a moment only.
            if active.admitted is not None and active.request.max_tokens:
                self._recent_in_slot.append(now - active.admitted)
            self._end(active, delta.finish_reason)

    def cancel(self, cancelled: Sequence[ActiveRequest]) -> None:
        """Count answers that nobody wants any more."""
        for active in cancelled:
            self._end(active, "abort")

    def _end(self, active: ActiveRequest, reason: str) -> None:
        self.metrics.duration.observe(time.monotonic() - active.submitted)
        self.metrics.ended.labels(_ENDED.get(reason, reason)).inc()

    def summary(self) -> dict:
        """The part of /health that these numbers make; times in seconds."""
        tokens_per_second = None
        seconds = sum(seconds for _, seconds in self.blocks)
        if seconds:
            tokens_per_second = round(sum(tokens for tokens, _ in self.blocks) / seconds, 1)
        first_token = {"p50": None, "p95": None}
        if self._recent_first_token:
            p50, p95 = np.quantile(self._recent_first_token, (0.5, 0.95)).round(4).tolist()
            first_token = {"p50": p50, "p95": p95}
        return {
            "answers": self.submitted,
            "tokens": self._tokens,
            "tokens_per_second": tokens_per_second,
            "time_to_first_token": first_token,
        }
