"""Which rows a step trains on, and how they reach the devices: a pure function of (seed, step), with nothing to save.

Row i of a stream is `stream[i*T : i*T + T + 1]`, its loss weights `mask[i*T + 1 : i*T + T + 1]`. Every epoch visits
every row once, in an order of its own.
"""

import hashlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import jax
import numpy as np

from minigpt_jax.token_stream import Stream


def row_count(stream: Stream, context: int) -> int:
    """Rows of `context` + 1 tokens that the stream holds."""
    return (stream.length - 1) // context


@lru_cache(
    maxsize=2
)  # a batch at the end of an epoch needs two orders; 10 B tokens make 80 MB each
def row_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """[rows] permutation of row numbers for one epoch.

    Sorting raw Philox draws rather than calling a shuffle: no numpy version may change which rows a run sees.
    """
    draws = np.random.Philox(key=[seed, epoch]).random_raw(rows)
    return np.argsort(draws, kind="stable")


def rows_at(seed: int, step: int, batch: int, rows: int) -> np.ndarray:
    """[batch] row numbers of 0-based `step`, running on into the next epoch where one ends."""
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs, places = np.divmod(positions, rows)
    return np.array(
        [
            row_order(seed, int(epoch), rows)[place]
            for epoch, place in zip(epochs, places, strict=True)
        ]
    )


def batch_hash(stream: Stream, rows: np.ndarray) -> str:
    """16 hex digits that name a batch: its row numbers and the identity of the data they count."""
    return hashlib.sha256(stream.identity.encode() + rows.astype("<i8").tobytes()).hexdigest()[:16]


def read_rows(stream: Stream, rows: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [..., T+1] uint16 and loss weights [..., T] uint8 of row numbers of any shape [...]."""
    starts = rows.ravel() * context
    tokens = np.stack([stream.read(start, start + context + 1) for start in starts])
    weights = np.stack([stream.read_mask(start + 1, start + context + 1) for start in starts])
    return tokens.reshape(*rows.shape, -1), weights.reshape(*rows.shape, -1)


def batch_at(
    stream: Stream, rows: np.ndarray, context: int, accum: int, sharding: jax.sharding.Sharding
) -> tuple[jax.Array, jax.Array]:
    """Global arrays, tokens [A, B/A, T+1] and weights [A, B/A, T], of which this host reads only the rows it needs."""
    grid = rows.reshape(accum, -1)
    pieces = {}

    def read(index):
        micro, row = index[:2]
        key = (micro.start, micro.stop, row.start, row.stop)
        if key not in pieces:  # several devices hold the same rows when a layer is cut by "tensor"
            pieces[key] = read_rows(stream, grid[micro, row], context)
        return pieces[key]

    tokens = jax.make_array_from_callback(
        (*grid.shape, context + 1), sharding, lambda index: read(index)[0]
    )
    weights = jax.make_array_from_callback(
        (*grid.shape, context), sharding, lambda index: read(index)[1]
    )
    return tokens, weights


def device_batches(
    stream: Stream,
    *,
    seed: int,
    steps: range,
    batch: int,
    context: int,
    accum: int,
    sharding: jax.sharding.Sharding,
) -> Generator[tuple[np.ndarray, tuple[jax.Array, jax.Array]]]:
    """(row numbers, arrays) of every step of `steps`, read one step ahead by a thread while the device works."""
    total = row_count(stream, context)

    def load(step):
        rows = rows_at(seed, step, batch, total)
        return rows, batch_at(stream, rows, context, accum, sharding)

    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(load, steps.start)
        for step in steps:
            ready = ahead.result()
            ahead = reader.submit(load, min(step + 1, steps.stop - 1))
            yield ready


def fixed_batches(
    stream: Stream, *, rows: int, batch: int, context: int, sharding: jax.sharding.NamedSharding
) -> Iterator[tuple[np.ndarray, tuple[jax.Array, jax.Array]]]:
    """(row numbers, arrays [1, batch, ...]) of `rows` evenly spaced rows of a validation stream, the same for every run.

    The last batch is filled up with rows of weight 0, so that one compiled shape serves all.
    """
    total = row_count(stream, context)
    chosen = np.unique(np.linspace(0, total - 1, min(rows, total)).astype(np.int64))
    for start in range(0, len(chosen), batch):
        live = chosen[start : start + batch]
        padded = np.resize(live, batch)
        tokens, weights = batch_at(stream, padded, context, 1, sharding)
        if len(live) < batch:
            keep = np.arange(batch) < len(live)
            weights = weights * jax.device_put(keep[None, :, None].astype(np.uint8), sharding)
        yield live, (tokens, weights)
