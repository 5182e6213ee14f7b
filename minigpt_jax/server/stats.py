"""What /health reports: counts since the start, recent speed, and compilations."""

import time
from collections import deque
from dataclasses import dataclass, field

import jax
import numpy as np

from minigpt_jax.server.request import ActiveRequest, Delta

_RECENT_REQUESTS = 1024
_RECENT_BLOCKS = 512
_COMPILATION_EVENT = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Counts compilations of this process, programs that come from the disk cache included."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **_) -> None:
        self.count += event == _COMPILATION_EVENT


@dataclass
class EngineStats:
    """Counts since the start, and times of the most recent requests and blocks."""

    submitted: int = 0
    tokens: int = 0
    # Seconds from submission to the first token.
    first_token_seconds: deque[float] = field(
        default_factory=lambda: deque(maxlen=_RECENT_REQUESTS)
    )
    # Tokens of a block, and the seconds that it took.
    blocks: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_RECENT_BLOCKS))

    def add(self, active: ActiveRequest, delta: Delta) -> None:
        """Count `delta`, which is about to be sent for `active`."""
        if delta.num_generated and not active.first_token_sent:
            active.first_token_sent = True
            self.first_token_seconds.append(time.monotonic() - active.submitted)
        self.tokens += delta.num_generated

    def summary(self) -> dict:
        """The part of /health that these numbers make; times in seconds."""
        tokens_per_second = None
        seconds = sum(seconds for _, seconds in self.blocks)
        if seconds:
            tokens_per_second = round(sum(tokens for tokens, _ in self.blocks) / seconds, 1)
        first_token = {"p50": None, "p95": None}
        if self.first_token_seconds:
            p50, p95 = np.quantile(self.first_token_seconds, (0.5, 0.95)).round(4).tolist()
            first_token = {"p50": p50, "p95": p95}
        return {
            "answers": self.submitted,
            "tokens": self.tokens,
            "tokens_per_second": tokens_per_second,
            "time_to_first_token": first_token,
        }
