"""What is written is what is read: for any number of shards, any range, and after a kill."""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from minigpt_jax.runtime.files import sha256
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.token_stream import Shard, Stream, mask_file, open_stream
from minigpt_jax.tokenizer import TEXT_VOCAB
from tests.streams import READ, TOKENIZER, write_splits

# Longer than the shortest stream that can be opened.
TAIL = [1, 2, 3, 4, 5]


def write_train_manifest(folder: Path, shards: list[Shard]) -> Stream:
    """Write a manifest with a train split alone, and open it."""
    write_manifest(
        folder,
        {"train": (shards, 1)},
        tokenizer=TOKENIZER,
        vocab_size=TEXT_VOCAB,
        context=None,
        source="test",
    )
    return open_stream(folder, "train", **READ)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(
    st.lists(st.lists(st.integers(0, TEXT_VOCAB - 1), max_size=40), min_size=1, max_size=8),
    st.integers(1, 30),
    st.data(),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_appended_tokens_are_read_back_in_any_range(
    pieces: list[list[int]], shard_tokens: int, data
):
    pieces = [*pieces, TAIL]
    tokens = [token for piece in pieces for token in piece]
    mask = [token % 2 for token in tokens]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = ShardWriter(folder, "train", shard_tokens, masked=True)
        for piece in pieces:
            array = np.array(piece, np.uint16)
            writer.append(array, (array % 2).astype(np.uint8))
        stream = write_train_manifest(folder, writer.close())
        start = data.draw(st.integers(0, len(tokens) - 1))
        stop = data.draw(st.integers(start + 1, len(tokens)))
        assert stream.length == len(tokens)
        assert stream.read(start, stop).tolist() == tokens[start:stop]
        assert stream.read_mask(start, stop).tolist() == mask[start:stop]


def test_every_range_equals_the_concatenation_for_every_cut_into_shards(tmp_path: Path):
    """All 64 ways to cut 7 tokens into shards: a range may start or end in any of them."""
    tokens = np.array([3, 1, 4, 1, 5, 9, 2], np.uint16)
    mask = np.array([0, 1, 1, 0, 1, 0, 1], np.uint8)
    positions = range(1, 7)
    cuts = [c for n in range(7) for c in itertools.combinations(positions, n)]
    assert len(cuts) == 64
    for cut in cuts:
        folder = tmp_path / ("cut" + "".join(map(str, cut)))
        folder.mkdir()
        shards = []
        for number, (start, stop) in enumerate(itertools.pairwise((0, *cut, 7))):
            name = f"train_{number:06d}.npy"
            np.save(folder / name, tokens[start:stop])
            np.save(folder / mask_file(name), mask[start:stop])
            shards.append(Shard(name, stop - start, "", ""))
        stream = write_train_manifest(folder, shards)
        assert stream.length == 7
        assert len(stream.tokens) == len(cut) + 1
        for start, stop in itertools.combinations(range(8), 2):
            np.testing.assert_array_equal(stream.read(start, stop), tokens[start:stop], strict=True)
            np.testing.assert_array_equal(
                stream.read_mask(start, stop), mask[start:stop], strict=True
            )


@pytest.mark.parametrize("shard_tokens", [1, 7, 8, 100])
def test_the_shards_do_not_depend_on_how_the_tokens_are_appended(tmp_path: Path, shard_tokens: int):
    count = 50
    tokens = np.arange(count, dtype=np.uint16)
    mask = (np.arange(count) % 2).astype(np.uint8)
    full, rest = divmod(count, shard_tokens)
    expected_sizes = [shard_tokens] * full + ([rest] if rest else [])
    written = []
    for portions in ([50], [1] * 50, [0, 3, 20, 0, 27], [shard_tokens] * full):
        folder = tmp_path / f"portions{len(written)}"
        folder.mkdir()
        writer = ShardWriter(folder, "train", shard_tokens, masked=True)
        position = 0
        for size in [*portions, count - sum(portions)]:
            writer.append(tokens[position : position + size], mask[position : position + size])
            position += size
        shards = writer.close()
        assert [shard.tokens for shard in shards] == expected_sizes
        for shard in shards:
            assert shard.sha256 == sha256(folder / shard.file)
            assert shard.mask_sha256 == sha256(folder / mask_file(shard.file))
        written.append(contents(folder))
    assert all(files == written[0] for files in written)
    # No temporary file is left.
    assert len(written[0]) == 2 * len(expected_sizes)


def test_a_stream_without_a_mask_learns_every_token(tmp_path: Path):
    stream = open_stream(write_splits(tmp_path / "plain"), "train", **READ)
    assert stream.masks is None
    assert stream.read_mask(3, 15).tolist() == [1] * 12
    masked = open_stream(write_splits(tmp_path / "masked", masked=True, context=4), "train", **READ)
    assert masked.read_mask(6, 12).tolist() == [0, 1, 1, 0, 1, 1]


def test_a_mask_is_required_in_every_append_or_in_none(tmp_path: Path):
    one = np.ones(1, np.uint16)
    with pytest.raises(ValueError, match="or none has"):
        ShardWriter(tmp_path, "train", 8, masked=True).append(one)
    with pytest.raises(ValueError, match="or none has"):
        ShardWriter(tmp_path, "train", 8).append(one, np.ones(1, np.uint8))


def test_a_writer_continues_after_the_shards_of_another_process(tmp_path: Path):
    tokens = np.arange(20, dtype=np.uint16)
    whole = tmp_path / "whole"
    whole.mkdir()
    writer = ShardWriter(whole, "train", 8)
    writer.append(tokens)
    halves = tmp_path / "halves"
    halves.mkdir()
    first = ShardWriter(halves, "train", 8)
    first.append(tokens[:8])
    second = ShardWriter(halves, "train", 8, shards=tuple(first.shards))
    second.append(tokens[8:])
    assert second.close() == writer.close()
    assert contents(whole) == contents(halves)


def test_the_identity_changes_with_the_content_alone(tmp_path: Path):
    def identity(folder: Path) -> str:
        return open_stream(folder, "train", **READ).identity

    first = identity(write_splits(tmp_path / "a"))
    assert identity(write_splits(tmp_path / "b")) == first
    others = [
        write_splits(tmp_path / "longer", tokens=21),
        write_splits(tmp_path / "cut", shard_tokens=9),
        write_splits(tmp_path / "masked", masked=True),
    ]
    assert len({first, *map(identity, others)}) == 4


WRITE_ONE_SHARD = """
import sys
from pathlib import Path
import numpy as np
from minigpt_jax.shard_writer import ShardWriter
ShardWriter(Path(sys.argv[1]), "train", 8).append(np.zeros(8, np.uint16))
print("written")
"""


def write_one_shard(folder: Path, failpoint: str) -> subprocess.CompletedProcess:
    environment = {"MINIGPT_FAILPOINT": failpoint, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", WRITE_ONE_SHARD, str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_kill_before_the_rename_leaves_no_file_of_the_final_name(tmp_path: Path):
    done = write_one_shard(tmp_path, "before_replace:kill")
    assert done.returncode == -signal.SIGKILL
    assert not done.stdout
    assert not (tmp_path / "train_000000.npy").exists()


def test_a_full_disk_leaves_no_half_written_file(tmp_path: Path):
    done = write_one_shard(tmp_path, "before_replace:enospc")
    assert "no space left" in done.stderr.lower()
    assert not done.stdout
    assert list(tmp_path.iterdir()) == []
