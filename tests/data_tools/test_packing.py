"""Every conversation is whole in one row, the rows are full, and lengths are mixed."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.conversations import Conversation
from data_tools.packing import expect_free, pack, write_packed
from minigpt_jax.errors import RunError
from minigpt_jax.tokenizer import load_tokenizer

CONTEXT = 8
SPLITS = {
    split: [Conversation(np.ones(5, np.uint16), np.ones(5, np.uint8))] for split in ("train", "val")
}


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


@pytest.mark.parametrize("deleted", range(5))
def test_data_can_be_written_again_after_its_replacement_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: int
):
    """The first write leaves a manifest and, for each of two splits, tokens and a mask."""

    def write() -> None:
        write_packed(tmp_path, SPLITS, CONTEXT, load_tokenizer(), "a test")

    write()
    unlink = Path.unlink
    paths: list[Path] = []

    def fail_after(path: Path, missing_ok: bool = False) -> None:
        if len(paths) == deleted:
            raise PermissionError(13, "Permission denied")
        paths.append(path)
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail_after)
        with pytest.raises(RunError, match=r"Permission denied.*same command"):
            write()
    expect_free(tmp_path, overwrite=deleted == 0)
    write()
