"""The one file format of training data: a token stream in `.npy` shards, described by a manifest.

    <folder>/manifest.json          format, tokenizer; per split: documents, tokens, shards, SHA-256
    <folder>/train_000000.npy       uint16 [n], the next n tokens of the stream
    <folder>/train_000000.mask.npy  uint8 [n], 1 for a token that is learned; only with a loss mask

Pretraining and finetuning data differ only in the mask. Everything that reads these files does so
through this module and gets the same checks; shard_writer.py writes them.
"""

import hashlib
import json
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import errors_name, read_bytes, sha256, shell_word
from minigpt_jax.tokenizer import load_tokenizer

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One file of a stream: name in its folder, number of tokens, SHA-256 (hex) of its bytes."""

    file: str
    tokens: int
    sha256: str
    mask_sha256: str | None = None


def mask_file(token_file: str) -> str:
    """Name of the loss mask that belongs to a token file."""
    return token_file.removesuffix(".npy") + ".mask.npy"


def read_manifest(folder: Path) -> dict:
    """The manifest of `folder`. Raises InputError if there is none, or one of another format."""
    path = folder / MANIFEST
    try:
        content = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InputError(
            f"{folder}: no {MANIFEST} here. Prepare data with a tool of data_tools/ "
            "(see the README), or write a manifest for token files made elsewhere: "
            f"python -m data_tools.verify {shell_word(folder)}"
        ) from None
    try:
        manifest = json.loads(content.decode())
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _bad_manifest(path, error) from None
    if found != FORMAT:
        raise InputError(
            f"{path}: format {found}, expected {FORMAT}: prepare the data again with this version"
        )
    return manifest


@dataclass(frozen=True)
class Stream:
    """A split, memory-mapped: `length` tokens in several shards, with or without a loss mask.

    `identity` (hex) changes with any token, mask or file name of the split. A resumed run requires
    the one it was started with.
    """

    name: str
    identity: str
    starts: tuple[int, ...]
    tokens: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...] | None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [stop - start] uint16 at the positions `start` to `stop` of the stream."""
        return _read_range(self.tokens, self.starts, start, stop)

    def read_mask(self, start: int, stop: int) -> np.ndarray:
        """Loss mask [stop - start] uint8 of the same positions; all ones if the stream has none."""
        if self.masks is None:
            return np.ones(stop - start, np.uint8)
        return _read_range(self.masks, self.starts, start, stop)


def _read_range(
    shards: tuple[np.ndarray, ...], starts: tuple[int, ...], start: int, stop: int
) -> np.ndarray:
    """Elements [start, stop) of the concatenated shards; a view if one shard holds them all."""
    index = bisect_right(starts, start) - 1
    parts = []
    while True:
        offset = starts[index]
        parts.append(shards[index][start - offset : stop - offset])
        start += len(parts[-1])
        if start == stop:
            break
        index += 1
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def row_count(stream: Stream, context: int) -> int:
    """Rows of `context` + 1 tokens that the stream holds."""
    return (stream.length - 1) // context


def open_splits(
    folder: str, vocab_size: int, context: int, *, packed: bool
) -> tuple[Stream, Stream]:
    """The training and the validation split of a folder, checked. Raises InputError.

    `packed` means that conversations which share a row cannot attend to each other. Packed data
    require it.
    """
    train, val = (
        open_stream(
            Path(folder),
            split,
            tokenizer=load_tokenizer().hash,
            vocab_size=vocab_size,
            context=context,
        )
        for split in ("train", "val")
    )
    if train.masks and not packed:
        raise InputError(
            f"{folder}: holds packed conversations, which must not attend to each other: "
            "set data.isolate_documents=True"
        )
    return train, val


