"""Requests and results: what the HTTP side and the engine exchange."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from minigpt_jax.errors import InputError
from minigpt_jax.sampling import SamplingParams
from minigpt_jax.text_stream import TextStream

# The largest number of most likely tokens that can be returned with each token of an answer.
MAX_LOGPROBS = 20
# The same for the tokens of a prompt.
MAX_PROMPT_LOGPROBS = 5


class QueueFull(Exception):
    """The queue has no room: try again in `seconds`."""

    def __init__(self, seconds: float):
        super().__init__(seconds)
        self.seconds = seconds


class EngineClosed(Exception):
    """The engine accepts no more requests."""


class Token(NamedTuple):
    """One id of an answer. Log-probabilities are set if they were requested."""

    id: int
    logprob: float | None = None
    # (id, log-probability), the most likely first.
    top: tuple[tuple[int, float], ...] = ()


class Delta(NamedTuple):
    """What one block of decoding adds to an answer, or the prompt, where the answer begins with it.

    `finish_reason` is set in the last delta: "stop", "length", or "closed" if the engine stopped
    before the end.
    """

    text: str
    tokens: list[Token]
    finish_reason: str | None
    is_prompt: bool = False

    @property
    def num_generated(self) -> int:
        """Tokens that were generated."""
        return 0 if self.is_prompt else len(self.tokens)


@dataclass(frozen=True)
class Request:
    """One answer to generate."""

    prompt: Sequence[int]
    # Arrays for one row.
    sampling: SamplingParams
    max_tokens: int
    stop: Sequence[str] = ()
    # How many of the most likely tokens to return, up to MAX_LOGPROBS; None: no log-probabilities.
    num_logprobs: int | None = None
    # The answer begins with the prompt, from this token on; None: it does not.
    echo_from: int | None = None
    # The stop token that ends the answer is one of its tokens.
    keeps_stop_token: bool = False


# eq=False: two requests with the same contents are still two requests.
@dataclass(eq=False)
class ActiveRequest:
    """A request that waits in the queue or occupies a slot.

    `receive` is called in the engine's thread and must return immediately.
    """

    request: Request
    receive: Callable[[Delta], object]
    text: TextStream
    # Whose it is: clients take turns, and so do the HTTP requests of a client.
    client: str = ""
    http_request: object = None
    # Seconds of time.monotonic(), and when it got a slot.
    submitted: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    num_generated: int = 0
    first_token_sent: bool = False
    # Complete or cancelled: `receive` is not called any more.
    finished: bool = False

    @property
    def length(self) -> int:
        """Tokens so far, the prompt included."""
        return len(self.request.prompt) + self.num_generated

    @property
    def remaining(self) -> int:
        """Tokens that may still be generated."""
        return self.request.max_tokens - self.num_generated


def check_prompt(prompt: Sequence[int], context: int, max_tokens: int) -> None:
    """Raises InputError unless `prompt` leaves room for a token, if any is to be generated."""
    longest = context - min(max_tokens, 1)
    if not 0 < len(prompt) <= longest:
        and_answer = " and an answer" if max_tokens else ""
        raise InputError(
            f"the prompt has {len(prompt)} tokens, expected 1 to {longest}, so that the "
            f"context of {context} tokens can hold it{and_answer}: shorten it"
        )
