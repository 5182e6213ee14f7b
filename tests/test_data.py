"""Which rows a step trains on is a pure function of (seed, step): every row once an epoch, the same on every mesh, for ever."""

import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax.data import (
    batch_at,
    batch_hash,
    device_batches,
    fixed_batches,
    read_rows,
    row_count,
    row_order,
    rows_at,
)
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.sharding import batch_sharding, make_mesh
from minigpt_jax.token_stream import Stream, open_stream

CONTEXT, ROWS = 5, 23
MESHES = [(4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 1), (2, 1, 2), (1, 2, 2)]
REASON = (
    "The order of rows has changed, so a run that is resumed with this code is no longer the run that was begun. Updating these "
    "values is right only when the order was changed on purpose and the change is announced as one that old runs cannot be resumed over; "
    "it is never right because of a new numpy."
)


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Stream:
    """ROWS rows and three tokens too many, in shards that no row length divides; every token is another, masks are random."""
    folder: Path = tmp_path_factory.mktemp("stream")
    count = ROWS * CONTEXT + 1 + 3
    writer = ShardWriter(folder, "train", shard_tokens=7, masked=True)
    writer.append(
        np.arange(count, dtype=np.uint16), np.random.default_rng(0).integers(0, 2, count, np.uint8)
    )
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


def test_the_order_is_a_permutation_of_its_own_for_every_seed_and_epoch():
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
    assert (
        hashlib.sha256(long).hexdigest()
        == "a8cb6b67c5e7092046195f94bda3ffa67eabd255a80da6d62f1cccc0de99d644"
    ), REASON


@pytest.mark.parametrize(
    ("batch", "rows"), [(1, 1), (1, 10), (4, 12), (4, 10), (7, 10), (10, 10), (25, 10), (3, 1)]
)
def test_every_row_comes_once_an_epoch_also_where_an_epoch_ends_within_a_batch(
    batch: int, rows: int
):
    epochs = 7
    steps = -(-epochs * rows // batch)
    visited = np.concatenate([rows_at(5, step, batch, rows) for step in range(steps)])
    for epoch in range(epochs):
        assert (
            visited[epoch * rows : (epoch + 1) * rows].tolist()
            == row_order(5, epoch, rows).tolist()
        )


def test_a_step_is_a_function_of_its_number_alone():
    forward = [rows_at(9, step, 4, 10).tolist() for step in range(20)]
    assert [rows_at(9, step, 4, 10).tolist() for step in reversed(range(20))] == forward[::-1]
    assert rows_at(10, 3, 4, 10).tolist() != forward[3]


# ---- the rows


def test_a_row_is_what_the_format_says(stream: Stream):
    assert row_count(stream, CONTEXT) == ROWS
    tokens, weights = read_rows(stream, np.arange(ROWS), CONTEXT)
    assert (
        tokens.dtype == np.uint16
        and weights.dtype == np.uint8
        and tokens.shape == (ROWS, CONTEXT + 1)
        and weights.shape == (ROWS, CONTEXT)
    )
    mask = stream.read_mask(0, stream.length)
    for i in range(ROWS):
        assert tokens[i].tolist() == list(range(i * CONTEXT, i * CONTEXT + CONTEXT + 1))
        assert weights[i].tolist() == mask[i * CONTEXT + 1 : i * CONTEXT + CONTEXT + 1].tolist()
    square, _ = read_rows(stream, np.arange(6).reshape(2, 3), CONTEXT)
    assert np.array_equal(square, tokens[:6].reshape(2, 3, -1))


def test_a_stream_one_token_short_of_a_row_has_one_row_less(stream: Stream):
    lengths = {CONTEXT: ROWS, stream.length - 1: 1, stream.length: 0, (stream.length - 1) // 2: 2}
    assert {context: row_count(stream, context) for context in lengths} == lengths


def test_the_hash_names_the_rows_and_the_data(stream: Stream, tmp_path: Path):
    rows = np.array([3, 1, 2])
    name = batch_hash(stream, rows)
    assert len(name) == 16 and name == batch_hash(stream, rows.astype(np.int32))
    other = Stream(stream.name, "another", stream.starts, stream.tokens, stream.masks)
    assert (
        len(
            {
                name,
                batch_hash(stream, rows[::-1]),
                batch_hash(stream, rows[:2]),
                batch_hash(other, rows),
            }
        )
        == 4
    )


# ---- on devices


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("accum", [1, 2])
def test_a_global_batch_holds_the_rows_asked_for_on_every_mesh(
    stream: Stream, mesh: tuple, accum: int
):
    assert jax.device_count() == 4
    rows = rows_at(1, 2, 8, ROWS)
    tokens, weights = read_rows(stream, rows.reshape(accum, -1), CONTEXT)
    for array, expected in zip(
        batch_at(stream, rows, CONTEXT, accum, sharding_of(*mesh)), (tokens, weights), strict=True
    ):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
        assert len(array.addressable_shards) == 4
        for shard in array.addressable_shards:  # each device holds its own part, not the whole
            np.testing.assert_array_equal(shard.data, expected[shard.index])
            assert shard.data.shape[1] == 8 // accum // (mesh[0] * mesh[1])


def test_the_reader_ahead_gives_what_the_step_asks_for_wherever_it_begins(stream: Stream):
    sharding = sharding_of(4, 1, 1)
    how = {"seed": 3, "batch": 4, "context": CONTEXT, "accum": 1, "sharding": sharding}
    for steps in (range(0, 9), range(5, 9), range(8, 9), range(9, 9)):
        batches = list(device_batches(stream, steps=steps, **how))
        assert len(batches) == len(steps)
        for step, (rows, (tokens, weights)) in zip(steps, batches, strict=True):
            assert rows.tolist() == rows_at(3, step, 4, ROWS).tolist()
            expected = read_rows(stream, rows, CONTEXT)
            assert np.array_equal(tokens[0], expected[0]) and np.array_equal(
                weights[0], expected[1]
            )


@pytest.mark.parametrize(
    ("rows", "batch"), [(ROWS, 4), (ROWS, 8), (10**6, 8), (ROWS - 3, 4), (8, 8), (5, 8), (1, 4)]
)
def test_evaluation_sees_each_of_its_rows_once_and_padding_weighs_nothing(
    stream: Stream, rows: int, batch: int
):
    seen, learned = [], 0
    for live, (tokens, weights) in fixed_batches(
        stream, rows=rows, batch=batch, context=CONTEXT, sharding=sharding_of(2, 2, 1)
    ):
        assert tokens.shape == (1, batch, CONTEXT + 1) and weights.shape == (
            1,
            batch,
            CONTEXT,
        )  # one shape, one compilation
        expected = read_rows(stream, live, CONTEXT)
        np.testing.assert_array_equal(tokens[0, : len(live)], expected[0])
        np.testing.assert_array_equal(weights[0, : len(live)], expected[1])
        assert not np.asarray(weights[0, len(live) :]).any()
        seen += live.tolist()
        learned += int(np.asarray(weights, int).sum())
    assert len(seen) == len(set(seen)) == min(rows, ROWS) and seen == sorted(seen)
    assert seen[0] == 0 and (len(seen) == 1 or seen[-1] == ROWS - 1)  # spread over the whole stream
    assert learned == int(read_rows(stream, np.array(seen), CONTEXT)[1].sum())
