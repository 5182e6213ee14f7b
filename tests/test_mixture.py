"""A mixture gives each folder its share, from the number of the row alone, and resumes exactly."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minigpt_jax.data import Batches, read_rows, row_count, row_order, rows_at
from minigpt_jax.errors import InputError
from minigpt_jax.mixture import (
    Source,
    first_rows,
    identity,
    joined,
    rows_of_each,
    shares_of,
    turns,
)
from minigpt_jax.sharding import batch_sharding, make_mesh
from minigpt_jax.token_stream import Stream

CONTEXT = 5
# Rows of the sources below, and the shares of a mixture of them.
ROWS, SHARES = [23, 7, 40], [5, 3, 2]


# ---- whose row comes next


def test_the_turns_never_change():
    """A run that is resumed with other turns would not be the run that was started."""
    expected = {
        (7, 3): "01000100100100010010",
        (1, 1): "0101010101" * 2,
        (5, 3, 2): "0102010201" * 2,
        (1, 98, 1): "1" * 20,
    }
    found = {shares: "".join(str(s) for s, _ in turns(0, 20, shares)) for shares in expected}
    assert found == expected


@example([997, 991, 983, 977, 5, 1], 12345)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12), st.integers(0, 2**51))
def test_each_source_has_its_share_after_any_number_of_rows(shares: list[int], rows: int):
    counts = rows_of_each(rows, shares)
    assert sum(counts) == rows
    limit = 1 if len(shares) <= 3 else 2
    for count, share in zip(counts, shares, strict=True):
        # In whole numbers, which are exact: |count - rows * share / total| < limit.
        assert abs(count * sum(shares) - rows * share) < limit * sum(shares)
    # The next row belongs to one source, and nothing else changes.
    differences = [a - b for a, b in zip(rows_of_each(rows + 1, shares), counts, strict=True)]
    assert sorted(differences) == [0] * (len(shares) - 1) + [1]


def test_turns_count_the_rows_of_their_source():
    seen = [0, 0, 0]
    for source, before in turns(0, 500, SHARES):
        assert before == seen[source]
        seen[source] += 1
    assert seen == [250, 150, 100]
    # Also far from the beginning, without the turns before.
    late = list(turns(10**12, 10**12 + 10, SHARES))
    assert late == [(s, n + 10**11 * SHARES[s]) for s, n in turns(0, 10, SHARES)]


# ---- the rows of a step


def stream_of(rows: int, first: int, masked: bool, name: str) -> Stream:
    """A stream in memory of `rows` rows and two more tokens: `first`, `first` + 1, ..."""
    tokens = np.arange(first, first + rows * CONTEXT + 3, dtype=np.uint16)
    # Three files; the last one holds the tokens that do not fill a row.
    parts = (tokens[:7], tokens[7:-2], tokens[-2:])
    masks = tuple((part % 3 > 0).astype(np.uint8) for part in parts) if masked else None
    return Stream("train", name, (0, 7, len(tokens) - 2, len(tokens)), parts, masks)


def sources_of(masked: bool = True) -> list[Source]:
    streams = [stream_of(n, 1000 * i, masked, f"id{i}") for i, n in enumerate(ROWS)]
    return [
        Source(f"data/{i}", share, stream, stream)
        for i, (share, stream) in enumerate(zip(SHARES, streams, strict=True))
    ]


@pytest.mark.parametrize("masked", [False, True])
def test_a_joined_stream_holds_each_row_of_each_source(masked: bool):
    sources = sources_of(masked)
    whole = joined(sources, ROWS, CONTEXT)
    for source, first, rows in zip(sources, first_rows(ROWS), ROWS, strict=True):
        assert row_count(source.train, CONTEXT) == rows
        numbers = np.arange(rows)
        found = read_rows(whole, first + numbers, CONTEXT)
        for array, expected in zip(found, read_rows(source.train, numbers, CONTEXT), strict=True):
            np.testing.assert_array_equal(array, expected)


def test_each_source_is_read_in_its_own_epochs():
    batch, steps = 8, 60
    visited = np.concatenate([rows_at(3, step, batch, ROWS, SHARES) for step in range(steps)])
    for i, (first, rows, share) in enumerate(zip(first_rows(ROWS), ROWS, SHARES, strict=True)):
        own = visited[(first <= visited) & (visited < first + rows)] - first
        assert len(own) == batch * steps * share // 10
        for epoch in range(len(own) // rows):
            found = own[epoch * rows : (epoch + 1) * rows].tolist()
            assert sorted(found) == list(range(rows))
            assert found == row_order(3 + (i << 32), epoch, rows).tolist()
    # Sources of equal length have different orders.
    a, b = (rows_at(3, 0, 40, [20, 20], [1, 1])[i::2] for i in (0, 1))
    assert sorted(a) == sorted(b - 21) and a.tolist() != (b - 21).tolist()


def test_one_folder_alone_has_the_rows_and_hashes_that_it_had_without_mixtures():
    stream = stream_of(23, 0, True, "id")
    single = [Source("data", 1, stream, stream)]
    assert joined(single, [23], CONTEXT) is stream and identity(single) == "id"
    order = np.concatenate([row_order(9, epoch, 23) for epoch in range(4)])
    for step in range(11):
        assert rows_at(9, step, 8, [23]).tolist() == order[8 * step : 8 * step + 8].tolist()
    assert shares_of("elsewhere", "data=0.3") == shares_of("data", "") == {"data": 1}


@pytest.mark.parametrize("mesh", [(4, 1, 1), (1, 4, 1), (2, 1, 2)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_batch_of_a_step_is_the_same_on_every_mesh_and_after_any_step(mesh, accumulation):
    batches = Batches(
        sources_of(),
        batch_sharding(make_mesh(*mesh)),
        seed=3,
        batch=8,
        accumulation=accumulation,
        context=CONTEXT,
        horizon=10**7,
    )
    # Sources 0 to 2 begin at the tokens 0, 1000 and 2000.
    for step in (10**6, 0, 31, 2):
        tokens, weights = (np.asarray(jax.device_get(array)) for array in batches.at(step))
        places = turns(8 * step, 8 * step + 8, SHARES)
        for row, weight, (source, before) in zip(
            tokens.reshape(8, -1), weights.reshape(8, -1), places, strict=True
        ):
            epoch, place = divmod(before, ROWS[source])
            number = row_order(3 + (source << 32), epoch, ROWS[source])[place]
            begin = 1000 * source + CONTEXT * number
            assert row.tolist() == list(range(begin, begin + CONTEXT + 1))
            position = row[1:] - 1000 * source
            assert weight.tolist() == ((position + 1000 * source) % 3 > 0).tolist()
    batches.close()


def test_the_order_of_each_epoch_is_computed_once():
    """It takes a second for a large folder."""
    batches = Batches(
        sources_of(),
        batch_sharding(make_mesh()),
        seed=3,
        batch=4,
        accumulation=1,
        context=CONTEXT,
        horizon=50,
    )
    for step in range(50):
        batches.rows(step)
    epochs = {(source, before // ROWS[source]) for source, before in turns(0, 200, SHARES)}
    misses = [order.cache_info().misses for order in batches._orders]
    assert sum(misses) == len(epochs) == 15
    batches.close()


def test_the_identity_changes_with_shares_order_and_data():
    sources = sources_of()
    others = [
        sources[::-1],
        sources[:2],
        [replace(sources[0], share=6), *sources[1:]],
        [replace(sources[0], train=stream_of(23, 0, True, "other")), *sources[1:]],
    ]
    moved = [replace(source, folder="moved") for source in sources]
    assert identity(moved) == identity(sources)
    assert len({identity(found) for found in [sources, *others]}) == 5


# ---- the field


def test_weights_are_exact_and_names_survive():
    assert shares_of("", "data/a=0.7,data/b=0.3") == {"data/a": 7, "data/b": 3}
    assert shares_of("", "data/a=70, data/b=30") == {"data/a": 7, "data/b": 3}
    assert shares_of("", "my data/x=1=1e-3,b=.25") == {"my data/x=1": 1, "b": 250}
    thirds = shares_of("", "a=0.333,b=0.333,c=0.334")
    assert thirds == {"a": 333, "b": 333, "c": 334}
    assert math.isclose(shares_of("", "a=1e300,b=1e-300")["a"] / 10**600, 1)


def test_a_tilde_in_a_mixture_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert list(shares_of("", "~/a=1,b~=1")) == ["/home/me/a", "b~"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data/a", ["'data/a'", "FOLDER=WEIGHT"]),
        ("a=1,", ["''", "FOLDER=WEIGHT"]),
        (" ", ["''", "FOLDER=WEIGHT"]),
        ("=0.5", ["'=0.5'", "FOLDER=WEIGHT"]),
        ("a,b=1", ["'a'", "a comma between"]),
        ("a=0,b=1", ["a has the weight '0'", "above 0"]),
        ("a=1,b=-1", ["b has the weight '-1'", "above 0"]),
        ("a=nan", ["'nan'", "above 0"]),
        ("a=inf", ["'inf'", "above 0"]),
        ("a=1e999", ["'1e999'", "above 0"]),
        ("a=1e-999", ["'1e-999'", "above 0"]),
        ("a=70%", ["'70%'", "above 0"]),
        ("a=", ["a has the weight ''", "above 0"]),
        ("a=1,b=1,a=2", ["a and a are the same folder"]),
        ("a=1,b/../a/=2", ["a and b/../a/ are the same folder"]),
    ],
)
def test_a_wrong_mixture_is_refused_in_one_line(text: str, words: list[str]):
    with pytest.raises(InputError) as refused:
        shares_of("", text)
    message = str(refused.value)
    assert message.startswith("data.mixture: ") and "\n" not in message
    assert all(word in message for word in words), message
