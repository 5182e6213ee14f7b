"""What /metrics tells Prometheus: counts and times of each model of a server, and no texts.

Where vLLM measures the same, the name is vLLM's with another prefix. A request is one answer here,
as there: with `n`, an HTTP request makes several.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "minigpt_"
# Seconds: a tiny model's first token takes milliseconds, a long answer of a large one minutes.
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0)


@dataclass
class Histogram:
    """How many of the observed times were within each of _BOUNDS."""

    total: float = 0.0
    # One more than there are bounds, for times above the last one.
    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))

    def observe(self, seconds: float) -> None:
        """Count a time."""
        self.total += seconds
        self.counts[bisect_left(_BOUNDS, seconds)] += 1

    def copy(self) -> "Histogram":
        """With counts of its own."""
        return Histogram(self.total, list(self.counts))


class Numbers(NamedTuple):
    """What an engine has counted since its start, and how full it is."""

    slots: int
    running: int
    waiting: int
    prompt_tokens: int
    generated_tokens: int
    # Answers that ended, by the reason.
    ended: Mapping[str, int]
    refused: int
    first_token: Histogram
    queue_time: Histogram
    duration: Histogram


class Family(NamedTuple):
    """One metric of all models."""

    name: str
    kind: str
    help: str
    value: Callable[[Numbers], int | Mapping[str, int] | Histogram]


_FAMILIES = (
    Family("num_requests_running", "gauge", "Answers that have a slot.", lambda n: n.running),
    Family("num_requests_waiting", "gauge", "Answers that wait for a slot.", lambda n: n.waiting),
    Family("num_slots", "gauge", "Answers that can have a slot.", lambda n: n.slots),
    Family(
        "prompt_tokens_total",
        "counter",
        "Tokens of the prompts that got a slot.",
        lambda n: n.prompt_tokens,
    ),
    Family("generation_tokens_total", "counter", "Generated tokens.", lambda n: n.generated_tokens),
    Family(
        "request_success_total",
        "counter",
        "Answers that ended, by the reason: stop, length, abort (the client disconnected), "
        "error (the engine stopped).",
        lambda n: n.ended,
    ),
    Family(
        "request_refused_total",
        "counter",
        "Answers for which the queue had no room (status 429).",
        lambda n: n.refused,
    ),
    Family(
        "time_to_first_token_seconds",
        "histogram",
        "From the request to the first token.",
        lambda n: n.first_token,
    ),
    Family(
        "request_queue_time_seconds",
        "histogram",
        "From the request to the slot.",
        lambda n: n.queue_time,
    ),
    Family(
        "e2e_request_latency_seconds",
        "histogram",
        "From the request to the end of the answer.",
        lambda n: n.duration,
    ),
)


def metrics_text(models: Mapping[str, Numbers]) -> str:
    """The numbers of each model, by its name, in Prometheus' text format."""
    return "".join(f"{line}\n" for line in _lines(models))


def _lines(models: Mapping[str, Numbers]) -> Iterator[str]:
    for family in _FAMILIES:
        name = _PREFIX + family.name
        yield f"# HELP {name} {family.help}"
        yield f"# TYPE {name} {family.kind}"
        for model, numbers in models.items():
            label = f'model_name="{_escaped(model)}"'
            value = family.value(numbers)
            if isinstance(value, Histogram):
                yield from _histogram_lines(name, label, value)
            elif isinstance(value, Mapping):
                for reason, count in value.items():
                    yield f'{name}{{{label},finished_reason="{reason}"}} {count}'
            else:
                yield f"{name}{{{label}}} {value}"


def _histogram_lines(name: str, label: str, histogram: Histogram) -> Iterator[str]:
    """Each bucket counts the times of the smaller ones too."""
    count = 0
    for bound, added in zip((*_BOUNDS, math.inf), histogram.counts, strict=True):
        count += added
        shown = "+Inf" if bound == math.inf else f"{bound:g}"
        yield f'{name}_bucket{{{label},le="{shown}"}} {count}'
    yield f"{name}_sum{{{label}}} {histogram.total:.6f}"
    yield f"{name}_count{{{label}}} {count}"


def _escaped(value: str) -> str:
    """A label's value between its quotes."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
