"""From weights to text: prefill a prompt, decode in one compiled loop, and hand out pieces of text that never break.

The loop runs a block of tokens per dispatch. All randomness of a row is a function of (its seed, the position it
draws for), so a text depends neither on what else is in the batch nor on where blocks begin.
"""

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.loss import live
from minigpt_jax.loss import logits as vocabulary_logits
from minigpt_jax.model import GPT, LANES, Cache, GPTConfig, empty_cache, product_dtype, unstack
from minigpt_jax.quantize import products, quantized
from minigpt_jax.tokenizer import END, END_OF_TEXT, Tokenizer

Array = jax.Array | np.ndarray
SLOTS = 256  # tokens that a cache holds at least, where the context has as many
BLOCK = 16  # tokens per dispatch: below what a reader notices, far above what a dispatch costs


class Sampling(NamedTuple):
    """How each row draws its tokens."""

    temperature: Array  # [B] f32; 0: always the most likely
    top_k: Array  # [B] int32; only the k most likely; padded V: all
    top_p: Array  # [B] f32; the fewest whose probabilities reach p (Holtzman et al. 2020); 1: all
    min_p: Array  # [B] f32; at least this share of the most likely one's probability; 0: all
    penalty: Array  # [B] f32; logits of tokens already in the text divided (or multiplied) by it (Keskar et al. 2019)
    seed: Array  # [B] uint32


def sampling(
    rows: int,
    config: GPTConfig,
    *,
    temperature=1.0,
    top_k: int | None = None,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    seed: int = 0,
) -> Sampling:
    """The same settings for `rows` rows, seeds counting up from `seed`. Raises InputError for values out of range."""
    vocab = config.vocab_size
    k = vocab if top_k is None else top_k
    for name, value, low, high in (
        ("temperature", temperature, 0, 100),
        ("top-k", k, 1, vocab),
        ("top-p", top_p, 0, 1),
        ("min-p", min_p, 0, 1),
        ("repetition penalty", repetition_penalty, 0.01, 100),
        ("seed", seed, 0, 2**32 - rows),
    ):
        if not (math.isfinite(value) and low <= value <= high):
            raise InputError(
                f"{name} {value} is out of range: expected a number from {low} to {high}"
            )
    if top_p == 0:
        raise InputError("top-p 0 would leave no token: expected a number above 0, up to 1")
    seeds = np.arange(seed, seed + rows, dtype=np.uint32)
    heat, nucleus, least, penalty = (
        np.full(rows, value, np.float32)
        for value in (temperature, top_p, min_p, repetition_penalty)
    )
    # "All" counts the padded rows too, or every row would look as if it were narrowed.
    return Sampling(
        heat,
        np.full(rows, k if k < vocab else config.padded_vocab, np.int32),
        nucleus,
        least,
        penalty,
        seeds,
    )


def sample_logits(
    scores: jax.Array, settings: Sampling, seen: jax.Array, positions: jax.Array
) -> jax.Array:
    """[B] int32 tokens drawn from `scores` [B, V] for `positions` [B]; `seen` [B, V]: tokens that are penalised.

    Gumbel-max: the noise belongs to (seed, position, token), so filters that keep everything change nothing.
    """
    penalty = settings.penalty[:, None]
    scores = jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)
    greedy = _first_best(scores)
    temperature = settings.temperature[:, None]

    def draw():
        heated = scores / jnp.where(temperature > 0, temperature, 1)
        keys = jax.vmap(lambda s, p: jax.random.fold_in(jax.random.key(s), p))(
            settings.seed, positions
        )
        noise = jax.vmap(lambda k: jax.random.gumbel(k, scores.shape[1:]))(keys)
        unlikely = heated < heated.max(-1, keepdims=True) + jnp.log(settings.min_p)[:, None]
        heated = jnp.where(unlikely, -jnp.inf, heated)
        narrow = (settings.top_k < scores.shape[-1]) | (settings.top_p < 1)
        kept = jax.lax.cond(jnp.any(narrow), lambda: _narrow(heated, settings), lambda: heated)
        return _first_best(kept + noise)

    drawn = jax.lax.cond(jnp.any(settings.temperature > 0), draw, lambda: greedy)
    return jnp.where(settings.temperature > 0, drawn, greedy)


def _first_best(scores):
    """[B] int32, argmax of numbers: the best group of tokens, then the best within. On a CPU one argmax of all takes five times as long."""
    groups = scores.reshape(len(scores), -1, LANES)
    group = jnp.argmax(groups.max(-1), axis=-1)
    within = jnp.argmax(groups[jnp.arange(len(scores)), group], axis=-1)
    return (group * LANES + within).astype(jnp.int32)


def _narrow(scores, settings):
    """-inf for all but the top k and, of these, the top p. A row that wants all keeps all, whatever the others want."""
    everything = (settings.top_k >= scores.shape[-1])[:, None]
    ones = jnp.ones_like(scores)

    def top_k():
        return jnp.where(
            everything | _leading(scores, ones, jnp.where(everything[:, 0], 1, settings.top_k)),
            scores,
            -jnp.inf,
        )

    scores = jax.lax.cond(jnp.all(everything), lambda: scores, top_k)
    whole = (settings.top_p >= 1)[:, None]

    def top_p():
        return jnp.where(
            whole | _leading(scores, jax.nn.softmax(scores, axis=-1), settings.top_p),
            scores,
            -jnp.inf,
        )

    return jax.lax.cond(jnp.all(whole), lambda: scores, top_p)


