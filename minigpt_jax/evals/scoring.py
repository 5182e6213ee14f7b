"""How probable a model finds given continuations: the one function behind HellaSwag, lm-eval and the losses of answers.

A group is a context with its continuations. The context is computed once, into a KV cache that is repeated for its
continuations. Logits exist only at the positions of continuations, for a chunk of positions and a slice of the
vocabulary at a time: a processor's cache holds them, and a table of 50,304 rows is read once for many positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import loss
from minigpt_jax import mesh as meshes
from minigpt_jax.errors import InputError
from minigpt_jax.model import GPT, GPTConfig, KVCache

Group = tuple[Sequence[int], Sequence[Sequence[int]]]  # ids of the context, ids of each continuation

BATCH = 64  # continuations a device computes at once: a processor's caches hold their keys and values
CACHE_BYTES = 2**30  # and fewer, where their keys and values would take more than this
BUCKET = 32  # lengths are rounded up to its multiples: few shapes to compile, little padding
CHUNK = 512  # positions whose logits are computed together,
SLICE = 1572  # with so many rows of the table: 3 MB of logits


class Score(NamedTuple):
    """What the model makes of a continuation."""

    logprob: float  # sum over its tokens, in nats
    tokens: int
    greedy: bool  # whether each of its tokens is the most likely one

    @property
    def loss(self) -> float:
        """Mean loss per token."""
        return -self.logprob / self.tokens


class _Job(NamedTuple):
    """A context, cut to what the model can see, and those continuations of group `group` from `first` on that share it."""

    group: int
    first: int
    context: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, C, T): continuations, and lengths rounded up of what is computed before them and of the longest of them."""
        return len(self.continuations), _round_up(len(self.context) - 1), _round_up(max(map(len, self.continuations)))


class _Work(NamedTuple):
    """A batch of G jobs for the devices; the leading 1 is the axis of micro-batches, which batches of training have."""

    context: np.ndarray | jax.Array  # [1, G, C] all but the last token, which begins each row below
    known: np.ndarray | jax.Array  # [1, G] how many these are
    tokens: np.ndarray | jax.Array  # [1, G, K, T] the token before each target
    targets: np.ndarray | jax.Array  # [1, shards, N] tokens of all continuations of a shard, one after the other
    places: np.ndarray | jax.Array  # [1, shards, N] where among the shard's G/shards * K * T positions they are predicted


def score(
    params: dict,
    config: GPTConfig,
    mesh: jax.sharding.Mesh,
    groups: Sequence[Group],
    *,
    dtype: jax.typing.DTypeLike | None = None,
    batch: int = BATCH,
    abandon: Callable[[], bool] = lambda: False,
) -> list[list[Score]] | None:
    """The score of every continuation of every group, on all devices of `mesh`; every process calls it with the same groups.

    A context that leaves no room is cut from the left, for each continuation by itself. None once `abandon` says so.
    Raises InputError for a continuation longer than the model's context, and where there is nothing to score.
    """
    model = GPT(config, dtype=dtype or best_dtype(), attention="xla")
    shards = meshes.data_shards(mesh)
    sharding = meshes.batch_sharding(mesh)
    scores = [[Score(0.0, 0, False)] * len(continuations) for _, continuations in groups]
    by_shape: dict[tuple[int, int, int], list[_Job]] = {}
    itemsize = jnp.dtype(model.dtype).itemsize
    for job in _jobs(groups, config, batch, itemsize):
        by_shape.setdefault(job.shape, []).append(job)
    for shape, jobs in sorted(by_shape.items(), reverse=True):  # what needs the most memory first
        share = _jobs_at_once(shape, config, batch, itemsize)
        for start in range(0, len(jobs), share * shards):
            if abandon():
                return None
            shares = [jobs[i : i + share] for i in range(start, start + share * shards, share)]
            work, chunk, chunks = _arrange(shares, shape, share)
            arrays = _Work(*(jax.make_array_from_callback(a.shape, sharding, lambda index, a=a: a[index]) for a in work))
            with jax.set_mesh(mesh), nn.logical_axis_rules(list(meshes.RULES)):
                logprobs, greedy = jax.device_get(_log_probabilities(model, mesh, chunk, params, arrays, chunks))
            for shard, own in enumerate(shares):
                end = 0
                for job in own:
                    for number, continuation in enumerate(job.continuations, job.first):
                        begin, end = end, end + len(continuation)
                        total = float(logprobs[shard, begin:end].sum(dtype=np.float64))
                        scores[job.group][number] = Score(total, end - begin, bool(greedy[shard, begin:end].all()))
    return scores