def open_stream(
    folder: Path, split: str, *, tokenizer: str, vocab_size: int, context: int
) -> Stream:
    """Map a split ("train" or "val") for a model of `vocab_size` and rows of `context` tokens.

    Checks the tokenizer, the row length, and of every file the dtype, shape, size and largest id.
    Raises InputError naming the file, what was found and what was expected.
    """
    manifest = read_manifest(folder)
    try:
        made_with = manifest["tokenizer"]
        packed_for = manifest["context"]
        splits = {
            name: [Shard(**shard) for shard in entry["shards"]]
            for name, entry in manifest["splits"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise _bad_manifest(folder / MANIFEST, error) from None
    if made_with != tokenizer:
        raise InputError(
            f"{folder}: made with another tokenizer "
            f"({made_with[:12]}, expected {tokenizer[:12]}): prepare the data again"
        )
    if packed_for not in (None, context):
        raise InputError(
            f"{folder}: packed for rows of {packed_for} tokens, but model.context is {context}: "
            "set one to the other"
        )
    shards = splits.get(split)
    if not shards:
        raise InputError(
            f"{folder}: no {split} split in {MANIFEST}, only {', '.join(splits) or 'nothing'}"
        )
    tokens = tuple(
        load_tokens(folder / shard.file, expected=shard.tokens, vocab_size=vocab_size)
        for shard in shards
    )
    masks = None
    if shards[0].mask_sha256 is not None:
        masks = tuple(_load_mask(folder / mask_file(s.file), s.tokens) for s in shards)
    for shard in shards:
        _check_unchanged(folder, shard)
    starts = tuple(accumulate((shard.tokens for shard in shards), initial=0))
    if starts[-1] < context + 1:
        raise InputError(
            f"{folder}: the {split} split has {starts[-1]} tokens, a row needs {context + 1}: "
            "provide more text or a smaller model.context"
        )
    content = json.dumps([made_with, [asdict(shard) for shard in shards]])
    identity = hashlib.sha256(content.encode()).hexdigest()
    return Stream(split, identity, starts, tokens, masks)


def load_tokens(path: Path, *, expected: int | None, vocab_size: int) -> np.ndarray:
    """Memory-map a token file [n] uint16 and check its form and largest id. Raises InputError.

    `expected` is the number of tokens; None skips that check.
    """
    tokens = _load(path, np.dtype(np.uint16), expected)
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise InputError(
            f"{path}: holds id {largest}, but the model's vocabulary ends at {vocab_size - 1}"
        )
    return tokens


def expect_sha256(path: Path, expected: str) -> None:
    """Raises InputError unless the file holds the bytes that its manifest recorded."""
    found = sha256(path)
    if found != expected:
        raise InputError(
            f"{path}: sha256 {found[:12]}, {MANIFEST} has {expected[:12]}: "
            "it changed since it was prepared"
        )


def _load_mask(path: Path, expected: int) -> np.ndarray:
    mask = _load(path, np.dtype(np.uint8), expected)
    if mask.max() > 1:
        raise InputError(
            f"{path}: holds {mask.max()}, a loss mask is 0 or 1: it changed since it was prepared"
        )
    return mask


def _check_unchanged(folder: Path, shard: Shard) -> None:
    """Compare the checksums of files that are younger than the manifest.

    Reading every byte of every file at every start would take minutes.
    """
    manifest_time = (folder / MANIFEST).stat().st_mtime_ns
    checksums = {shard.file: shard.sha256, mask_file(shard.file): shard.mask_sha256}
    for name, expected in checksums.items():
        path = folder / name
        if expected is not None and path.stat().st_mtime_ns > manifest_time:
            expect_sha256(path, expected)


def _load(path: Path, dtype: np.dtype, expected: int | None) -> np.ndarray:
    """Memory-map a `.npy` file of one dimension. Raises InputError, and OSError naming the file."""
    try:
        # open_memmap never unpickles, and a memory map takes no memory until it is read.
        with errors_name(path):
            array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path}: missing, although {MANIFEST} lists it") from None
    # The machine's fault, not the file's: each mapped file counts as an open one, for example.
    except (OSError, MemoryError):
        raise
    # numpy evaluates a header as Python source: a damaged one can raise any type.
    except Exception as error:
        if "mmap length" in str(error):
            raise InputError(
                f"{path}: found {path.stat().st_size} bytes, expected more by its header: "
                "it was cut short"
            ) from None
        raise InputError(f"{path}: not a readable .npy array ({error})") from None
    if array.dtype != dtype or array.ndim != 1:
        raise InputError(
            f"{path}: found {array.dtype.str} with shape {array.shape}, "
            f"expected one dimension of {dtype.name}"
        )
    if expected is not None and len(array) != expected:
        raise InputError(
            f"{path}: found {len(array)} tokens, {MANIFEST} has {expected}: "
            "it changed since it was prepared"
        )
    if not len(array):
        raise InputError(f"{path}: holds no token")
    surplus = path.stat().st_size - array.offset - array.nbytes
    if surplus:
        raise InputError(
            f"{path}: {surplus} bytes after the array: it changed since it was prepared"
        )
    return array


def _bad_manifest(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: not a manifest of ours ({error!r}): prepare the data again")
