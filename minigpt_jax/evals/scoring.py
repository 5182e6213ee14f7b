"""How probable a model finds given continuations: the one function behind HellaSwag, lm-eval and the losses of answers.

A group is a context with its continuations. They share a row: the context once, then its continuations, which see it
and themselves but not each other. Logits exist only where a continuation is predicted, for a chunk of positions and a
slice of the vocabulary at a time: a processor's cache holds them, and a table of 50,304 rows is read once for many positions.
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
from minigpt_jax.attention import SHARED_SEGMENT
from minigpt_jax.errors import EvaluationStopped, InputError
from minigpt_jax.model import GPT, GPTConfig, resolve_compute_dtype
from minigpt_jax.sharding import RULES, batch_sharding, data_parallel_size, replicated

Group = tuple[
    Sequence[int], Sequence[Sequence[int]]
]  # ids of the context, ids of each continuation

BATCH = 16  # rows of up to WIDTH / 4 tokens that a device computes at once; of longer ones fewer
WIDTH = 1024  # a row is as long as this, or as the model's context where that is longer; what does not fit takes another row
BUCKET = 16  # lengths are rounded up to its multiples: few shapes to compile, little padding
CHUNK = 256  # positions whose logits are computed together,
SLICE = 3144  # with so many rows of the table: 3 MB of logits


class Score(NamedTuple):
    """What the model makes of a continuation."""

    logprob: float  # sum over its tokens, in nats
    tokens: int
    greedy: bool  # whether each of its tokens is the most likely one

    @property
    def loss(self) -> float:
        """Mean loss per token."""
        return -self.logprob / self.tokens


class _Row(NamedTuple):
    """A context, cut to what the model can see, and those continuations of group `group` from `first` on that share it."""

    group: int
    first: int
    context: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def length(self) -> int:
        """T, rounded up: room for what is put in (no last tokens) and for what is asked (no context)."""
        asked = sum(map(len, self.continuations))
        return _round_up(max(len(self.context) + asked - len(self.continuations), asked))


class _Work(NamedTuple):
    """A batch of B rows for the devices; the leading 1 is the axis of micro-batches, which batches of training have."""

    tokens: (
        np.ndarray | jax.Array
    )  # [1, B, T] a context, then its continuations without their last tokens
    positions: np.ndarray | jax.Array  # [1, B, T] each continuation's go on where the context's end
    segments: (
        np.ndarray | jax.Array
    )  # [1, B, T] SHARED_SEGMENT for the context, then a number for each continuation
    targets: (
        np.ndarray | jax.Array
    )  # [1, shards, N] tokens of all continuations of a shard, one after the other
    places: (
        np.ndarray | jax.Array
    )  # [1, shards, N] where among the shard's B/shards * T positions they are predicted


def score(
    params: dict,
    config: GPTConfig,
    mesh: jax.sharding.Mesh,
    groups: Sequence[Group],
    *,
    dtype: jax.typing.DTypeLike | None = None,
    batch: int = BATCH,
    stop_requested: Callable[[], bool] = lambda: False,
) -> list[list[Score]]:
    """The score of every continuation of every group, on all devices of `mesh`; every process calls it with the same groups.

    A context that leaves no room is cut from the left, for each continuation by itself. Raises EvaluationStopped.
    Raises InputError for a continuation longer than the model's context, and where there is nothing to score.
    """
    model = GPT(config, dtype=dtype or resolve_compute_dtype(), attention="xla")
    shards = data_parallel_size(mesh)
    sharding = batch_sharding(mesh)
    scores = [[Score(0.0, 0, False)] * len(continuations) for _, continuations in groups]
    by_length: dict[int, list[_Row]] = {}
    for row in _rows(groups, config.context):
        by_length.setdefault(row.length, []).append(row)
    for length, rows in sorted(by_length.items(), reverse=True):  # what needs the most memory first
        share = max(min(batch, batch * WIDTH // 4 // length), 1)
        for start in range(0, len(rows), share * shards):
            if stop_requested():
                raise EvaluationStopped
            shares = [rows[i : i + share] for i in range(start, start + share * shards, share)]
            work, chunk, chunks = _arrange(shares, length, share)
            arrays = _Work(
                *(
                    jax.make_array_from_callback(a.shape, sharding, lambda index, a=a: a[index])
                    for a in work
                )
            )
            with jax.set_mesh(mesh), nn.logical_axis_rules(list(RULES)):
                logprobs, greedy = jax.device_get(
                    _log_probabilities(model, mesh, chunk, params, arrays, chunks)
                )
            for shard, own in enumerate(shares):
                end = 0
                for row in own:
                    for number, continuation in enumerate(row.continuations, row.first):
                        begin, end = end, end + len(continuation)
                        total = float(logprobs[shard, begin:end].sum(dtype=np.float64))
                        scores[row.group][number] = Score(
                            total, end - begin, bool(greedy[shard, begin:end].all())
                        )
    return scores


def cut(context: Sequence[int], continuation: Sequence[int], limit: int) -> Sequence[int]:
    """The end of `context` that a model of `limit` positions can see before `continuation`, whose last token is no input."""
    return context[max(len(context) + len(continuation) - 1 - limit, 0) :]


def _rows(groups: Sequence[Group], limit: int) -> Iterator[_Row]:
    for number, (context, continuations) in enumerate(groups):
        lengths = [len(continuation) for continuation in continuations]
        if not (len(context) and lengths and min(lengths)):
            raise InputError(
                f"group {number + 1} of what is to be scored: a context and each continuation need at least one token"
            )
        if max(lengths) > limit:
            raise InputError(
                f"a continuation of {max(lengths)} tokens is longer than the model's context of {limit}"
            )
        row = _Row(number, 0, cut(context, continuations[0], limit), continuations[:1])
        for i, continuation in enumerate(continuations[1:], 1):
            longer = row._replace(continuations=[*row.continuations, continuation])
            visible = cut(context, continuation, limit)
            if len(visible) == len(row.context) and longer.length <= max(WIDTH, limit):
                row = longer
            else:
                yield row
                row = _Row(number, i, visible, [continuation])
        yield row


def _arrange(shares: Sequence[Sequence[_Row]], length: int, batch: int) -> tuple[_Work, int, int]:
    """The arrays for the rows of each device, how many positions to compute at once, and how often that makes them all."""
    chunk = min(CHUNK, batch * length)
    tokens, positions, segments = (
        np.zeros((len(shares), batch, length), np.int32) for _ in range(3)
    )
    targets = np.zeros((len(shares), _round_up(batch * length, chunk)), np.int32)
    places, longest = np.zeros_like(targets), 0
    for shard, rows in enumerate(shares):
        asked = 0
        for number, row in enumerate(rows):
            at = (shard, number)
            known = len(row.context)
            tokens[at][:known], positions[at][:known], segments[at][:known] = (
                row.context,
                np.arange(known),
                SHARED_SEGMENT,
            )
            end = known
            for i, continuation in enumerate(row.continuations):
                begin, end = end, end + len(continuation) - 1
                tokens[at][begin:end] = continuation[:-1]
                positions[at][begin:end] = known + np.arange(end - begin)
                segments[at][begin:end] = i
                targets[shard, asked : asked + len(continuation)] = continuation
                # The context's last token predicts the first of every continuation.
                places[shard, asked : asked + len(continuation)] = number * length + np.array(
                    [known - 1, *range(begin, end)]
                )
                asked += len(continuation)
        longest = max(longest, asked)
    tokens, positions, segments = (a.reshape(-1, length) for a in (tokens, positions, segments))
    return (
        _Work(*(a[None] for a in (tokens, positions, segments, targets, places))),
        chunk,
        math.ceil(longest / chunk),
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _log_probabilities(
    model: GPT, mesh: jax.sharding.Mesh, chunk: int, params, work: _Work, chunks
) -> tuple[jax.Array, jax.Array]:
    """[shards, N] log probability of each target, and whether it is the most likely token; `chunks` * `chunk` of N are computed."""
    tokens, positions, segments, targets, places = (a[0] for a in work)
    hidden: jax.Array = model.apply({"params": params}, tokens, positions, segments)[0]  # pyright: ignore[reportAssignmentType]
    hidden = jnp.take_along_axis(
        hidden.reshape(len(targets), -1, model.config.embed), places[:, :, None], axis=1
    )

    def compute(i, out):
        h, t = (
            jax.lax.dynamic_slice_in_dim(a, i * chunk, chunk, axis=1) for a in (hidden, targets)
        )
        new = _of_chunk(h, params["wte"], t, model.config.vocab_size)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(old, a, i * chunk, axis=1)
            for old, a in zip(out, new, strict=True)
        )

    start = (
        jnp.zeros(targets.shape, jnp.promote_types(hidden.dtype, jnp.float32)),
        jnp.zeros(targets.shape, bool),
    )
    return jax.lax.with_sharding_constraint(
        jax.lax.fori_loop(0, chunks, compute, start), replicated(mesh)
    )


def _of_chunk(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """The same for `hidden` [shards, chunk, D] and `targets` [shards, chunk], a slice of `table` [V, D] at a time."""
    size = next(s for s in range(min(SLICE, len(table)), 0, -1) if len(table) % s == 0)

    def add(carry, piece):
        top, total, chosen = carry
        rows, first = piece
        logits = loss.logits(hidden, rows, vocab_size - first)
        higher = jnp.maximum(top, logits.max(-1))
        total = total * jnp.exp(top - higher) + jnp.exp(logits - higher[..., None]).sum(-1)
        place = targets - first
        found = jnp.take_along_axis(logits, jnp.clip(place, 0, size - 1)[..., None], axis=-1)[
            ..., 0
        ]
        return (higher, total, jnp.where((place >= 0) & (place < size), found, chosen)), None

    nothing = jnp.zeros(targets.shape, jnp.promote_types(hidden.dtype, jnp.float32))
    slices = (table.reshape(-1, size, table.shape[-1]), jnp.arange(0, len(table), size))
    (top, total, chosen), _ = jax.lax.scan(add, (nothing - jnp.inf, nothing, nothing), slices)
    return chosen - top - jnp.log(total), chosen >= top


def _round_up(length: int, multiple: int = BUCKET) -> int:
    """The next multiple of `multiple`, at least one of it."""
    return max(math.ceil(length / multiple), 1) * multiple
