"""From weights to text: prefill a prompt, decode in one compiled loop, and hand out pieces of text that never break.

The loop runs a block of tokens per dispatch. All randomness of a row is a function of (its seed, the position it
draws for), so a text depends neither on what else is in the batch nor on where blocks begin.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.loss import logits as vocabulary_logits
from minigpt_jax.loss import mask_padded_vocab
from minigpt_jax.model import (
    GPT,
    Cache,
    GPTConfig,
    empty_cache,
    resolve_compute_dtype,
    unstack,
)
from minigpt_jax.quantize import int8_linear_interceptor, quantize_params
from minigpt_jax.sampling import SamplingParams, argmax_by_groups, sample_logits
from minigpt_jax.tokenizer import END, END_OF_TEXT, Tokenizer

MIN_CACHE = 256  # tokens that a cache holds at least, where the context has as many
BLOCK = 16  # tokens per dispatch: below what a reader notices, far above what a dispatch costs


def prepare_for_decoding(
    params: dict,
    config: GPTConfig,
    dtype: jax.typing.DTypeLike | None = None,
    quantize: str | None = None,
) -> tuple[GPT, dict]:
    """The model and its parameters as `prefill` and `decode` want them.

    `dtype`: f32 on a CPU, bf16 elsewhere, unless given. `quantize`: "int8" for matrices in eight bits (quantize.py).
    Raises InputError for another.
    """
    if quantize not in (None, "int8"):
        raise InputError(f"quantize {quantize}: expected int8")
    model = GPT(config, dtype=dtype or resolve_compute_dtype(), attention="xla")

    def held(path, a):
        # Matrices in the precision of the products: every token reads all of them, and a cast would read them in f32 each time.
        return a.astype(model.dtype) if path[-1].key in ("kernel", "wte", "wpe") else a

    single = unstack(params)
    return model, quantize_params(single) if quantize else jax.tree_util.tree_map_with_path(
        held, single
    )


class Decoding(NamedTuple):
    """What the decode loop carries from token to token."""

    cache: Cache  # of all tokens but the last
    last: jax.Array  # [B] int32, the last token of each row
    length: jax.Array  # [B] int32, tokens in the cache
    seen: jax.Array  # [B, V] bool
    done: jax.Array  # [B] bool


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(model: GPT, params, cache: Cache, tokens, start) -> Cache:
    """Add `tokens` [B, T] at positions `start` [B] on. No logits: `decode` begins with the last token of a prompt.

    Rows are padded on the right: what padding writes is overwritten before any query can see it.
    """
    positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
    return forward(model, params, tokens, positions, cache)[1]


class TopLogprobs(NamedTuple):
    """Log-probabilities as the model gives them, before temperature and filters."""

    drawn: jax.Array  # [B, BLOCK] f32, of the drawn tokens
    ids: jax.Array  # [B, BLOCK, top] int32, the most likely tokens, falling
    values: jax.Array  # [B, BLOCK, top] f32, theirs


@partial(jax.jit, static_argnums=(0, 7, 8), donate_argnums=2)
def decode(
    model: GPT,
    params,
    state: Decoding,
    settings: SamplingParams,
    stop_tokens,
    count,
    enough,
    top: int = 0,
    slots: int | None = None,
) -> tuple[Decoding, jax.Array, TopLogprobs | None]:
    """Draw up to `count` (at most BLOCK) tokens a row: the state after them, and the tokens [B, BLOCK], -1 behind the last.

    A row ends with a token of `stop_tokens` [E] (drawn and returned) or when its text fills the context; the loop, as soon as
    `enough` rows have, those that were done before included. `top`: above 0, log-probabilities too, of the drawn tokens and of so
    many of the most likely ones. `slots`: so many of the cache hold all that these rows will need; the others are not looked at.
    """
    context, rows, whole = model.config.context, jnp.arange(len(state.length)), state.cache
    state = state._replace(cache=jax.tree.map(lambda a: a[:, :, :slots], whole))

    def body(carry):
        i, state, (out, likely) = carry
        # A row that is done writes beyond the cache, which drops it.
        place = jnp.where(state.done, context, state.length)
        hidden, cache = forward(model, params, state.last[:, None], place[:, None], state.cache)
        scores = next_logits(hidden[:, 0], params, model.config.vocab_size)
        token = sample_logits(scores, settings, state.seen, state.length + 1)
        out = out.at[:, i].set(jnp.where(state.done, -1, token))
        if likely is not None:
            likely = jax.tree.map(
                lambda whole, new: whole.at[:, i].set(new), likely, _likely(scores, token, top)
            )
        seen = state.seen.at[rows, token].set(True)
        length = jnp.where(state.done, state.length, state.length + 1)
        done = state.done | jnp.isin(token, stop_tokens) | (length + 1 >= context)
        return i + 1, Decoding(cache, token, length, seen, done), (out, likely)

    shape = (len(state.length), BLOCK)
    likely = (
        TopLogprobs(jnp.zeros(shape), jnp.zeros((*shape, top), jnp.int32), jnp.zeros((*shape, top)))
        if top
        else None
    )
    start = (0, state, (jnp.full(shape, -1, jnp.int32), likely))
    _, state, (out, likely) = jax.lax.while_loop(
        lambda c: (c[0] < count) & (c[1].done.sum() < enough), body, start
    )
    state = state._replace(
        cache=jax.tree.map(lambda a, new: a.at[:, :, :slots].set(new), whole, state.cache)
    )
    return state, out, likely


def _likely(scores, token, top: int) -> TopLogprobs:
    """Of one token a row: `drawn` [B], `ids` and `values` [B, top]."""
    rows, norm = jnp.arange(len(scores)), jax.nn.logsumexp(scores, axis=-1)

    def best(rest, _):
        # One maximum after the other: a handful of them costs a CPU less than any sort.
        id = argmax_by_groups(rest)
        return rest.at[rows, id].set(-jnp.inf), (id, rest[rows, id] - norm)

    _, (ids, values) = jax.lax.scan(best, scores, length=top)
    return TopLogprobs(scores[rows, token] - norm, ids.T, values.T)


def forward(model: GPT, params, tokens, positions, cache: Cache) -> tuple[jax.Array, Cache]:
    """Hidden states [B, T, D] of `tokens` [B, T] at `positions` [B, T], and the cache with them in it; `params` of `prepare_for_decoding`."""
    with nn.intercept_methods(int8_linear_interceptor):
        return model.apply({"params": params}, tokens, positions, cache=cache)  # pyright: ignore[reportReturnType]


def next_logits(hidden: jax.Array, params: dict, vocab_size: int) -> jax.Array:
    """[..., V] logits of `hidden` [..., D], whatever form the table has."""
    return (
        mask_padded_vocab(params["head"].matmul(hidden), vocab_size)
        if "head" in params
        else vocabulary_logits(hidden, params["wte"], vocab_size)
    )


class TextStream:
    """Pieces of text from a stream of ids: no piece ends inside a letter or inside what may become a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._tokenizer, self._stop = tokenizer, [s for s in stop if s]
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def push(self, ids: Sequence[int], final: bool = False) -> str:
        """Text that `ids` completes, up to a stop string; `final`: nothing more will come."""
        if self.stopped:
            return ""
        self._held += self._utf8.decode(self._tokenizer.decode_bytes(ids), final)
        hits = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        self.stopped = bool(hits)
        cut = (
            min(hits)
            if hits
            else len(self._held)
            if final
            else len(self._held) - self._may_begin_stop()
        )
        piece, self._held = self._held[:cut], self._held[cut:]
        return piece

    def _may_begin_stop(self) -> int:
        sizes = (n for s in self._stop for n in range(1, len(s)) if self._held.endswith(s[:n]))
        return max(sizes, default=0)


