"""Tokens with the log-probabilities from the device, of an answer or of a prompt."""

from collections.abc import Sequence

import jax

from minigpt_jax.decoding import TopLogprobs
from minigpt_jax.server.device_batch import DeviceBatch
from minigpt_jax.server.request import ActiveRequest, Delta, Token


def with_logprobs(ids: Sequence[int], logprobs: TopLogprobs, num_logprobs: int) -> list[Token]:
    """`ids` with the log-probabilities of their row, and the `num_logprobs` most likely tokens."""
    tokens = []
    for i, id in enumerate(ids):
        top_ids = logprobs.ids[i, :num_logprobs].tolist()
        top_values = logprobs.values[i, :num_logprobs].tolist()
        top = tuple(zip(top_ids, top_values, strict=True))
        tokens.append(Token(id, float(logprobs.chosen[i]), top))
    return tokens


def echoed_prompt(active: ActiveRequest, batch: DeviceBatch) -> Delta:
    """The part of a prompt that its request wants back, as the first part of the answer.

    It is the last one too if no token is to be generated.
    """
    request = active.request
    start = request.echo_from or 0
    ids = list(request.prompt)
    tokens = [Token(id) for id in ids]
    if request.num_logprobs is not None:
        logprobs = jax.device_get(batch.prompt_logprobs(ids))
        tokens = with_logprobs(ids, logprobs, request.num_logprobs)
    # As in OpenAI's API, the first one has no log-probability.
    tokens = [token if i else Token(token.id) for i, token in enumerate(tokens[start:])]
    text = active.text.push_prompt(ids[start:], final=not request.max_tokens)
    finish_reason = None if request.max_tokens else "length"
    return Delta(text, tokens, finish_reason, is_prompt=True)
