"""Every conversation is whole in one row, the rows are full, and lengths are mixed."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.packing import pack


def test_packing_fills_the_rows_and_mixes_lengths():
    draw = random.Random(1)
    lengths = [min(256, 8 + int(draw.expovariate(1 / 40))) for _ in range(2000)]
    rows = pack(lengths, 256)
    assert sorted(number for row in rows for number in row) == list(range(2000))
    fills = [sum(lengths[number] for number in row) for row in rows]
    assert max(fills) <= 256 and sum(fills) > 0.99 * 256 * len(rows)
    middle = len(rows) // 2
    first, second = (
        np.mean([lengths[number] for row in half for number in row])
        for half in (rows[:middle], rows[middle:])
    )
    assert 0.5 < first / second < 2
    assert pack([256, 256], 256) == [[0], [1]]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 70))
@settings(max_examples=300, deadline=None)
def test_every_conversation_is_in_one_row_that_has_space_for_it(lengths: list[int], context: int):
    rows = pack(lengths, context)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[number] for number in row) for row in rows)
    assert all(0 < length <= context for length in filled)
    # No two rows would fit into one.
    assert len(filled) < 2 or filled[0] + filled[1] > context
