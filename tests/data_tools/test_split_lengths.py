"""A split that is too short for a row is reported with the --val-every that would do."""

import re
from pathlib import Path

import numpy as np
import pytest

from data_tools.encoders import Encoded
from data_tools.fineweb import prepare
from data_tools.recipe import Recipe
from data_tools.split_lengths import NEEDED, SplitLengths
from minigpt_jax.token_stream import Shard, read_manifest
from tests.data_tools.preparations import random_texts, write_jsonl


def warning(source: Path, out: Path, capsys, **settings) -> str | None:
    prepare(Recipe([str(source)], **settings), out, workers=1)
    found = re.search(r"^warning +(.*)$", capsys.readouterr().out, re.M)
    return found and found[1]


def tokens(out: Path) -> dict[str, int]:
    return {name: split["tokens"] for name, split in read_manifest(out)["splits"].items()}


def test_a_short_first_document_is_reported_with_what_would_do(tmp_path: Path, capsys):
    rows = [{"text": text} for text in ["Hello.", *random_texts(1, documents=40, words=200)]]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    said = warning(source, tmp_path / "short", capsys)
    assert said is not None
    assert said.startswith("the val split has 3 tokens, enough for model.context up to 2: ")
    advised = re.search(r"--val-every (\d+) would give at least ([0-9,]+) to both", said)
    assert advised
    assert warning(source, tmp_path / "good", capsys, val_every=int(advised[1])) is None
    smaller = min(tokens(tmp_path / "good").values())
    assert smaller == int(advised[2].replace(",", "")) >= NEEDED
    # One more, and it would not be enough.
    assert warning(source, tmp_path / "less", capsys, val_every=int(advised[1]) + 1) is not None


def test_a_text_alone_is_reported_with_what_would_do(tmp_path: Path, capsys):
    (tmp_path / "book.txt").write_text("\n".join(random_texts(1, documents=40, words=200)))
    said = warning(tmp_path / "book.txt", tmp_path / "short", capsys)
    advised = re.search(r"--val-every (\d+) would give about", said or "")
    assert advised
    more = {"val_every": int(advised[1])}
    assert warning(tmp_path / "book.txt", tmp_path / "good", capsys, **more) is None


def encoded(lengths: list[int], first: int = 0) -> Encoded:
    bounds = np.insert(np.cumsum(lengths), 0, 0)
    numbers = np.arange(first, first + len(lengths))
    return Encoded(numbers, bounds, np.zeros(bounds[-1], np.uint16), 1.0)


@pytest.mark.parametrize(
    ("lengths", "val_every", "advice"),
    [
        ([2000] * 10, 5, None),
        ([1, 2000, 2000, 2000], 9, "the val split has 1 .*--val-every 3 .* 2,001 to both"),
        ([9000, 10, 2000, 10], 2, "the train split has 20 .*--val-every 4 .* 2,020 to both"),
        ([10] * 6, 6, "the val split has 10 .*--val-every 2 .* 30 to both"),
        ([10, 10], 2, "the train split has 10 .*provide more text"),
    ],
)
def test_the_advice_is_the_largest_interval_that_does(
    lengths: list[int], val_every: int, advice: str | None
):
    split_lengths = SplitLengths(val_every)
    for first in range(0, len(lengths), 3):
        split_lengths.add(encoded(lengths[first : first + 3], first))
    val = sum(lengths[::val_every])
    counts = {"train": sum(lengths) - val, "val": val}
    shards = {name: [Shard("a", count, "")] for name, count in counts.items()}
    found = split_lengths.advice(shards, is_whole=True)
    if advice is None:
        assert found is None
    else:
        assert found is not None and re.search(advice, found), found