def best_dtype() -> jax.typing.DTypeLike:
    """What this machine computes products in, where nobody says otherwise."""
    return jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32


def cut(context: Sequence[int], continuation: Sequence[int], limit: int) -> Sequence[int]:
    """The end of `context` that a model of `limit` positions can see before `continuation`, whose last token is no input."""
    return context[max(len(context) + len(continuation) - 1 - limit, 0) :]


def _jobs(groups: Sequence[Group], config: GPTConfig, batch: int, itemsize: int) -> Iterator[_Job]:
    limit = config.context
    for number, (context, continuations) in enumerate(groups):
        lengths = [len(continuation) for continuation in continuations]
        if not (len(context) and lengths and min(lengths)):
            raise InputError(f"group {number + 1} of what is to be scored: a context and each continuation need at least one token")
        if max(lengths) > limit:
            raise InputError(f"a continuation of {max(lengths)} tokens is longer than the model's context of {limit}")
        if len(context) + max(lengths) - 1 <= limit:
            _, before, after = _Job(number, 0, context, continuations).shape
            share = _rows_at_once(before, after, config, batch, itemsize)  # of one context's thousands of continuations
            yield from (_Job(number, i, context, continuations[i : i + share]) for i in range(0, len(continuations), share))
        else:
            yield from (_Job(number, i, cut(context, c, limit), [c]) for i, c in enumerate(continuations))