def _leading(scores, weights, goal):
    """[B, V] bool: the first tokens in falling order of `scores` whose `weights` [B, V] reach `goal` [B]; of equals the first ones.

    By bisection on the score of the last one, bit by bit: sorting a vocabulary on a CPU takes longer than the model does.
    """
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))  # sorts as the numbers do

    def lift(i, edge):
        higher = edge | (jnp.uint32(1 << 31) >> i)
        reached = jnp.where(order >= higher[:, None], weights, 0).sum(-1) >= goal
        return jnp.where(reached, higher, edge)

    edge = jax.lax.fori_loop(
        jnp.uint32(0), jnp.uint32(32), lift, jnp.zeros(len(scores), jnp.uint32)
    )[:, None]
    above, equal = order > edge, order == edge
    missing = goal[:, None] - jnp.where(above, weights, 0).sum(-1, keepdims=True)

    def first():
        share = jnp.where(equal, weights, 0)
        # One alone is in whatever `missing` rounds to: what a row keeps must not depend on ties in other rows.
        alone = equal.sum(-1, keepdims=True) == 1
        return equal & (alone | (jnp.cumsum(share, axis=-1) - share < missing))

    return above | jax.lax.cond(jnp.any(equal.sum(-1) > 1), first, lambda: equal)


def prepare(
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
    model = GPT(config, dtype=dtype or product_dtype(), attention="xla")

    def held(path, a):
        # Matrices in the precision of the products: every token reads all of them, and a cast would read them in f32 each time.
        return a.astype(model.dtype) if path[-1].key in ("kernel", "wte", "wpe") else a

    single = unstack(params)
    return model, quantized(single) if quantize else jax.tree_util.tree_map_with_path(held, single)


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


class Likely(NamedTuple):
    """Log-probabilities as the model gives them, before temperature and filters."""

    drawn: jax.Array  # [B, BLOCK] f32, of the drawn tokens
    ids: jax.Array  # [B, BLOCK, top] int32, the most likely tokens, falling
    values: jax.Array  # [B, BLOCK, top] f32, theirs


@partial(jax.jit, static_argnums=(0, 7, 8), donate_argnums=2)
def decode(
    model: GPT,
    params,
    state: Decoding,
    settings: Sampling,
    stop_tokens,
    count,
    enough,
    top: int = 0,
    slots: int | None = None,
) -> tuple[Decoding, jax.Array, Likely | None]:
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
        Likely(jnp.zeros(shape), jnp.zeros((*shape, top), jnp.int32), jnp.zeros((*shape, top)))
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


def _likely(scores, token, top: int) -> Likely:
    """Of one token a row: `drawn` [B], `ids` and `values` [B, top]."""
    rows, norm = jnp.arange(len(scores)), jax.nn.logsumexp(scores, axis=-1)

    def best(rest, _):
        # One maximum after the other: a handful of them costs a CPU less than any sort.
        id = _first_best(rest)
        return rest.at[rows, id].set(-jnp.inf), (id, rest[rows, id] - norm)

    _, (ids, values) = jax.lax.scan(best, scores, length=top)
    return Likely(scores[rows, token] - norm, ids.T, values.T)


def forward(model: GPT, params, tokens, positions, cache: Cache) -> tuple[jax.Array, Cache]:
    """Hidden states [B, T, D] of `tokens` [B, T] at `positions` [B, T], and the cache with them in it; `params` of `prepare`."""
    with nn.intercept_methods(products):
        return model.apply({"params": params}, tokens, positions, cache=cache)  # pyright: ignore[reportReturnType]


def next_logits(hidden: jax.Array, params: dict, vocab_size: int) -> jax.Array:
    """[..., V] logits of `hidden` [..., D], whatever form the table has."""
    return (
        live(params["head"].product(hidden), vocab_size)
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
class Answer:
    """What one row wrote. `reason`: "stop" (it ended by itself or at a stop string) or "length"."""

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
        """`rows`: texts written at a time. The others: `prepare`."""
        self.config, self.tokenizer, self.rows = config, tokenizer, rows
        self.model, self.params = prepare(params, config, dtype, quantize)
        self._place = partial(jax.device_put, device=jax.tree.leaves(params)[0].sharding)
        self._cache = self._place(empty_cache(config, rows, self.model.dtype, 0))
        self.ids: list[list[int]] = [
            [] for _ in range(rows)
        ]  # of all texts, prompts included; the cache holds all but the last

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Sampling,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> Iterator[tuple[int, str]]:
        """Yield (row, piece of text) as `prompts` (one a row, ids) are continued; then `answers` holds the whole.

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
        self.answers = [Answer("", [], "length") for _ in prompts]
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
            for row, answer in enumerate(self.answers):
                if not finished[row]:
                    piece, finished[row] = self._take(tokens[row], answer, texts[row], row)
                    if piece:
                        yield row, piece
        for row, answer in enumerate(self.answers):
            piece = texts[row].push([], final=True)
            answer.text += piece
            if piece:
                yield row, piece

    def _take(
        self, tokens: np.ndarray, answer: Answer, text: TextStream, row: int
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
            min(max(_bucket(length), SLOTS), self.config.context),
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
