"""What /metrics tells Prometheus: counts and times of each model of a server, and no texts.

Where vLLM measures the same, the name is vLLM's with another prefix. A request is one answer here,
as there: with `n`, an HTTP request makes several.
"""

from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

# What `generate_latest` writes, and Prometheus 2 reads too.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
# Seconds: a tiny model's first token takes milliseconds, a long answer of a large one minutes.
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)


class Metrics(Collector):
    """The metrics of one engine."""

    def __init__(self):
        self._registry = CollectorRegistry()
        self.running = Gauge(
            "minigpt_num_requests_running", "Answers that have a slot.", registry=self._registry
        )
        self.waiting = Gauge(
            "minigpt_num_requests_waiting",
            "Answers that wait for a slot.",
            registry=self._registry,
        )
        self.slots = Gauge(
            "minigpt_num_slots", "Answers that can have a slot.", registry=self._registry
        )
        self.prompt_tokens = Counter(
            "minigpt_prompt_tokens",
            "Tokens of the prompts that got a slot.",
            registry=self._registry,
        )
        self.generation_tokens = Counter(
            "minigpt_generation_tokens", "Generated tokens.", registry=self._registry
        )
        self.ended = Counter(
            "minigpt_request_success",
            "Answers that ended, by the reason: stop, length, abort (the client disconnected), "
            "error (the engine stopped).",
            ["finished_reason"],
            registry=self._registry,
        )
        self.refused = Counter(
            "minigpt_request_refused",
            "Answers for which the queue had no room (status 429).",
            registry=self._registry,
        )
        self.first_token = Histogram(
            "minigpt_time_to_first_token_seconds",
            "From the request to the first token.",
            buckets=_BOUNDS,
            registry=self._registry,
        )
        self.queue_time = Histogram(
            "minigpt_request_queue_time_seconds",
            "From the request to the slot.",
            buckets=_BOUNDS,
            registry=self._registry,
        )
        self.duration = Histogram(
            "minigpt_e2e_request_latency_seconds",
            "From the request to the end of the answer.",
            buckets=_BOUNDS,
            registry=self._registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            # So that the series starts at 0 and not with the first such end.
            self.ended.labels(reason)

    def set_load(self, slots: int, running: int, waiting: int) -> None:
        """How full the engine is now."""
        self.slots.set(slots)
        self.running.set(running)
        self.waiting.set(waiting)

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        return self._registry.collect()


class _LabelledByModel(Collector):
    """The metrics of several models; a sample has the label `model_name` in addition."""

    def __init__(self, models: Mapping[str, Metrics]):
        self._models = models

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for model, metrics in self._models.items():
            for metric in metrics.collect():
                same = Metric(metric.name, metric.documentation, metric.type)
                merged.setdefault(metric.name, same).samples += [
                    sample._replace(labels={"model_name": model, **sample.labels})
                    for sample in metric.samples
                ]
        return merged.values()


def metrics_text(models: Mapping[str, Metrics]) -> bytes:
    """The metrics of each model, by its name, in Prometheus' text format."""
    return generate_latest(_LabelledByModel(models))
