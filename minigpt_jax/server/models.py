"""The models of a server: each is a run with an engine of its own, chosen by its name."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.server.api_error import ApiError
from minigpt_jax.server.engine import Engine
from minigpt_jax.server.parse import RequestParser

# The numbers of /health that add up over the models.
_SUMS = ("slots", "active", "queued", "answers", "tokens")
_OF_EACH = (*_SUMS, "tokens_per_second", "time_to_first_token")


@dataclass(frozen=True)
class ServedModel:
    """A run under the name by which requests choose it."""

    name: str
    run: LoadedRun
    engine: Engine
    # Questions that the model was trained to answer.
    examples: Sequence[str] = ()
    # Seconds since 1970.
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def parser(self) -> RequestParser:
        """Reads requests for this model."""
        return RequestParser(self.run, self.name)

    def description(self) -> dict:
        """The entry of /v1/models."""
        config = self.run.config
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "minigpt-jax",
            "context": config.context,
            "chat": self.run.can_chat,
            "vocab_size": config.vocab_size,
            "parameters": config.parameters,
            "examples": list(self.examples),
        }


def find_model(models: Sequence[ServedModel], name: str | None) -> ServedModel:
    """The model with that name; without a name, the first one. Raises ApiError (404)."""
    if name is None:
        return models[0]
    for model in models:
        if model.name == name:
            return model
    known = " or ".join(repr(model.name) for model in models)
    raise ApiError(
        404,
        f"unknown model: this server has {known}",
        param="model",
        code="model_not_found",
    )


def health(models: Sequence[ServedModel], *, draining: bool) -> dict:
    """The numbers of all engines together, and those of each.

    Counts and speeds are sums; `time_to_first_token` is the first model's.
    """
    engines = {model.name: model.engine.health() for model in models}
    first = next(iter(engines.values()))
    alive = all(numbers["alive"] for numbers in engines.values())
    speeds = [numbers["tokens_per_second"] for numbers in engines.values()]
    measured = [speed for speed in speeds if speed is not None]
    return {
        "status": "draining" if draining else _status(alive),
        **{name: value for name, value in first.items() if name != "alive"},
        **{name: sum(numbers[name] for numbers in engines.values()) for name in _SUMS},
        "tokens_per_second": round(sum(measured), 1) if measured else None,
        "models": {
            name: {"status": _status(numbers["alive"]), **{key: numbers[key] for key in _OF_EACH}}
            for name, numbers in engines.items()
        },
    }


def _status(alive: bool) -> str:
    return "ok" if alive else "failed"
