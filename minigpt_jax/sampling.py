"""Draw tokens from logits: temperature, top-k, top-p, min-p and the repetition penalty.

All randomness of a row is a function of (its seed, the position that it draws for).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.model import VOCAB_MULTIPLE, GPTConfig

Array = jax.Array | np.ndarray


class SamplingParams(NamedTuple):
    """How each row draws its tokens."""

    temperature: Array  # [B] f32; 0: always the most likely
    top_k: Array  # [B] int32; only the k most likely; padded V: all
    top_p: Array  # [B] f32; the fewest whose probabilities reach p (Holtzman et al. 2020); 1: all
    min_p: Array  # [B] f32; at least this share of the most likely one's probability; 0: all
    penalty: Array  # [B] f32; logits of tokens already in the text divided (or multiplied) by it (Keskar et al. 2019)
    seed: Array  # [B] uint32


def sampling_params(
    rows: int,
    config: GPTConfig,
    *,
    temperature=1.0,
    top_k: int | None = None,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    seed: int = 0,
) -> SamplingParams:
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
    return SamplingParams(
        heat,
        np.full(rows, k if k < vocab else config.padded_vocab, np.int32),
        nucleus,
        least,
        penalty,
        seeds,
    )


def sample_logits(
    scores: jax.Array, settings: SamplingParams, seen: jax.Array, positions: jax.Array
) -> jax.Array:
    """[B] int32 tokens drawn from `scores` [B, V] for `positions` [B]; `seen` [B, V]: tokens that are penalised.

    Gumbel-max: the noise belongs to (seed, position, token), so filters that keep everything change nothing.
    """
    penalty = settings.penalty[:, None]
    scores = jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)
    greedy = argmax_by_groups(scores)
    temperature = settings.temperature[:, None]

    def draw():
        scaled = scores / jnp.where(temperature > 0, temperature, 1)
        keys = jax.vmap(lambda s, p: jax.random.fold_in(jax.random.key(s), p))(
            settings.seed, positions
        )
        noise = jax.vmap(lambda k: jax.random.gumbel(k, scores.shape[1:]))(keys)
        unlikely = scaled < scaled.max(-1, keepdims=True) + jnp.log(settings.min_p)[:, None]
        scaled = jnp.where(unlikely, -jnp.inf, scaled)
        narrow = (settings.top_k < scores.shape[-1]) | (settings.top_p < 1)
        kept = jax.lax.cond(
            jnp.any(narrow), lambda: filter_top_k_top_p(scaled, settings), lambda: scaled
        )
        return argmax_by_groups(kept + noise)

    drawn = jax.lax.cond(jnp.any(settings.temperature > 0), draw, lambda: greedy)
    return jnp.where(settings.temperature > 0, drawn, greedy)


def argmax_by_groups(scores):
    """[B] int32, argmax of numbers: the best group of tokens, then the best within. On a CPU one argmax of all takes five times as long."""
    groups = scores.reshape(len(scores), -1, VOCAB_MULTIPLE)
    group = jnp.argmax(groups.max(-1), axis=-1)
    within = jnp.argmax(groups[jnp.arange(len(scores)), group], axis=-1)
    return (group * VOCAB_MULTIPLE + within).astype(jnp.int32)


def filter_top_k_top_p(scores, settings):
    """-inf for all but the top k and, of these, the top p. A row that wants all keeps all, whatever the others want."""
    everything = (settings.top_k >= scores.shape[-1])[:, None]
    ones = jnp.ones_like(scores)

    def top_k():
        return jnp.where(
            everything
            | smallest_leading_set(scores, ones, jnp.where(everything[:, 0], 1, settings.top_k)),
            scores,
            -jnp.inf,
        )

    scores = jax.lax.cond(jnp.all(everything), lambda: scores, top_k)
    whole = (settings.top_p >= 1)[:, None]

    def top_p():
        return jnp.where(
            whole | smallest_leading_set(scores, jax.nn.softmax(scores, axis=-1), settings.top_p),
            scores,
            -jnp.inf,
        )

    return jax.lax.cond(jnp.all(whole), lambda: scores, top_p)


def smallest_leading_set(scores, weights, goal):
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
