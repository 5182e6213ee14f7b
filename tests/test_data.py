"""Which rows a step trains on depends on (seed, step) only, and is the same on every mesh."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax.data import (
    Batches,
    batch_at,
    batch_hash,
    fixed_batches,
    read_rows,
    row_count,
    row_order,
    rows_at,
)
from minigpt_jax.mixture import Source
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.sharding import batch_sharding, make_mesh
from minigpt_jax.token_stream import Stream, open_stream

CONTEXT, ROWS = 5, 23
MESHES = [(4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 1), (2, 1, 2), (1, 2, 2)]
REASON = (
    "The order of rows has changed: a run that is resumed with this code is not the run that was "
    "started. Update these values only when the order was changed on purpose and the change is "
    "announced as one after which old runs cannot be resumed; never because of a new numpy."
)


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Stream:
    """ROWS rows and three more tokens, in shards that no row length divides; all tokens differ."""
    folder: Path = tmp_path_factory.mktemp("stream")
    count = ROWS * CONTEXT + 1 + 3
    writer = ShardWriter(folder, "train", shard_tokens=7, masked=True)
    mask = np.random.default_rng(0).integers(0, 2, count, np.uint8)
    writer.append(np.arange(count, dtype=np.uint16), mask)
    write_manifest(
        folder,
        {"train": (writer.close(), 1)},
        tokenizer="t",
        vocab_size=1000,
        context=CONTEXT,
        source="test",
    )
    return open_stream(folder, "train", tokenizer="t", vocab_size=1000, context=CONTEXT)


def sharding_of(data: int, fsdp: int, tensor: int) -> jax.sharding.NamedSharding:
    return batch_sharding(make_mesh(data, fsdp, tensor))


# ---- the order


def test_every_seed_and_epoch_has_its_own_permutation():
    seen = set()
    for seed in (0, 1, 1337, 2**31 - 1):
        for epoch in range(4):
            order = row_order(seed, epoch, 100)
            assert sorted(order.tolist()) == list(range(100))
            seen.add(tuple(order.tolist()))
    assert len(seen) == 16


def test_the_order_never_changes():
    assert row_order(1337, 0, 12).tolist() == [2, 4, 5, 6, 9, 7, 10, 11, 3, 8, 0, 1], REASON
    assert row_order(1337, 1, 12).tolist() == [8, 3, 7, 9, 0, 1, 6, 5, 11, 10, 2, 4], REASON
    assert row_order(0, 0, 12).tolist() == [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7], REASON
    long = row_order(1337, 3, 100_000).astype("<i8").tobytes()
    expected = "a8cb6b67c5e7092046195f94bda3ffa67eabd255a80da6d62f1cccc0de99d644"
    assert hashlib.sha256(long).hexdigest() == expected, REASON


@pytest.mark.parametrize(
    ("batch", "rows"), [(1, 1), (1, 10), (4, 12), (4, 10), (7, 10), (10, 10), (25, 10), (3, 1)]
)
def test_every_row_comes_once_an_epoch_also_where_an_epoch_ends_inside_a_batch(batch, rows):
    epochs = 7
    steps = -(-epochs * rows // batch)
    visited = np.concatenate([rows_at(5, step, batch, [rows]) for step in range(steps)])
    for epoch in range(epochs):
        found = visited[epoch * rows : (epoch + 1) * rows]
        assert found.tolist() == row_order(5, epoch, rows).tolist()


def test_the_rows_of_a_step_depend_on_its_number_alone():
    forward = [rows_at(9, step, 4, [10]).tolist() for step in range(20)]
    assert [rows_at(9, step, 4, [10]).tolist() for step in reversed(range(20))] == forward[::-1]
    assert rows_at(10, 3, 4, [10]).tolist() != forward[3]


# ---- the rows


def test_a_row_is_what_the_format_defines(stream: Stream):
    assert row_count(stream, CONTEXT) == ROWS
    tokens, weights = read_rows(stream, np.arange(ROWS), CONTEXT)
    assert tokens.dtype == np.uint16 and tokens.shape == (ROWS, CONTEXT + 1)
    assert weights.dtype == np.uint8 and weights.shape == (ROWS, CONTEXT)
    mask = stream.read_mask(0, stream.length)
    for i in range(ROWS):
        assert tokens[i].tolist() == list(range(i * CONTEXT, i * CONTEXT + CONTEXT + 1))
        assert weights[i].tolist() == mask[i * CONTEXT + 1 : i * CONTEXT + CONTEXT + 1].tolist()
    square, _ = read_rows(stream, np.arange(6).reshape(2, 3), CONTEXT)
    assert np.array_equal(square, tokens[:6].reshape(2, 3, -1))


def test_a_stream_one_token_short_of_a_row_has_one_row_fewer(stream: Stream):
    lengths = {CONTEXT: ROWS, stream.length - 1: 1, stream.length: 0, (stream.length - 1) // 2: 2}
    assert {context: row_count(stream, context) for context in lengths} == lengths


def test_the_hash_identifies_the_rows_and_the_data(stream: Stream):
    rows = np.array([3, 1, 2])
    name = batch_hash(stream, rows)
    assert len(name) == 16 and name == batch_hash(stream, rows.astype(np.int32))
    other = Stream(stream.name, "another", stream.starts, stream.tokens, stream.masks)
    others = [
        batch_hash(stream, rows[::-1]),
        batch_hash(stream, rows[:2]),
        batch_hash(other, rows),
    ]
    assert len({name, *others}) == 4


# ---- on devices


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_global_batch_holds_its_rows_on_every_mesh(stream: Stream, mesh, accumulation: int):
    assert jax.device_count() == 4
    rows = rows_at(1, 2, 8, [ROWS])
    expected_arrays = read_rows(stream, rows.reshape(accumulation, -1), CONTEXT)
    batch = batch_at(stream, rows, CONTEXT, accumulation, sharding_of(*mesh))
    for array, expected in zip(batch, expected_arrays, strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
        assert len(array.addressable_shards) == 4
        # Each device holds its own part, not the whole.
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index])
            assert shard.data.shape[1] == 8 // accumulation // (mesh[0] * mesh[1])


@pytest.fixture
def batches(stream: Stream) -> Iterator[Batches]:
    batches = Batches(
        [Source("data", 1, stream, stream)],
        sharding_of(4, 1, 1),
        seed=3,
        batch=4,
        accumulation=1,
        context=CONTEXT,
        horizon=9,
    )
    yield batches
    batches.close()


@pytest.mark.parametrize("steps", [range(9), range(5, 9), [8], [4, 2, 2, 7]])
def test_a_batch_depends_on_its_step_alone(stream: Stream, batches: Batches, steps):
    for step in steps:
        rows = rows_at(3, step, 4, [ROWS])
        assert batches.rows(step).tolist() == rows.tolist()
        assert batches.hash(step) == batch_hash(stream, rows)
        tokens, weights = batches.at(step)
        expected_tokens, expected_weights = read_rows(stream, rows, CONTEXT)
        np.testing.assert_array_equal(tokens[0], expected_tokens)
        np.testing.assert_array_equal(weights[0], expected_weights)


def test_the_next_batch_is_read_ahead_up_to_the_horizon(batches: Batches):
    batches.at(3)
    assert list(batches._ahead) == [4]
    batches.at(8)
    assert 9 not in batches._ahead


@pytest.mark.parametrize(
    ("rows", "batch"), [(ROWS, 4), (ROWS, 8), (10**6, 8), (ROWS - 3, 4), (8, 8), (5, 8), (1, 4)]
)
def test_an_evaluation_reads_each_row_once_and_padding_has_no_weight(
    stream: Stream, rows: int, batch: int
):
    seen = []
    learned = 0
    for numbers, (tokens, weights) in fixed_batches(
        stream, rows=rows, batch=batch, context=CONTEXT, sharding=sharding_of(2, 2, 1)
    ):
        # One shape, so one compilation.
        assert tokens.shape == (1, batch, CONTEXT + 1)
        assert weights.shape == (1, batch, CONTEXT)
        expected_tokens, expected_weights = read_rows(stream, numbers, CONTEXT)
        np.testing.assert_array_equal(tokens[0, : len(numbers)], expected_tokens)
        np.testing.assert_array_equal(weights[0, : len(numbers)], expected_weights)
        assert not np.asarray(weights[0, len(numbers) :]).any()
        seen += numbers.tolist()
        learned += int(np.asarray(weights, int).sum())
    assert len(seen) == len(set(seen)) == min(rows, ROWS) and seen == sorted(seen)
    # Spread over the whole stream.
    assert seen[0] == 0 and (len(seen) == 1 or seen[-1] == ROWS - 1)
    assert learned == int(read_rows(stream, np.array(seen), CONTEXT)[1].sum())
