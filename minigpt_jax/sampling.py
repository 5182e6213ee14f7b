"""Draw tokens from logits: temperature, top-k, top-p, min-p, penalties and a bias.

The randomness of a row is a function of (its seed, the position of the token), so a token does not
depend on the other rows of a batch.

Nothing here sorts the vocabulary: on a CPU that takes longer than a small model does. Top-k and
top-p are found by bisection.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Real, UInt32

from minigpt_jax import hardware
from minigpt_jax.errors import InputError
from minigpt_jax.model_config import VOCAB_MULTIPLE, GPTConfig

AnyArray = jax.Array | np.ndarray

# Tokens of a row that may have a bias: a fixed number, so that it is no further shape to compile.
MAX_BIASED = 300


class SamplingParams(NamedTuple):
    """How each of B rows draws its tokens."""

    # 0: always the most likely token.
    temperature: Float[AnyArray, " B"]
    # Only the k most likely tokens; padded V: all.
    top_k: Int32[AnyArray, " B"]
    # The smallest set of tokens whose probabilities reach p (Holtzman et al. 2020); 1: all.
    top_p: Float[AnyArray, " B"]
    # Only tokens with at least this share of the highest probability; 0: all.
    min_p: Float[AnyArray, " B"]
    # Logits of tokens already in the text are divided by it, negative ones multiplied
    # (Keskar et al. 2019); 1: off.
    repetition_penalty: Float[AnyArray, " B"]
    # Subtracted from the logits of tokens that were drawn before; 0: off.
    presence_penalty: Float[AnyArray, " B"]
    # The same, multiplied by how often each was drawn.
    frequency_penalty: Float[AnyArray, " B"]
    # Added to the logits of the tokens `bias_ids`.
    bias: Float[AnyArray, "B N"]
    # Ids of the padded V and above: no token.
    bias_ids: Int32[AnyArray, "B N"]
    # What a row draws depends on its own seed alone.
    seed: UInt32[AnyArray, " B"]


class Occurrences(NamedTuple):
    """Which tokens are in each of B texts: what the penalties apply to."""

    in_prompt: Bool[AnyArray, "B V"]
    # How often each token was drawn.
    drawn: Int32[AnyArray, "B V"]

    @classmethod
    def none(cls, rows: int, config: GPTConfig) -> "Occurrences":
        """Those of empty texts, in host memory."""
        shape = (rows, config.padded_vocab)
        return cls(np.zeros(shape, bool), np.zeros(shape, np.int32))

    def with_drawn(self, tokens: Int32[AnyArray, "B N"]) -> "Occurrences":
        """Those after `tokens` were drawn too; -1: none."""
        rows = jnp.arange(len(tokens))[:, None]
        ids = jnp.where(tokens < 0, self.drawn.shape[1], tokens)
        return self._replace(drawn=jnp.asarray(self.drawn).at[rows, ids].add(1, mode="drop"))


def sampling_params(
    rows: int,
    config: GPTConfig,
    *,
    temperature: int | float = 1.0,
    top_k: int | None = None,
    top_p: int | float = 1.0,
    min_p: int | float = 0.0,
    repetition_penalty: int | float = 1.0,
    presence_penalty: int | float = 0.0,
    frequency_penalty: int | float = 0.0,
    logit_bias: Mapping[int, int | float] | None = None,
    seed: int = 0,
) -> SamplingParams:
    """The same settings for `rows` rows; row i has seed `seed` + i.

    What each setting does: see SamplingParams. `top_k` None: all tokens. `logit_bias`: of up to
    MAX_BIASED token ids. Raises InputError for values out of range.
    """
    vocab = config.vocab_size
    k = vocab if top_k is None else top_k
    for name, value, low, high in (
        ("temperature", temperature, 0, 100),
        ("top-k", k, 1, vocab),
        ("top-p", top_p, 0, 1),
        ("min-p", min_p, 0, 1),
        ("repetition penalty", repetition_penalty, 0.01, 100),
        ("presence penalty", presence_penalty, -2, 2),
        ("frequency penalty", frequency_penalty, -2, 2),
        ("seed", seed, 0, 2**32 - rows),
    ):
        if not (math.isfinite(value) and low <= value <= high):
            raise InputError(
                f"{name} {value} is out of range: expected a number from {low} to {high}"
            )
    if top_p == 0:
        raise InputError("top-p 0 would leave no token: expected a number above 0, up to 1")
    bias_ids, bias = _bias_arrays(logit_bias or {}, config)
    return SamplingParams(
        temperature=np.full(rows, temperature, np.float32),
        # The padded size, so that `filter_top_k_top_p` sees that nothing is filtered.
        top_k=np.full(rows, k if k < vocab else config.padded_vocab, np.int32),
        top_p=np.full(rows, top_p, np.float32),
        min_p=np.full(rows, min_p, np.float32),
        repetition_penalty=np.full(rows, repetition_penalty, np.float32),
        presence_penalty=np.full(rows, presence_penalty, np.float32),
        frequency_penalty=np.full(rows, frequency_penalty, np.float32),
        bias=np.tile(bias, (rows, 1)),
        bias_ids=np.tile(bias_ids, (rows, 1)),
        seed=np.arange(seed, seed + rows, dtype=np.uint32),
    )


def _bias_arrays(
    logit_bias: Mapping[int, int | float], config: GPTConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The ids and values of a bias, filled up to MAX_BIASED. Raises InputError."""
    if len(logit_bias) > MAX_BIASED:
        raise InputError(f"{len(logit_bias)} tokens have a bias: expected at most {MAX_BIASED}")
    for id, value in logit_bias.items():
        if not 0 <= id < config.vocab_size:
            largest = config.vocab_size - 1
            raise InputError(f"bias of token {id}: expected an id from 0 to {largest}")
        if not (math.isfinite(value) and -100 <= value <= 100):
            raise InputError(f"bias {value} of token {id} is out of range: expected -100 to 100")
    ids = np.full(MAX_BIASED, config.padded_vocab, np.int32)
    values = np.zeros(MAX_BIASED, np.float32)
    ids[: len(logit_bias)] = list(logit_bias.keys())
    values[: len(logit_bias)] = list(logit_bias.values())
    return ids, values


