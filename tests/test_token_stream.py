"""The file format: what was written is what is read, across files; and no damaged or foreign file is ever trained on."""

import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import sha256
from minigpt_jax.token_stream import (
    MANIFEST,
    Shard,
    ShardWriter,
    mask_file,
    open_stream,
    read_manifest,
    write_manifest,
)
from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB

TOKENIZER = "ab" * 32
READ = {"tokenizer": TOKENIZER, "vocab_size": TEXT_VOCAB, "context": 4}


def prepared(
    folder: Path,
    tokens: int = 20,
    shard_tokens: int = 8,
    masked: bool = False,
    context: int | None = None,
) -> Path:
    """Both splits: tokens 100, 101, ... and, where `masked`, a mask of 0, 1, 1, 0, 1, 1, ..."""
    folder.mkdir()
    splits = {}
    for split in ("train", "val"):
        writer = ShardWriter(folder, split, shard_tokens, masked=masked)
        writer.append(
            np.arange(100, 100 + tokens, dtype=np.uint16),
            np.sign(np.arange(tokens) % 3).astype(np.uint8) if masked else None,
        )
        splits[split] = (writer.close(), 1)
    write_manifest(
        folder, splits, tokenizer=TOKENIZER, vocab_size=TEXT_VOCAB, context=context, source="test"
    )
    return folder


def edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


# ---- what was written is what is read


@given(
    st.lists(st.lists(st.integers(0, 50256), max_size=40), min_size=1, max_size=8),
    st.integers(1, 30),
    st.data(),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_pieces_in_any_shards_are_read_back_in_any_range(
    pieces: list[list[int]], shard_tokens: int, data
):
    whole = [token for piece in pieces for token in piece] + [1, 2, 3, 4, 5]
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), "train", shard_tokens, masked=True)
        for piece in [*pieces, [1, 2, 3, 4, 5]]:
            writer.append(
                np.array(piece, np.uint16), np.array(piece, np.uint16).astype(np.uint8) % 2
            )
        write_manifest(
            Path(folder),
            {"train": (writer.close(), 1)},
            tokenizer=TOKENIZER,
            vocab_size=TEXT_VOCAB,
            context=None,
            source="any",
        )
        stream = open_stream(Path(folder), "train", **READ)
        start = data.draw(st.integers(0, len(whole) - 1))
        stop = data.draw(st.integers(start + 1, len(whole)))
        assert (
            stream.length == len(whole) and stream.read(start, stop).tolist() == whole[start:stop]
        )
        assert stream.read_mask(start, stop).tolist() == [
            np.uint8(token % 256) % 2 for token in whole[start:stop]
        ]


def test_reading_equals_the_concatenation_for_every_cut_and_every_range(tmp_path: Path):
    """All 64 ways to cut 7 tokens into files, and of each all ranges: where a range begins, ends or spans a file."""
    tokens, mask = (
        np.array([3, 1, 4, 1, 5, 9, 2], np.uint16),
        np.array([0, 1, 1, 0, 1, 0, 1], np.uint8),
    )
    for cuts in itertools.chain.from_iterable(
        itertools.combinations(range(1, 7), n) for n in range(7)
    ):
        folder = tmp_path / ("cut" + "".join(map(str, cuts)))
        folder.mkdir()
        shards = []
        for number, (start, stop) in enumerate(itertools.pairwise((0, *cuts, 7))):
            name = f"train_{number:06d}.npy"
            np.save(folder / name, tokens[start:stop])
            np.save(folder / mask_file(name), mask[start:stop])
            shards.append(Shard(name, stop - start, "", ""))
        write_manifest(
            folder,
            {"train": (shards, 1)},
            tokenizer=TOKENIZER,
            vocab_size=TEXT_VOCAB,
            context=None,
            source="test",
        )
        stream = open_stream(folder, "train", **READ)
        assert stream.length == 7 and len(stream.tokens) == len(cuts) + 1
        for start, stop in itertools.combinations(range(8), 2):
            np.testing.assert_array_equal(stream.read(start, stop), tokens[start:stop], strict=True)
            np.testing.assert_array_equal(
                stream.read_mask(start, stop), mask[start:stop], strict=True
            )


