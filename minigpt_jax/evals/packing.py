"""Pack contexts and continuations into rows and batches for scoring.

The continuations of a group share a row: the row holds the context once, then the continuations,
and each continuation attends to the context and to itself only.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import jax
import numpy as np

from minigpt_jax.attention import SHARED_SEGMENT
from minigpt_jax.errors import InputError

Array = np.ndarray | jax.Array
# Token ids of the context, and token ids of each continuation.
Group = tuple[Sequence[int], Sequence[Sequence[int]]]

# A row is at most this long, or as long as the model's context if that is longer. Continuations
# that do not fit go to another row.
MAX_ROW_LENGTH = 1024
# Row lengths are rounded up to multiples of this: few shapes to compile, little padding.
LENGTH_MULTIPLE = 16


class PackedRow(NamedTuple):
    """A truncated context and the continuations of group `group` from `first` on that share it."""

    group: int
    first: int
    context: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def num_targets(self) -> int:
        """Number of tokens to predict."""
        return sum(map(len, self.continuations))

    @property
    def length(self) -> int:
        """Length T of the row, rounded up: it must hold all inputs and all targets."""
        # The last token of a continuation is predicted, but it is not an input.
        inputs = len(self.context) + self.num_targets - len(self.continuations)
        return _round_up(max(inputs, self.num_targets), LENGTH_MULTIPLE)


class PackedBatch(NamedTuple):
    """B rows on R data-parallel replicas. The leading 1 is the axis of micro-batches.

    tokens: [1, B, T] int32, a context, then its continuations without their last tokens
    positions: [1, B, T] int32; each continuation starts where the context ends
    segments: [1, B, T] int32, SHARED_SEGMENT for the context, then the continuation's number
    targets: [1, R, N] int32, tokens of all continuations of a replica, in order
    hidden_index: [1, R, N] int32, where each target is predicted, of a replica's B/R * T positions
    """

    tokens: Array
    positions: Array
    segments: Array
    targets: Array
    hidden_index: Array


def packed_batches(
    rows: Iterable[PackedRow], *, batch: int, replicas: int, chunk: int
) -> Iterator[tuple[list[list[PackedRow]], PackedBatch]]:
    """(rows of each replica, the same as arrays), of at most `batch` rows per replica.

    The longest rows come first: if memory is too small, that shows at the start. The number of
    targets N is padded to a multiple of `chunk`.
    """
    row_length = attrgetter("length")
    by_length = sorted(rows, key=row_length, reverse=True)
    for length, same_length in groupby(by_length, key=row_length):
        same_length = list(same_length)
        # Rows longer than MAX_ROW_LENGTH / 4 get smaller batches, which need the same memory.
        per_replica = max(min(batch, batch * MAX_ROW_LENGTH // 4 // length), 1)
        for start in range(0, len(same_length), per_replica * replicas):
            stop = start + per_replica * replicas
            split = [same_length[i : i + per_replica] for i in range(start, stop, per_replica)]
            yield split, pack_batch(split, per_replica, chunk)


def pack_batch(split: Sequence[Sequence[PackedRow]], per_replica: int, chunk: int) -> PackedBatch:
    """The rows of each replica as arrays. All rows have the same length."""
    length = split[0][0].length
    shape = (len(split), per_replica, length)
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    size = per_replica * length
    targets = np.zeros((len(split), _round_up(size, min(chunk, size))), np.int32)
    hidden_index = np.zeros_like(targets)
    for replica, rows in enumerate(split):
        first_target = 0
        for number, row in enumerate(rows):
            at = (replica, number)
            context_length = len(row.context)
            tokens[at][:context_length] = row.context
            positions[at][:context_length] = np.arange(context_length)
            segments[at][:context_length] = SHARED_SEGMENT
            end = context_length
            for i, continuation in enumerate(row.continuations):
                begin, end = end, end + len(continuation) - 1
                tokens[at][begin:end] = continuation[:-1]
                positions[at][begin:end] = context_length + np.arange(end - begin)
                segments[at][begin:end] = i
                own = slice(first_target, first_target + len(continuation))
                targets[replica, own] = continuation
                # The context's last token predicts the first token of every continuation.
                predicted_at = [context_length - 1, *range(begin, end)]
                hidden_index[replica, own] = number * length + np.array(predicted_at)
                first_target += len(continuation)
    return PackedBatch(
        tokens.reshape(1, -1, length),
        positions.reshape(1, -1, length),
        segments.reshape(1, -1, length),
        targets[None],
        hidden_index[None],
    )


def truncate_context(
    context: Sequence[int], continuation: Sequence[int], max_length: int
) -> Sequence[int]:
    """The end of `context` that fits into `max_length` positions together with `continuation`.

    The continuation takes one position less than it has tokens: its last token is no input.
    """
    return context[max(len(context) + len(continuation) - 1 - max_length, 0) :]


def pack_rows(groups: Sequence[Group], max_length: int) -> Iterator[PackedRow]:
    """Rows with all continuations of all `groups`, for a model of `max_length` positions.

    Raises InputError for an empty context or continuation, and for a continuation that is too long.
    """
    for number, (context, continuations) in enumerate(groups):
        _check_group(number, context, continuations, max_length)
        row = PackedRow(
            number, 0, truncate_context(context, continuations[0], max_length), continuations[:1]
        )
        for i, continuation in enumerate(continuations[1:], 1):
            truncated = truncate_context(context, continuation, max_length)
            longer = row._replace(continuations=[*row.continuations, continuation])
            same_context = len(truncated) == len(row.context)
            if same_context and longer.length <= max(MAX_ROW_LENGTH, max_length):
                row = longer
            else:
                yield row
                row = PackedRow(number, i, truncated, [continuation])
        yield row


def _check_group(number: int, context, continuations, max_length: int) -> None:
    lengths = [len(continuation) for continuation in continuations]
    if not (len(context) and lengths and min(lengths)):
        raise InputError(
            f"group {number + 1} of those to score: found an empty context or continuation, "
            "expected at least one token in each"
        )
    if max(lengths) > max_length:
        raise InputError(
            f"a continuation of {max(lengths)} tokens is longer than the model's context "
            f"of {max_length}"
        )


def _round_up(length: int, multiple: int) -> int:
    """The smallest positive multiple of `multiple` that is at least `length`."""
    return max(math.ceil(length / multiple), 1) * multiple