@jax.named_scope("sampling")
def sample_logits(
    logits: Float[AnyArray, "B V"],
    settings: SamplingParams,
    occurrences: Occurrences,
    recent: Int32[AnyArray, "B N"],
    positions: Int[AnyArray, " B"],
) -> Int32[Array, " B"]:
    """Draw one token per row for `positions`.

    `recent`: tokens drawn since `occurrences`, -1 for none. They are counted only where a penalty
    needs it: on a CPU, to change one element of [B, V] copies them all.

    Gumbel-max: the noise is a function of (seed, position, token), so filters that keep everything
    change nothing.
    """
    unchanged = jnp.asarray(logits)
    changes = (
        (settings.repetition_penalty != 1)
        | (settings.presence_penalty != 0)
        | (settings.frequency_penalty != 0)
        | jnp.any(settings.bias != 0, axis=-1)
    )
    scores = jax.lax.cond(
        jnp.any(changes),
        lambda: biased_and_penalized(unchanged, settings, occurrences.with_drawn(recent)),
        lambda: unchanged,
    )
    greedy = argmax_by_groups(scores)

    def draw():
        temperature = settings.temperature[:, None]
        scaled = scores / jnp.where(temperature > 0, temperature, 1)
        noise = jax.vmap(_gumbel_noise, (0, 0, None))(settings.seed, positions, scores.shape[1])
        least = scaled.max(-1, keepdims=True) + jnp.log(settings.min_p)[:, None]
        scaled = jnp.where(scaled < least, -jnp.inf, scaled)
        filtered = (settings.top_k < scores.shape[-1]) | (settings.top_p < 1)
        kept = jax.lax.cond(
            jnp.any(filtered), lambda: filter_top_k_top_p(scaled, settings), lambda: scaled
        )
        return argmax_by_groups(kept + noise)

    drawn = jax.lax.cond(jnp.any(settings.temperature > 0), draw, lambda: greedy)
    return jnp.where(settings.temperature > 0, drawn, greedy)


def biased_and_penalized(
    logits: Float[Array, "B V"], settings: SamplingParams, occurrences: Occurrences
) -> Float[Array, "B V"]:
    """The logits with the bias, then the repetition penalty, then the two others, as in vLLM.

    A row whose settings are neutral is not changed, whatever those of the other rows are.
    """
    rows = jnp.arange(len(logits))[:, None]
    logits = logits.at[rows, settings.bias_ids].add(settings.bias, mode="drop")
    penalty = settings.repetition_penalty[:, None]
    lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
    was_drawn = occurrences.drawn > 0
    logits = jnp.where(occurrences.in_prompt | was_drawn, lowered, logits)
    return (
        logits
        - settings.presence_penalty[:, None] * was_drawn
        - settings.frequency_penalty[:, None] * occurrences.drawn
    )