@dataclass
class Completion:
    """The generated text of one row. `reason`: "stop" (it ended by itself or at a stop string) or "length"."""

    text: str
    tokens: list[int]
    reason: str


class Generator:
    """Weights and a cache that outlives a call: a prompt that begins like the last text costs only its new tokens."""

    def __init__(
        self,
        params,
        config: GPTConfig,
        tokenizer: Tokenizer,
        *,
        rows: int = 1,
        dtype=None,
        quantize: str | None = None,
    ):
        """`rows`: texts written at a time. The others: `prepare_for_decoding`."""
        self.config, self.tokenizer, self.rows = config, tokenizer, rows
        self.model, self.params = prepare_for_decoding(params, config, dtype, quantize)
        self._place = partial(jax.device_put, device=jax.tree.leaves(params)[0].sharding)
        self._cache = self._place(empty_cache(config, rows, self.model.dtype, 0))
        self.ids: list[list[int]] = [
            [] for _ in range(rows)
        ]  # of all texts, prompts included; the cache holds all but the last

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingParams,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> Iterator[tuple[int, str]]:
        """Yield (row, piece of text) as `prompts` (one a row, ids) are continued; then `completions` holds the whole.

        Ends a row at `<|end|>`, `<|endoftext|>`, a stop string, `max_new_tokens`, or the end of the context. Raises
        InputError for an empty prompt or one longer than the context.
        """
        context = self.config.context
        for prompt in prompts:
            if not 0 < len(prompt) <= context:
                raise InputError(
                    f"the prompt has {len(prompt)} tokens, this model takes 1 to {context}: shorten it"
                )
        if max_new_tokens < 0:
            raise InputError(f"max-new-tokens {max_new_tokens} is negative")
        texts = [TextStream(self.tokenizer, stop) for _ in prompts]
        self.completions = [Completion("", [], "length") for _ in prompts]
        self._make_room(max(map(len, prompts)) + max_new_tokens)
        state = self._start(prompts)
        stop_tokens = np.array([END, END_OF_TEXT])
        remaining, finished = max_new_tokens, [False] * len(prompts)
        while remaining > 0 and not all(finished):
            count = min(BLOCK, remaining)
            state, block, _ = decode(
                self.model, self.params, state, settings, stop_tokens, count, len(prompts)
            )
            self._cache = state.cache
            tokens = np.asarray(block)[:, :count]
            remaining -= count
            for row, answer in enumerate(self.completions):
                if not finished[row]:
                    piece, finished[row] = self._take(tokens[row], answer, texts[row], row)
                    if piece:
                        yield row, piece
        for row, answer in enumerate(self.completions):
            piece = texts[row].push([], final=True)
            answer.text += piece
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

    def _take(
        self, tokens: np.ndarray, answer: Completion, text: TextStream, row: int
    ) -> tuple[str, bool]:
        """Add a row's share of a block to its answer: the new text, and whether the row has ended."""
        live = [int(t) for t in tokens if t >= 0]
        self.ids[row] += live
        ended = bool(live) and live[-1] in (END, END_OF_TEXT)
        words = [t for t in live if t < END_OF_TEXT]
        piece = text.push(words)
        answer.text += piece
        answer.tokens += words
        if ended or text.stopped:
            answer.reason = "stop"
        full = len(live) < len(tokens) or len(self.ids[row]) >= self.config.context
        return piece, ended or text.stopped or full

    def _make_room(self, length: int) -> None:
        """Lengthen the cache to hold `length` tokens: every token reads all of it, so it is no longer than it must be."""
        slots, wanted = (
            self._cache[0].k.shape[2],
            min(max(_bucket(length), MIN_CACHE), self.config.context),
        )
        if wanted > slots:
            self._cache = self._place(
                jax.tree.map(
                    lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, wanted - slots), (0, 0))), self._cache
                )
            )

    def _start(self, prompts: Sequence[Sequence[int]]) -> Decoding:
        context, vocab = self.config.context, self.config.padded_vocab
        known = min(
            _common(old[:-1], list(new[:-1])) for old, new in zip(self.ids, prompts, strict=True)
        )
        cached = np.array(
            [len(p) - 1 for p in prompts], np.int32
        )  # tokens of each after the prefill
        width = min(_bucket(int(cached.max()) - known), context)
        tokens, seen = (
            np.zeros((len(prompts), width), np.int32),
            np.zeros((len(prompts), vocab), bool),
        )
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt) - 1 - known] = prompt[known:-1]
            seen[row, list(prompt)] = True
        self._cache = prefill(
            self.model, self.params, self._cache, tokens, np.full(len(prompts), known, np.int32)
        )
        self.ids = [list(p) for p in prompts]
        last = np.array([p[-1] for p in prompts], np.int32)
        # Placed like what the decode loop returns: arrays of the host would have it compiled a second time.
        return Decoding(self._cache, *self._place((last, cached, seen, cached + 1 >= context)))


def _common(old: Sequence[int], new: Sequence[int]) -> int:
    limit = min(len(old), len(new))
    return next((i for i in range(limit) if old[i] != new[i]), limit)


def _bucket(length: int) -> int:
    """The next power of two from 16 on: few shapes to compile."""
    return max(16, 1 << (length - 1).bit_length())