@pytest.mark.parametrize("shard_tokens", [1, 7, 8, 100])
def test_the_writer_cuts_by_size_whatever_it_is_given_at_once(tmp_path: Path, shard_tokens: int):
    tokens, mask = np.arange(50, dtype=np.uint16), (np.arange(50) % 2).astype(np.uint8)
    contents = []
    for portions in ([50], [1] * 50, [0, 3, 20, 0, 27], [shard_tokens] * (50 // shard_tokens)):
        folder = tmp_path / f"portions{len(contents)}"
        folder.mkdir()
        writer = ShardWriter(folder, "train", shard_tokens, masked=True)
        position = 0
        for size in [*portions, 50 - sum(portions)]:
            writer.append(tokens[position : position + size], mask[position : position + size])
            position += size
        shards = writer.close()
        assert [s.tokens for s in shards] == [shard_tokens] * (50 // shard_tokens) + [
            50 % shard_tokens
        ] * (50 % shard_tokens > 0)
        for s in shards:
            assert s.sha256 == sha256(folder / s.file) and s.mask_sha256 == sha256(
                folder / mask_file(s.file)
            )
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert all(c == contents[0] for c in contents)
    assert len(contents[0]) == 2 * len(
        shards
    )  # the files and nothing else: no temporary one is left


def test_a_stream_without_a_mask_learns_everything(tmp_path: Path):
    stream = open_stream(prepared(tmp_path / "plain"), "train", **READ)
    assert stream.masks is None and stream.read_mask(3, 15).tolist() == [1] * 12
    masked = open_stream(prepared(tmp_path / "masked", masked=True, context=4), "train", **READ)
    assert masked.read_mask(6, 12).tolist() == [0, 1, 1, 0, 1, 1]


def test_a_stream_is_masked_from_its_first_token_to_its_last(tmp_path: Path):
    one = np.ones(1, np.uint16)
    with pytest.raises(ValueError, match="none at all"):
        ShardWriter(tmp_path, "train", 8, masked=True).append(one)
    with pytest.raises(ValueError, match="none at all"):
        ShardWriter(tmp_path, "train", 8).append(one, np.ones(1, np.uint8))


def test_a_writer_goes_on_where_another_process_stopped(tmp_path: Path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    tokens = np.arange(20, dtype=np.uint16)
    whole.mkdir(), halves.mkdir()
    writer = ShardWriter(whole, "train", 8)
    writer.append(tokens)
    first = ShardWriter(halves, "train", 8)
    first.append(tokens[:8])
    second = ShardWriter(halves, "train", 8, shards=tuple(first.shards))
    second.append(tokens[8:])
    assert second.close() == writer.close()
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {
        p.name: p.read_bytes() for p in halves.iterdir()
    }


def test_the_identity_changes_with_any_token_and_with_nothing_else(tmp_path: Path):
    def identity(folder):
        return open_stream(folder, "train", **READ).identity

    assert identity(prepared(tmp_path / "a")) == identity(prepared(tmp_path / "b"))
    others = [
        prepared(tmp_path / "longer", tokens=21),
        prepared(tmp_path / "cut", shard_tokens=9),
        prepared(tmp_path / "masked", masked=True),
    ]
    assert len({identity(folder) for folder in [tmp_path / "a", *others]}) == 4


def test_a_kill_before_a_file_has_its_name_leaves_no_file_of_that_name(tmp_path: Path):
    program = (
        "import sys, numpy as np; from pathlib import Path; from minigpt_jax.token_stream import ShardWriter\n"
        "w = ShardWriter(Path(sys.argv[1]), 'train', 8); w.append(np.zeros(8, np.uint16)); print('written')"
    )
    environment = os.environ | {
        "MINIGPT_FAILPOINT": "before_replace:kill",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -9 and not done.stdout
    assert not (tmp_path / "train_000000.npy").exists()
    full = environment | {"MINIGPT_FAILPOINT": "before_replace:enospc"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=full,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "No space left" in done.stderr or "no space left" in done.stderr
    assert list(tmp_path.iterdir()) == []  # a full disk is given back what was half written


# ---- no damaged or foreign file is ever trained on


def npy(array: np.ndarray, **how) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def npz(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


SECOND = np.arange(108, 116, dtype=np.uint16)  # what the second shard of prepared() holds
GOOD = npy(SECOND)
HEADER = len(GOOD) - SECOND.nbytes
BAD_SHARDS: dict[str, tuple[bytes | None, str]] = {
    "empty": (b"", "not a readable .npy array"),
    "header only": (GOOD[:HEADER], "expected more by its header"),
    "half a header": (GOOD[:20], "not a readable .npy array"),
    "truncated": (GOOD[:-2], "expected more by its header"),
    "truncated in a token": (GOOD[:-1], "expected more by its header"),
    "trailing bytes": (GOOD + b"\0\0", "2 bytes after the array"),
    "npz": (npz(SECOND), "not a readable .npy array"),
    "text": (b"not tokens at all", "not a readable .npy array"),
    "pickled": (
        npy(np.array([{"a": 1}] * 8, object), allow_pickle=True),
        "not a readable .npy array",
    ),
    "structured": (npy(np.zeros(8, [("a", "<u2")])), "expected one dimension of uint16"),
    "two dimensions": (
        npy(SECOND.reshape(2, 4)),
        r"found <u2 with shape \(2, 4\), expected one dimension of uint16",
    ),
    "no dimension": (
        npy(np.array(3, np.uint16)),
        r"found <u2 with shape \(\), expected one dimension of uint16",
    ),
    "float32": (
        npy(SECOND.astype(np.float32)),
        r"found <f4 with shape \(8,\), expected one dimension of uint16",
    ),
    "int64": (npy(SECOND.astype(np.int64)), "found <i8 .* expected one dimension of uint16"),
    "int16": (npy(SECOND.astype(np.int16)), "found <i2 .* expected one dimension of uint16"),
    "uint8": (npy(SECOND.astype(np.uint8)), r"found \|u1 .* expected one dimension of uint16"),
    "big-endian": (npy(SECOND.astype(">u2")), "found >u2 .* expected one dimension of uint16"),
    "an id beyond the vocabulary": (
        npy(np.where(SECOND == 110, TEXT_VOCAB, SECOND).astype(np.uint16)),
        "holds id 50257, .* ends at 50256",
    ),
    "the largest id": (
        npy(np.where(SECOND == 110, 65535, SECOND).astype(np.uint16)),
        "holds id 65535, .* ends at 50256",
    ),
    "no token": (npy(SECOND[:0]), "found 0 tokens, .* says 8|not a readable"),
    "fewer tokens": (npy(SECOND[:7]), "found 7 tokens, .* says 8: it changed"),
    "more tokens": (npy(np.append(SECOND, SECOND)), "found 16 tokens, .* says 8: it changed"),
    "missing": (None, "missing, although manifest.json lists it"),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_a_bad_shard_is_refused_in_one_line(tmp_path: Path, case: str):
    folder, (content, complaint) = prepared(tmp_path / "data"), BAD_SHARDS[case]
    open_stream(folder, "train", **READ)  # it is good but for what comes next
    path = folder / "train_000001.npy"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=complaint) as refused:
        open_stream(folder, "train", **READ)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


def test_every_damaged_byte_of_a_header_is_refused_or_harmless(tmp_path: Path):
    folder = prepared(tmp_path / "data")
    path, refusals = folder / "train_000001.npy", 0
    good = path.read_bytes()
    assert good == GOOD
    for position in range(HEADER):
        for bit in (0, 3, 7):
            content = bytearray(good)
            content[position] ^= 1 << bit
            path.write_bytes(content)
            try:
                assert open_stream(folder, "train", **READ).read(0, 20).tolist() == list(
                    range(100, 120)
                )
            except InputError as error:
                refusals += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert refusals > HEADER


BAD_MASKS = {
    "missing": (None, "missing, although manifest.json lists it"),
    "shorter": (npy(np.ones(7, np.uint8)), "found 7 tokens, manifest.json says 8"),
    "uint16": (npy(np.ones(8, np.uint16)), "found <u2 .* expected one dimension of uint8"),
    "float32": (npy(np.ones(8, np.float32)), "found <f4 .* expected one dimension of uint8"),
    "two dimensions": (npy(np.ones((2, 4), np.uint8)), "expected one dimension of uint8"),
    "empty": (b"", "not a readable .npy array"),
    "trailing bytes": (npy(np.ones(8, np.uint8)) + b"\0", "1 bytes after the array"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_a_bad_mask_is_refused_in_one_line(tmp_path: Path, case: str):
    folder, (content, complaint) = prepared(tmp_path / "data", masked=True), BAD_MASKS[case]
    open_stream(folder, "train", **READ)
    path = folder / "train_000001.mask.npy"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=complaint) as refused:
        open_stream(folder, "train", **READ)
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("expected", "complaint"),
    [
        ({"tokenizer": "cd" * 32}, "another tokenizer .abababababab, expected cdcdcdcdcdcd"),
        ({"context": 20}, "the train split has 20 tokens, a row needs 21"),
        (
            {"vocab_size": 119},
            "train_000002.npy: holds id 119, but the model's vocabulary ends at 118",
        ),
    ],
)
def test_sound_data_for_another_model_are_refused(tmp_path: Path, expected: dict, complaint: str):
    folder = prepared(tmp_path / "data")
    for near in ({"context": 19}, {"vocab_size": 120}, {"vocab_size": CHAT_VOCAB}):
        open_stream(folder, "train", **(READ | near))  # the nearest values that are still right
    with pytest.raises(InputError, match=complaint) as refused:
        open_stream(folder, "train", **(READ | expected))
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_rows_packed_for_one_context_are_not_read_with_another(tmp_path: Path):
    folder = prepared(tmp_path / "data", masked=True, context=4)
    with pytest.raises(InputError, match=r"packed for rows of 4 tokens, but model\.context is 5"):
        open_stream(folder, "train", **(READ | {"context": 5}))


MANIFESTS = {
    "not JSON": ("{", "not a manifest of ours"),
    "nothing": ("", "not a manifest of ours"),
    "a list": ("[]", "not a manifest of ours"),
    "null": ("null", "not a manifest of ours"),
    "no format": ("{}", "not a manifest of ours"),
    "of a later version": ('{"format": 2}', "format 2, expected 1"),
    "format and nothing else": ('{"format": 1}', "not a manifest of ours"),
    "half of it": (
        '{"format": 1, "tokenizer": "T", "context": null, "splits": {"train": {}}}',
        "not a manifest of ours",
    ),
    "shards of a strange form": (
        '{"format": 1, "tokenizer": "T", "context": null, "splits": {"train": {"shards": [{"file": 1}]}}}',
        "not a manifest of ours",
    ),
    "no such split": (
        '{"format": 1, "tokenizer": "T", "context": null, "splits": {"val": {"shards": []}}}',
        "no train split .* only val",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_says_nothing_useful_is_refused_in_one_line(tmp_path: Path, case: str):
    folder, (content, complaint) = prepared(tmp_path / "data"), MANIFESTS[case]
    (folder / MANIFEST).write_text(content.replace('"T"', f'"{TOKENIZER}"'))
    with pytest.raises(InputError, match=complaint) as refused:
        open_stream(folder, "train", **READ)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_without_data_says_how_to_prepare_some(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"no manifest\.json here.*data_tools"):
            read_manifest(folder)


def test_a_manifest_with_an_empty_split_is_refused(tmp_path: Path):
    folder = prepared(tmp_path / "data")
    edit_manifest(folder, lambda m: m["splits"]["train"].update(shards=[]))
    with pytest.raises(InputError, match="no train split"):
        open_stream(folder, "train", **READ)
    assert open_stream(folder, "val", **READ).length == 20
