"""No damaged or foreign file is trained on: each is refused in one line that names it."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.token_stream import MANIFEST, open_stream, read_manifest
from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB
from tests.streams import FIRST_TOKEN, READ, TOKENIZER, write_splits


def npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


# What the second shard of write_splits() holds.
SECOND = np.arange(FIRST_TOKEN + 8, FIRST_TOKEN + 16, dtype=np.uint16)
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
    "no token": (npy(SECOND[:0]), "found 0 tokens, .* has 8|not a readable"),
    "fewer tokens": (npy(SECOND[:7]), "found 7 tokens, .* has 8: it changed"),
    "more tokens": (npy(np.append(SECOND, SECOND)), "found 16 tokens, .* has 8: it changed"),
    "missing": (None, "missing, although manifest.json lists it"),
}


def refusal(folder: Path, **changes) -> str:
    """The message with which the train split is refused."""
    with pytest.raises(InputError) as refused:
        open_stream(folder, "train", **(READ | changes))
    message = str(refused.value)
    assert "\n" not in message
    return message


def replace_file(path: Path, content: bytes | None) -> None:
    """Replace a file of a folder that can be opened; None deletes it."""
    open_stream(path.parent, "train", **READ)
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_a_bad_shard_is_refused_in_one_line(tmp_path: Path, case: str):
    content, complaint = BAD_SHARDS[case]
    path = write_splits(tmp_path / "data") / "train_000001.npy"
    replace_file(path, content)
    assert re.match(f"{path}: .*({complaint})", refusal(path.parent))


def test_every_flipped_bit_of_a_header_is_refused_or_harmless(tmp_path: Path):
    folder = write_splits(tmp_path / "data")
    path = folder / "train_000001.npy"
    assert path.read_bytes() == GOOD
    refusals = 0
    for position in range(HEADER):
        for bit in (0, 3, 7):
            content = bytearray(GOOD)
            content[position] ^= 1 << bit
            path.write_bytes(content)
            try:
                tokens = open_stream(folder, "train", **READ).read(0, 20)
                assert tokens.tolist() == list(range(FIRST_TOKEN, FIRST_TOKEN + 20))
            except InputError as error:
                refusals += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert refusals > HEADER


BAD_MASKS = {
    "missing": (None, "missing, although manifest.json lists it"),
    "shorter": (npy(np.ones(7, np.uint8)), "found 7 tokens, manifest.json has 8"),
    "uint16": (npy(np.ones(8, np.uint16)), "found <u2 .* expected one dimension of uint8"),
    "float32": (npy(np.ones(8, np.float32)), "found <f4 .* expected one dimension of uint8"),
    "two dimensions": (npy(np.ones((2, 4), np.uint8)), "expected one dimension of uint8"),
    "empty": (b"", "not a readable .npy array"),
    "trailing bytes": (npy(np.ones(8, np.uint8)) + b"\0", "1 bytes after the array"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_a_bad_mask_is_refused_in_one_line(tmp_path: Path, case: str):
    content, complaint = BAD_MASKS[case]
    path = write_splits(tmp_path / "data", masked=True) / "train_000001.mask.npy"
    replace_file(path, content)
    assert re.match(f"{path}: .*({complaint})", refusal(path.parent))


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
def test_good_data_for_another_model_are_refused(tmp_path: Path, expected: dict, complaint: str):
    folder = write_splits(tmp_path / "data")
    # The nearest values that fit.
    for near in ({"context": 19}, {"vocab_size": 120}, {"vocab_size": CHAT_VOCAB}):
        open_stream(folder, "train", **(READ | near))
    message = refusal(folder, **expected)
    assert re.search(complaint, message) and str(folder) in message


def test_rows_packed_for_one_context_are_not_read_with_another(tmp_path: Path):
    folder = write_splits(tmp_path / "data", masked=True, context=4)
    message = refusal(folder, context=5)
    assert "packed for rows of 4 tokens, but model.context is 5" in message


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
    "shards without their fields": (
        '{"format": 1, "tokenizer": "T", "context": null, '
        '"splits": {"train": {"shards": [{"file": 1}]}}}',
        "not a manifest of ours",
    ),
    "no such split": (
        '{"format": 1, "tokenizer": "T", "context": null, "splits": {"val": {"shards": []}}}',
        "no train split .* only val",
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_bad_manifest_is_refused_in_one_line(tmp_path: Path, case: str):
    content, complaint = MANIFESTS[case]
    folder = write_splits(tmp_path / "data")
    (folder / MANIFEST).write_text(content.replace('"T"', f'"{TOKENIZER}"'))
    assert re.match(f"{folder}.*: .*{complaint}", refusal(folder))


def test_for_a_folder_without_data_the_message_names_the_tools(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"no manifest\.json here.*data_tools"):
            read_manifest(folder)


def test_a_manifest_with_an_empty_split_is_refused(tmp_path: Path):
    folder = write_splits(tmp_path / "data")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["splits"]["train"]["shards"] = []
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert "no train split" in refusal(folder)
    assert open_stream(folder, "val", **READ).length == 20
