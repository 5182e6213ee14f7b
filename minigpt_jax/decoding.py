"""The compiled programs of text generation: prefill a prompt, decode a block, score a prompt.

The randomness of a row is a function of (its seed, the position of the token), so its tokens depend
neither on the other rows of the batch nor on where blocks begin.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int32

from minigpt_jax import hardware
from minigpt_jax.architectures import AnyModel, make_model, output_head
from minigpt_jax.attention import KVCache
from minigpt_jax.errors import InputError
from minigpt_jax.hardware import resolve_compute_dtype
from minigpt_jax.layers import Cache
from minigpt_jax.loss import cap_logits, mask_padded_vocab
from minigpt_jax.loss import logits as vocabulary_logits
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.quantize import int8_linear_interceptor, quantize_params
from minigpt_jax.sampling import (
    AnyArray,
    Occurrences,
    SamplingParams,
    argmax_by_groups,
    sample_logits,
)

# Tokens per dispatch: few enough to show text without a visible delay, and enough that the cost of
# a dispatch does not matter.
BLOCK = 16
# Tokens of a prompt that are scored at a time: their logits have 13 MB with GPT-2's vocabulary.
_SCORED_AT_ONCE = 64


def empty_cache(
    config: GPTConfig, batch: int, dtype: DTypeLike, length: int | None = None
) -> Cache:
    """A cache in host memory for `batch` rows of `length` (default: the context) tokens each."""
    slots = config.context if length is None else length
    shape = (batch, config.heads, slots, config.head_dim)
    dtype = jnp.dtype(dtype)
    return tuple(
        KVCache(np.zeros(shape, dtype), np.zeros(shape, dtype)) for _ in range(config.layers)
    )


def unstack(params: dict) -> dict:
    """The parameters that a model takes with a cache: "layer_0" and so on, not "layers"."""
    stack = params["layers"]
    count = len(jax.tree.leaves(stack)[0])
    layers = {f"layer_{i}": jax.tree.map(lambda a, i=i: a[i], stack) for i in range(count)}
    return {name: value for name, value in params.items() if name != "layers"} | layers


def prepare_for_decoding(
    params: dict,
    config: GPTConfig,
    dtype: jax.typing.DTypeLike | None = None,
    quantize: str | None = None,
) -> tuple[AnyModel, dict]:
    """The model and its parameters in the form that `prefill` and `decode` take.

    `dtype`: f32 on a CPU, bf16 elsewhere, unless given. `quantize`: "int8" for matrices of 8-bit
    integers (quantize.py). Raises InputError for another value.
    """
    if quantize not in (None, "int8"):
        raise InputError(f"quantize {quantize}: expected int8")
    model = make_model(config, dtype=dtype or resolve_compute_dtype(), attention="xla")
    params = unstack(params)
    if quantize:
        return model, quantize_params(params)

    def cast(path, array):
        # LayerNorm computes in f32.
        is_norm = any(key.key.startswith("ln_") for key in path)
        return array if is_norm else array.astype(model.dtype)

    # Every token reads all weights; cast here, they are not cast for each token again.
    return model, jax.tree_util.tree_map_with_path(cast, params)


class DecodeState(NamedTuple):
    """What the decode loop carries from token to token, for B rows."""

    # Keys and values of all tokens of a row but the last.
    cache: Cache
    # The last token of each row.
    last: Int32[Array, " B"]
    # Tokens in the cache.
    length: Int32[Array, " B"]
    # Those before this block of tokens.
    occurrences: Occurrences
    # Rows that have ended: they get no more tokens.
    done: Bool[Array, " B"]


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(
    model: AnyModel,
    params: dict,
    cache: Cache,
    tokens: Int[Array, "B T"],
    start: Int[Array, " B"],
) -> Cache:
    """Add `tokens` to the cache, at the positions from `start` on.

    No logits: `decode` begins with the last token of the prompt. Rows are padded on the right; what
    padding writes is overwritten before a query can attend to it.
    """
    # A mask silences old contents only if they are numbers: 0 x NaN is NaN.
    kept = jnp.arange(cache[0].k.shape[2])[None] < start[:, None]
    cache = jax.tree.map(lambda a: jnp.where(kept[:, None, :, None], a, 0), cache)
    positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
    return forward(model, params, tokens, positions, cache)[1]


class TopLogprobs(NamedTuple):
    """Log-probabilities by the model alone, before temperature and filters; N = `num_logprobs`."""

    # Of the drawn or given tokens.
    chosen: Float[Array, "*tokens"]
    # The N most likely tokens, the most likely one first.
    ids: Int32[Array, "*tokens N"]
    # Their log-probabilities.
    values: Float[Array, "*tokens N"]


@partial(
    jax.jit,
    static_argnames=("model", "num_logprobs", "cache_length"),
    donate_argnames="state",
)
def decode(
    model: AnyModel,
    params: dict,
    state: DecodeState,
    settings: SamplingParams,
    stop_tokens: Int[Array, " E"],
    count: Int[Array, ""],
    stop_after_rows: Int[Array, ""],
    num_logprobs: int = 0,
    cache_length: int | None = None,
) -> tuple[DecodeState, Int32[Array, "B BLOCK"], TopLogprobs | None]:
    """Draw up to `count` (at most BLOCK) tokens per row.

    Returns the state after them and the tokens, with -1 after the last of each row. A row is done
    after a token of `stop_tokens`, which is returned too, or when its text fills the context. The
    loop ends as soon as `stop_after_rows` rows are done, those done at its start included.

    `num_logprobs`: return the log-probabilities of the drawn and of so many most likely tokens, if
    above 0. `cache_length`: attend to so many positions of the cache only, which must be enough
    for these rows (default: all).
    """
    loop = partial(
        _decode_loop, model, params, stop_tokens, count, stop_after_rows, num_logprobs, cache_length
    )
    if len(state.length) > 1 or hardware.this_device().platform != "gpu":
        return loop(state, settings)
    # For a GPU, XLA compiles vector times matrix to kernels of its own, some of which fill a few
    # percent of the device, and LayerNorm of one row to three kernels instead of one. So the row is
    # there twice; both do the same. (By the compiled program, not yet timed.)
    twice = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), (state, settings))
    return jax.tree.map(lambda a: a[:1], loop(*twice))


def _decode_loop(
    model: AnyModel,
    params: dict,
    stop_tokens: Int[Array, " E"],
    count: Int[Array, ""],
    stop_after_rows: Int[Array, ""],
    num_logprobs: int,
    cache_length: int | None,
    state: DecodeState,
    settings: SamplingParams,
) -> tuple[DecodeState, Int32[Array, "B BLOCK"], TopLogprobs | None]:
    whole_cache = state.cache
    state = state._replace(cache=jax.tree.map(lambda a: a[:, :, :cache_length], whole_cache))
    shape = (len(state.length), BLOCK)
    tokens = jnp.full(shape, -1, jnp.int32)
    logprobs = None
    if num_logprobs:
        ids = jnp.zeros((*shape, num_logprobs), jnp.int32)
        logprobs = TopLogprobs(jnp.zeros(shape), ids, jnp.zeros(ids.shape))

    def unfinished(carry):
        i, state, _, _ = carry
        return (i < count) & (state.done.sum() < stop_after_rows)

    def body(carry):
        i, state, tokens, logprobs = carry
        after, logits = _decode_token(model, params, state, settings, stop_tokens, tokens)
        tokens = tokens.at[:, i].set(jnp.where(state.done, -1, after.last))
        if logprobs is not None:
            new = _top_logprobs(logits, after.last, num_logprobs)
            logprobs = jax.tree.map(lambda block, value: block.at[:, i].set(value), logprobs, new)
        return i + 1, after, tokens, logprobs

    with jax.named_scope("decode"):
        carry = (0, state, tokens, logprobs)
        _, state, tokens, logprobs = jax.lax.while_loop(unfinished, body, carry)
    cache = jax.tree.map(
        lambda whole, part: whole.at[:, :, :cache_length].set(part), whole_cache, state.cache
    )
    occurrences = state.occurrences.with_drawn(tokens)
    return state._replace(cache=cache, occurrences=occurrences), tokens, logprobs


def _decode_token(
    model: AnyModel,
    params: dict,
    state: DecodeState,
    settings: SamplingParams,
    stop_tokens: Int[Array, " E"],
    recent: Int32[Array, "B BLOCK"],
) -> tuple[DecodeState, Float[Array, "B V"]]:
    """The state after one more token per row, and the logits that it was drawn from.

    `recent`: the tokens of this block so far, which the state's occurrences lack.
    """
    context = model.config.context
    # The position of a row that is done lies beyond the cache, so that nothing is written.
    position = jnp.where(state.done, context, state.length)
    hidden, cache = forward(model, params, state.last[:, None], position[:, None], state.cache)
    logits = next_logits(hidden[:, 0], params, model.config)
    token = sample_logits(logits, settings, state.occurrences, recent, state.length + 1)
    length = jnp.where(state.done, state.length, state.length + 1)
    done = state.done | jnp.isin(token, stop_tokens) | (length + 1 >= context)
    return DecodeState(cache, token, length, state.occurrences, done), logits


@partial(jax.jit, static_argnames=("model", "num_logprobs"))
def prompt_logprobs(
    model: AnyModel,
    params: dict,
    tokens: Int32[Array, " S"],
    length: Int[Array, ""],
    num_logprobs: int,
) -> TopLogprobs:
    """Log-probability of each of `tokens` after those before it, and the most likely ones there.

    The first `length` tokens are scored; the first one has none before it, so its values mean
    nothing. S is at most the context. The time depends on `length`, but there is one shape.
    """
    slots = len(tokens)
    chunk = min(_SCORED_AT_ONCE, slots)
    following = jnp.roll(tokens, -1)
    shape = (slots, num_logprobs)
    results = TopLogprobs(jnp.zeros(slots), jnp.zeros(shape, jnp.int32), jnp.zeros(shape))
    cache = jax.tree.map(jnp.asarray, empty_cache(model.config, 1, model.dtype, slots))

    def score_chunk(i, carry):
        cache, results = carry
        # The last chunk may begin inside the one before it: it computes the same there again.
        start = jnp.minimum(i * chunk, slots - chunk)
        part = jax.lax.dynamic_slice_in_dim(tokens, start, chunk)
        positions = start + jnp.arange(chunk)
        hidden, cache = forward(model, params, part[None], positions[None], cache)
        targets = jax.lax.dynamic_slice_in_dim(following, start, chunk)
        new = _top_logprobs(next_logits(hidden[0], params, model.config), targets, num_logprobs)
        update = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return cache, jax.tree.map(update, results, new)

    # The last token is not followed by any.
    chunks = (length - 1 + chunk - 1) // chunk
    _, results = jax.lax.fori_loop(0, chunks, score_chunk, (cache, results))
    return jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), results)


@jax.named_scope("top_logprobs")
def _top_logprobs(
    logits: Float[Array, "B V"], token: Int32[Array, " B"], count: int
) -> TopLogprobs:
    """Those of one token per row."""
    rows = jnp.arange(len(logits))
    norm = jax.nn.logsumexp(logits, axis=-1)

    def take_best(rest, _):
        # One maximum after the other: on a CPU, a few of them take less time than a sort.
        id = argmax_by_groups(rest)
        return rest.at[rows, id].set(-jnp.inf), (id, rest[rows, id] - norm)

    _, (ids, values) = jax.lax.scan(take_best, logits, length=count)
    return TopLogprobs(logits[rows, token] - norm, ids.T, values.T)


def forward(
    model: AnyModel,
    params: dict,
    tokens: Int[AnyArray, "B T"],
    positions: Int[AnyArray, "B T"],
    cache: Cache,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Final hidden states of `tokens`, and the cache with them added.

    `params` are those of `prepare_for_decoding`.
    """
    with nn.intercept_methods(int8_linear_interceptor):
        result: Any = model.apply({"params": params}, tokens, positions, cache=cache)
    return result


def next_logits(
    hidden: Float[Array, "*batch D"], params: dict, config: GPTConfig
) -> Float[Array, "*batch V"]:
    """Logits of the next token. `params` are those of `prepare_for_decoding`."""
    if "head" in params:
        scores = cap_logits(params["head"].matmul(hidden), config.logit_cap)
        return mask_padded_vocab(scores, config.vocab_size)
    return vocabulary_logits(hidden, output_head(params), config.vocab_size, config.logit_cap)
