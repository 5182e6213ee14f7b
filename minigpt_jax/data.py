"""Choose the rows of a step as a pure function of (seed, step), and put them on the devices.

Row i of a stream is `stream[i*T : i*T + T + 1]`, its loss weights `mask[i*T + 1 : i*T + T + 1]`.
Every epoch contains every row once. Each epoch has a different order, so the rows of a step follow
from the seed and the number of the step, and a checkpoint needs no state of the data. A mixture has
several sources, with epochs of their own.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Integer, UInt8, UInt16

from minigpt_jax.mixture import Source, first_rows, joined, turns
from minigpt_jax.token_stream import Stream, row_count


class Batch(NamedTuple):
    """A batch cut into A micro-batches of B rows."""

    # The last column is only a target.
    tokens: UInt16[jax.Array | np.ndarray, "A B T+1"]
    # The loss weights of tokens[:, :, 1:].
    weights: UInt8[jax.Array | np.ndarray, "A B T"]


def row_order(seed: int, epoch: int, rows: int) -> Int[np.ndarray, " {rows}"]:
    """Permutation of the row numbers for one epoch.

    Sorts raw Philox draws, because a shuffle of another numpy version may give another order.
    """
    draws = np.random.Philox(key=[seed, epoch]).random_raw(rows)
    return np.argsort(draws, kind="stable")


def rows_at(
    seed: int,
    step: int,
    batch: int,
    rows: Sequence[int],
    shares: Sequence[int] = (1,),
    orders: Sequence[Callable[[int, int, int], np.ndarray]] = (),
) -> Int[np.ndarray, " {batch}"]:
    """Row numbers of the 0-based `step`, in the `joined` stream of sources with `rows` rows each.

    At the end of an epoch of a source they continue into its next one. `orders`: for each source
    `row_order` or a cache of it.
    """
    firsts = first_rows(rows)
    numbers = []
    for source, before in turns(step * batch, (step + 1) * batch, shares):
        epoch, place = divmod(before, rows[source])
        # Above the bits of the seed, so that sources of equal length have different orders.
        own_seed = seed + (source << 32)
        order = orders[source] if orders else row_order
        numbers.append(firsts[source] + order(own_seed, epoch, rows[source])[place])
    return np.array(numbers)


def batch_hash(stream: Stream, rows: Integer[np.ndarray, " B"]) -> str:
    """16 hex digits that identify a batch: its row numbers and the identity of the data."""
    return hashlib.sha256(stream.identity.encode() + rows.astype("<i8").tobytes()).hexdigest()[:16]


def read_rows(
    stream: Stream, rows: Integer[np.ndarray, "*shape"], context: int
) -> tuple[UInt16[np.ndarray, "*shape {context}+1"], UInt8[np.ndarray, "*shape {context}"]]:
    """Tokens and loss weights of the given row numbers."""
    starts = rows.ravel() * context
    tokens = np.stack([stream.read(start, start + context + 1) for start in starts])
    weights = np.stack([stream.read_mask(start + 1, start + context + 1) for start in starts])
    return tokens.reshape(*rows.shape, -1), weights.reshape(*rows.shape, -1)


def batch_at(
    stream: Stream,
    rows: Integer[np.ndarray, " B"],
    context: int,
    accumulation: int,
    sharding: jax.sharding.Sharding,
) -> Batch:
    """The global batch of these rows. This host reads only the rows that its devices need."""
    grid = rows.reshape(accumulation, -1)
    parts = {}

    def read(index) -> tuple[np.ndarray, np.ndarray]:
        micro_batches, columns = index[:2]
        key = (micro_batches.start, micro_batches.stop, columns.start, columns.stop)
        # Rows are read once for both arrays, and for all devices that hold the same rows: those
        # that differ only on the "tensor" axis.
        if key not in parts:
            parts[key] = read_rows(stream, grid[micro_batches, columns], context)
        return parts[key]

    def array(length: int, part: int) -> jax.Array:
        shape = (*grid.shape, length)
        return jax.make_array_from_callback(shape, sharding, lambda index: read(index)[part])

    return Batch(array(context + 1, 0), array(context, 1))


@dataclass
class Batches:
    """The batches of a run by step. A thread reads the next one while the devices compute."""

    sources: Sequence[Source]
    sharding: jax.sharding.Sharding
    _: KW_ONLY
    seed: int
    # Rows of a batch.
    batch: int
    # Micro-batches that a batch is cut into.
    accumulation: int
    # Tokens of a row.
    context: int
    # Steps of the run. After the last one no batch is read ahead.
    horizon: int
    # Entered while `at` waits for the thread, to measure that time.
    waiting: Callable[[], AbstractContextManager] = nullcontext
    # At most one batch that the thread reads, by its step.
    _ahead: dict[int, Future] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        # Of each source.
        self._rows = [row_count(source.train, self.context) for source in self.sources]
        self._shares = [source.share for source in self.sources]
        self._stream = joined(self.sources, self._rows, self.context)
        # A batch at the end of an epoch needs two orders. For 10 B tokens an order takes 80 MB.
        self._orders = [lru_cache(maxsize=2)(row_order) for _ in self.sources]
        self._reader = ThreadPoolExecutor(max_workers=1)

    def rows(self, step: int) -> Int[np.ndarray, " B"]:
        """Row numbers of `step`."""
        return rows_at(self.seed, step, self.batch, self._rows, self._shares, self._orders)

    def hash(self, step: int) -> str:
        """16 hex digits that identify the batch of `step`."""
        return batch_hash(self._stream, self.rows(step))

    def at(self, step: int) -> Batch:
        """The batch of `step`; the thread then begins to read the batch of `step` + 1."""
        with self.waiting():
            batch = (self._ahead.pop(step, None) or self._submit(step)).result()
        if step + 1 < self.horizon:
            self._ahead = {step + 1: self._submit(step + 1)}
        return batch

    def close(self) -> None:
        """End the thread."""
        self._reader.shutdown()

    def _submit(self, step: int) -> Future:
        return self._reader.submit(
            lambda: batch_at(
                self._stream, self.rows(step), self.context, self.accumulation, self.sharding
            )
        )


def fixed_batches(
    stream: Stream, *, rows: int, batch: int, context: int, sharding: jax.sharding.NamedSharding
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(row numbers, Batch of one micro-batch) for `rows` evenly spaced rows of a stream.

    The rows are the same for every run. The last batch is filled up with rows of weight 0, so that
    every batch has the same shape and is compiled once.
    """
    total = row_count(stream, context)
    chosen = np.unique(np.linspace(0, total - 1, min(rows, total)).astype(np.int64))
    for start in range(0, len(chosen), batch):
        numbers = chosen[start : start + batch]
        padded = np.resize(numbers, batch)
        tokens, weights = batch_at(stream, padded, context, 1, sharding)
        if len(numbers) < batch:
            keep = np.arange(batch) < len(numbers)
            weights = weights * jax.device_put(keep[None, :, None].astype(np.uint8), sharding)
        yield numbers, Batch(tokens, weights)