def _jobs_at_once(shape: tuple[int, int, int], config: GPTConfig, batch: int, itemsize: int) -> int:
    """How many jobs of a shape a device takes at once."""
    count, before, after = shape
    return max(_rows_at_once(before, after, config, batch, itemsize) // count, 1)


def _rows_at_once(before: int, after: int, config: GPTConfig, batch: int, itemsize: int) -> int:
    """`batch` continuations, or fewer where their cache would be too large."""
    row_bytes = 2 * config.layers * (before + after) * config.embed * itemsize
    return max(min(batch, CACHE_BYTES // row_bytes), 1)


def _arrange(shares: Sequence[Sequence[_Job]], shape: tuple[int, int, int], share: int) -> tuple[_Work, int, int]:
    """The arrays for the jobs of each device, how many positions to compute at once, and how often that makes them all."""
    count, before, after = shape
    positions = share * count * after
    chunk = min(CHUNK, positions)
    context = np.zeros((len(shares), share, before), np.int32)
    known = np.zeros((len(shares), share), np.int32)
    tokens = np.zeros((len(shares), share, count, after), np.int32)
    targets = np.zeros((len(shares), _round_up(positions, chunk)), np.int32)
    places, longest = np.zeros_like(targets), 0
    for shard, jobs in enumerate(shares):
        end = 0
        for row, job in enumerate(jobs):
            known[shard, row] = len(job.context) - 1
            context[shard, row, : len(job.context) - 1] = job.context[:-1]
            for i, continuation in enumerate(job.continuations):
                begin, end = end, end + len(continuation)
                tokens[shard, row, i, : len(continuation)] = [job.context[-1], *continuation[:-1]]
                targets[shard, begin:end] = continuation
                places[shard, begin:end] = (row * count + i) * after + np.arange(len(continuation))
        longest = max(longest, end)
    context, known, tokens = (a.reshape(1, -1, *a.shape[2:]) for a in (context, known, tokens))
    return _Work(context, known, tokens, targets[None], places[None]), chunk, math.ceil(longest / chunk)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _log_probabilities(model: GPT, mesh: jax.sharding.Mesh, chunk: int, params, work: _Work, chunks) -> tuple[jax.Array, jax.Array]:
    """[shards, N] log probability of each target, and whether it is the most likely token; `chunks` * `chunk` of N are computed."""
    context, known, tokens, targets, places = (a[0] for a in work)
    config, (count, after) = model.config, tokens.shape[1:]
    empty = jnp.zeros((config.layers, *context.shape, config.heads, config.head_dim), model.dtype)
    positions = jnp.broadcast_to(jnp.arange(context.shape[1]), context.shape)
    cache = _apply(model, params, context, positions, KVCache(empty, empty))[1]
    # What padding wrote behind a context is overwritten by the continuation, or lies ahead of all that it sees.
    longer = ((0, 0), (0, 0), (0, after), (0, 0), (0, 0))
    cache = KVCache(*(jnp.repeat(jnp.pad(a, longer), count, axis=1) for a in cache))
    positions = jnp.broadcast_to(known[:, None, None] + jnp.arange(after)[None, None], tokens.shape)
    hidden, _ = _apply(model, params, tokens.reshape(-1, after), positions.reshape(-1, after), cache)
    hidden = jnp.take_along_axis(hidden.reshape(len(targets), -1, config.embed), places[:, :, None], axis=1)

    def compute(i, out):
        h, t = (jax.lax.dynamic_slice_in_dim(a, i * chunk, chunk, axis=1) for a in (hidden, targets))
        new = _of_chunk(h, params["wte"], t, config.vocab_size)
        return tuple(jax.lax.dynamic_update_slice_in_dim(old, a, i * chunk, axis=1) for old, a in zip(out, new, strict=True))

    start = (jnp.zeros(targets.shape, jnp.promote_types(hidden.dtype, jnp.float32)), jnp.zeros(targets.shape, bool))
    return jax.lax.with_sharding_constraint(jax.lax.fori_loop(0, chunks, compute, start), meshes.replicated(mesh))


def _of_chunk(hidden: jax.Array, table: jax.Array, targets: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """The same for `hidden` [shards, chunk, D] and `targets` [shards, chunk], a slice of `table` [V, D] at a time."""
    size = next(s for s in range(min(SLICE, len(table)), 0, -1) if len(table) % s == 0)

    def add(carry, piece):
        top, total, chosen = carry
        rows, first = piece
        logits = loss.logits(hidden, rows, vocab_size - first)
        higher = jnp.maximum(top, logits.max(-1))
        total = total * jnp.exp(top - higher) + jnp.exp(logits - higher[..., None]).sum(-1)
        place = targets - first
        found = jnp.take_along_axis(logits, jnp.clip(place, 0, size - 1)[..., None], axis=-1)[..., 0]
        return (higher, total, jnp.where((place >= 0) & (place < size), found, chosen)), None

    nothing = jnp.zeros(targets.shape, jnp.promote_types(hidden.dtype, jnp.float32))
    slices = (table.reshape(-1, size, table.shape[-1]), jnp.arange(0, len(table), size))
    (top, total, chosen), _ = jax.lax.scan(add, (nothing - jnp.inf, nothing, nothing), slices)
    return chosen - top - jnp.log(total), chosen >= top


def _apply(model: GPT, params, tokens, positions, cache: KVCache) -> tuple[jax.Array, KVCache]:
    return model.apply({"params": params}, tokens, positions, cache=cache)  # pyright: ignore[reportReturnType]


def _round_up(length: int, multiple: int = BUCKET) -> int:
    """The next multiple of `multiple`, at least one of it."""
    return max(math.ceil(length / multiple), 1) * multiple