def _gumbel_noise(seed, position, vocab: int) -> Float[Array, " V"]:
    return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), (vocab,))


def argmax_by_groups(scores: Float[Array, "B V"]) -> Int32[Array, " B"]:
    """The argmax of each row: the best group of tokens first, then the best token in that group.

    On a CPU one argmax over the vocabulary takes five times as long.
    """
    groups = scores.reshape(len(scores), -1, VOCAB_MULTIPLE)
    group = jnp.argmax(groups.max(-1), axis=-1)
    within = jnp.argmax(groups[jnp.arange(len(scores)), group], axis=-1)
    return (group * VOCAB_MULTIPLE + within).astype(jnp.int32)


def filter_top_k_top_p(
    logits: Float[Array, "B V"], settings: SamplingParams
) -> Float[Array, "B V"]:
    """-inf for all but the top k and, of these, the top p.

    A row that keeps everything is not changed, whatever the settings of the other rows.
    """
    bits = bits_per_round(len(logits), hardware.this_device().platform)
    keeps_all_k = settings.top_k >= logits.shape[-1]
    keeps_all_p = settings.top_p >= 1

    def top_k():
        count = jnp.where(keeps_all_k, 1, settings.top_k)
        kept = smallest_leading_set(logits, jnp.ones_like(logits), count, bits)
        return jnp.where(keeps_all_k[:, None] | kept, logits, -jnp.inf)

    logits = jax.lax.cond(jnp.all(keeps_all_k), lambda: logits, top_k)

    def top_p():
        probabilities = jax.nn.softmax(logits, axis=-1)
        kept = smallest_leading_set(logits, probabilities, settings.top_p, bits)
        return jnp.where(keeps_all_p[:, None] | kept, logits, -jnp.inf)

    return jax.lax.cond(jnp.all(keeps_all_p), lambda: logits, top_p)


def bits_per_round(rows: int, platform: str) -> int:
    """The argument for `smallest_leading_set`: by arithmetic, not yet timed on a GPU.

    A round reads the scores 2**bits - 1 times, which is what takes time on a CPU and for many rows.
    For few rows on a GPU the three kernels that a round consists of should take longer.
    """
    if platform != "gpu":
        return 1
    return 4 if rows <= 8 else 2


def smallest_leading_set(
    scores: Float[Array, "B V"],
    weights: Float[Array, "B V"],
    goal: Real[AnyArray, " B"],
    bits: int,
) -> Bool[Array, "B V"]:
    """The tokens, in falling order of `scores`, until the sum of their `weights` reaches `goal`.

    Of equal scores the first ones are taken. The score of the last token of the set is found by
    bisection over the bits of a float, `bits` in each round.
    """
    sign = jnp.uint32(1 << 31)
    as_integers = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    # Unsigned integers in the same order as the scores.
    order = jnp.where(as_integers >= sign, ~as_integers, as_integers | sign)
    digits = jnp.arange(1, 2**bits, dtype=jnp.uint32)[None]

    def set_digit(i, last):
        shift = 32 - bits * (i + 1)
        candidates = last[:, None] | (digits << shift)
        in_set = order[:, None] >= candidates[:, :, None]
        reached = jnp.where(in_set, weights[:, None], 0).sum(-1) >= goal[:, None]
        # With a digit every smaller one is reached, so their number is the largest.
        return last | (reached.sum(-1, dtype=jnp.uint32) << shift)

    nothing = jnp.zeros(len(scores), jnp.uint32)
    # Not unrolled, each round would wait for the host of a GPU.
    rounds = np.uint32(32 // bits)
    last = jax.lax.fori_loop(np.uint32(0), rounds, set_digit, nothing, unroll=bits > 1)[:, None]
    above, equal = order > last, order == last
    missing = goal[:, None] - jnp.where(above, weights, 0).sum(-1, keepdims=True)

    def first_of_equals():
        share = jnp.where(equal, weights, 0)
        # A single token is always taken, however `missing` is rounded: what a row keeps must not
        # depend on equal scores in other rows.
        single = equal.sum(-1, keepdims=True) == 1
        return equal & (single | (jnp.cumsum(share, axis=-1) - share < missing))

    return above | jax.lax.cond(jnp.any(equal.sum(-1) > 1), first_of_equals, lambda: equal)
