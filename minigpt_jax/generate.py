"""Generate text from weights: a `Generator` continues prompts, one `Completion` per row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax.decoding import (
    BLOCK,
    DecodeState,
    decode,
    empty_cache,
    prefill,
    prepare_for_decoding,
)
from minigpt_jax.errors import InputError
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sampling import Occurrences, SamplingParams
from minigpt_jax.text_stream import TextStream
from minigpt_jax.tokenizer import END_OF_TEXT, STOP_TOKENS, Tokenizer

# A cache holds at least so many tokens, or the whole context where that is shorter.
MIN_CACHE = 256


class AcceptedTokens(NamedTuple):
    """New tokens of a text. `finish_reason`: "stop" or "length", None for a text that continues."""

    tokens: list[int]
    finish_reason: str | None


def accept_tokens(
    new_tokens: Sequence[int], *, length: int, max_tokens: int, context: int
) -> AcceptedTokens:
    """Decide which of the `new_tokens` that `decode` drew for a row belong to its text.

    `length`: tokens of the row before them, prompt included. `max_tokens`: tokens that may still be
    added. The text ends before a stop token ("stop"), with `max_tokens`, or when it fills the
    context ("length").
    """
    stops = (i for i, token in enumerate(new_tokens) if token in STOP_TOKENS)
    stop_at = next(stops, len(new_tokens))
    tokens = list(new_tokens[: min(stop_at, max_tokens)])
    if stop_at < min(len(new_tokens), max_tokens):
        return AcceptedTokens(tokens, "stop")
    if len(tokens) == max_tokens or length + len(tokens) >= context:
        return AcceptedTokens(tokens, "length")
    return AcceptedTokens(tokens, None)


@dataclass
class Completion:
    """The generated text of one row, and its tokens without special ones.

    `finish_reason`: "stop" (the model or a stop string ended the text), "length" (`max_new_tokens`
    or the context did), None as long as neither has.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None


class Generator:
    """Weights, and a cache that stays between calls.

    Where a prompt begins like the last text of its row, only its new tokens are computed.
    `ids`: all tokens of each row, prompt included; the cache holds all of them but the last.
    `completions`: the results of the last call.
    """

    def __init__(
        self,
        params: dict,
        config: GPTConfig,
        tokenizer: Tokenizer,
        *,
        rows: int = 1,
        dtype: jax.typing.DTypeLike | None = None,
        quantize: str | None = None,
    ):
        """`rows`: texts generated together. The others: see `prepare_for_decoding`."""
        self.config = config
        self.tokenizer = tokenizer
        self.rows = rows
        self.model, self.params = prepare_for_decoding(params, config, dtype, quantize)
        self._device_put = partial(jax.device_put, device=jax.tree.leaves(params)[0].sharding)
        self._cache = self._device_put(empty_cache(config, rows, self.model.dtype, 0))
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.completions: list[Completion] = []

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingParams,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> Iterator[tuple[int, str]]:
        """Continue `prompts` (token ids, one per row): yield (row, piece of text) as it is decoded.

        At the end, `completions` holds the results. A row ends at `<|end|>`, `<|endoftext|>`, a
        `stop` string, after `max_new_tokens`, or with the context. Raises InputError for a prompt
        that is empty or longer than the context.
        """
        self._check(prompts, max_new_tokens)
        reason = None if max_new_tokens else "length"
        self.completions = [Completion(finish_reason=reason) for _ in prompts]
        texts = [TextStream(self.tokenizer, stop) for _ in prompts]
        self._grow_cache(max(map(len, prompts)) + max_new_tokens)
        state = self._prefill(prompts)
        remaining = max_new_tokens
        while any(completion.finish_reason is None for completion in self.completions):
            state, block, _ = decode(
                self.model,
                self.params,
                state,
                settings,
                stop_tokens=np.array(STOP_TOKENS),
                count=min(BLOCK, remaining),
                stop_after_rows=len(prompts),
            )
            self._cache = state.cache
            for row, tokens in enumerate(np.asarray(block)):
                if self.completions[row].finish_reason is None:
                    piece = self._extend(row, tokens[tokens >= 0].tolist(), remaining, texts[row])
                    if piece:
                        yield row, piece
            remaining -= BLOCK
        for row, completion in enumerate(self.completions):
            piece = texts[row].push([], final=True)
            completion.text += piece
            if piece:
                yield row, piece

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingParams,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """Continue all `prompts` to their end. Arguments and errors: as `stream`."""
        for _ in self.stream(prompts, settings, max_new_tokens=max_new_tokens, stop=stop):
            pass
        return self.completions

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        context = self.config.context
        for prompt in prompts:
            if not 0 < len(prompt) <= context:
                raise InputError(
                    f"the prompt has {len(prompt)} tokens, "
                    f"this model takes 1 to {context}: shorten it"
                )
        if max_new_tokens < 0:
            raise InputError(f"max-new-tokens {max_new_tokens} is negative: expected 0 or more")

    def _extend(self, row: int, new_tokens: list[int], max_tokens: int, text: TextStream) -> str:
        """Add the tokens of a block to a row's completion; returns the new text."""
        completion = self.completions[row]
        tokens, finish_reason = accept_tokens(
            new_tokens,
            length=len(self.ids[row]),
            max_tokens=max_tokens,
            context=self.config.context,
        )
        self.ids[row] += new_tokens
        piece = text.push(tokens)
        completion.text += piece
        completion.tokens += [token for token in tokens if token < END_OF_TEXT]
        completion.finish_reason = "stop" if text.stopped else finish_reason
        return piece

    def _grow_cache(self, length: int) -> None:
        """Make the cache hold `length` tokens, and few more: every token reads all of it."""
        present = self._cache[0].k.shape[2]
        wanted = min(max(next_power_of_two(length), MIN_CACHE), self.config.context)
        if wanted > present:
            widths = ((0, 0), (0, 0), (0, wanted - present), (0, 0))
            self._cache = self._device_put(jax.tree.map(lambda a: jnp.pad(a, widths), self._cache))

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> DecodeState:
        """Add the tokens of the prompts that the cache lacks, except the last of each prompt."""
        known = min(
            common_prefix_length(old[:-1], new[:-1])
            for old, new in zip(self.ids, prompts, strict=True)
        )
        length = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
        width = min(next_power_of_two(int(length.max()) - known), self.config.context)
        tokens = np.zeros((len(prompts), width), np.int32)
        occurrences = Occurrences.none(len(prompts), self.config)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt) - 1 - known] = prompt[known:-1]
            occurrences.in_prompt[row, list(prompt)] = True
        start = np.full(len(prompts), known, np.int32)
        self._cache = prefill(self.model, self.params, self._cache, tokens, start)
        self.ids = [list(prompt) for prompt in prompts]
        last = np.array([prompt[-1] for prompt in prompts], np.int32)
        done = length + 1 >= self.config.context
        # On the device, like the results of `decode`: with host arrays it would be compiled twice.
        return DecodeState(self._cache, *self._device_put((last, length, occurrences, done)))


def common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many elements two sequences have in common at their beginning."""
    limit = min(len(one), len(other))
    return next((i for i in range(limit) if one[i] != other[i]), limit)


def next_power_of_two(length: int) -> int:
    """The power of two, from 16 on, that is not below `length`: few shapes to compile."""
    return max(16, 1 << (length - 1).bit_length())
