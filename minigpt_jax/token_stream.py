"""The one file format of training data: a token stream cut into `.npy` shards, with a manifest that vouches for them.

    <folder>/manifest.json            format, tokenizer, per split: documents, tokens and the shards with their SHA-256
    <folder>/train_000000.npy         uint16 [n], the next n tokens of the stream
    <folder>/train_000000.mask.npy    uint8 [n], 1 where a token is learned; only where the data has a loss mask

Pretraining and finetuning data differ in nothing but the mask. Everything that writes or reads these files goes
through this module, so what it checks is checked everywhere.
"""

import hashlib
import json
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import atomic_write, sha256, write_json
from minigpt_jax.tokenizer import load_tokenizer

FORMAT = 1
MANIFEST = "manifest.json"
SHARD_TOKENS = (
    100_000_000  # 200 MB: few enough files to list, small enough to redo one after a crash
)


@dataclass(frozen=True)
class Shard:
    """One file of a stream: its name in the folder, its number of tokens, and the SHA-256 (hex) of its bytes."""

    file: str
    tokens: int
    sha256: str
    mask_sha256: str | None = None


class ShardWriter:
    """Append tokens, get files of exactly `shard_tokens` (the last one shorter), each complete or absent.

    `shards` are the files already written, by an earlier process or by this one; `buffered` counts tokens that no
    file holds yet. With `masked`, every append brings a loss mask of the same length.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        shard_tokens: int = SHARD_TOKENS,
        *,
        masked: bool = False,
        shards: tuple[Shard, ...] = (),
    ):
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.shards = list(shards)
        self.buffered = 0
        self._tokens = np.empty(shard_tokens, np.uint16)
        self._mask = np.empty(shard_tokens, np.uint8) if masked else None

    def append(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Add `tokens` [n] (and `mask` [n]) to the stream; writes a file whenever one is full."""
        if (mask is None) != (self._mask is None):
            raise ValueError(
                "a stream has a loss mask from its first token to its last, or none at all"
            )
        taken = 0
        while taken < len(tokens):
            here = slice(self.buffered, min(self.buffered + len(tokens) - taken, self.shard_tokens))
            there = slice(taken, taken + here.stop - here.start)
            self._tokens[here] = tokens[there]
            if mask is not None and self._mask is not None:
                self._mask[here] = mask[there]
            taken, self.buffered = there.stop, here.stop
            if self.buffered == self.shard_tokens:
                self._write()

    def close(self) -> list[Shard]:
        """Write what is left and return all shards of the stream."""
        if self.buffered:
            self._write()
        return self.shards

    def _write(self) -> None:
        name = f"{self.split}_{len(self.shards):06d}"
        mask_sha256 = None
        if self._mask is not None:
            mask_sha256 = _save(self.folder / f"{name}.mask.npy", self._mask[: self.buffered])
        sha256 = _save(self.folder / f"{name}.npy", self._tokens[: self.buffered])
        self.shards.append(Shard(f"{name}.npy", self.buffered, sha256, mask_sha256))
        self.buffered = 0


def write_manifest(
    folder: Path,
    splits: dict[str, tuple[list[Shard], int]],
    *,
    tokenizer: str,
    vocab_size: int,
    context: int | None,
    source: str,
) -> None:
    """Vouch for finished shards: `splits` maps "train" and "val" to (shards, number of documents).

    `context` is the row length that conversations were packed for, None where any will do; `source` says in words
    where the text is from.
    """
    manifest = {
        "format": FORMAT,
        "source": source,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "context": context,
        "splits": {
            split: {
                "documents": documents,
                "tokens": sum(s.tokens for s in shards),
                "shards": [asdict(s) for s in shards],
            }
            for split, (shards, documents) in splits.items()
        },
    }
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> dict:
    """The manifest of `folder`. Raises InputError where there is none, or one this version cannot read."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{folder}: no {MANIFEST} here. Prepare data with a tool of data_tools/ (see the README), "
            f"or adopt token files made elsewhere: python -m data_tools.index {folder}"
        )
    try:
        manifest = json.loads(path.read_text())
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a manifest of ours ({error!r}): prepare the data again"
        ) from None
    if found != FORMAT:
        raise InputError(
            f"{path}: format {found}, expected {FORMAT}: prepare the data again with this version"
        )
    return manifest


@dataclass(frozen=True)
class Stream:
    """A split, memory-mapped: `length` tokens across shards, with or without a loss mask.

    `identity` (hex) changes with any token, mask or file name of the split: a resumed run asks for the same one.
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
        """Tokens [stop - start] uint16 from position `start` of the stream on, across shards."""
        return _across(self.tokens, self.starts, start, stop)

    def read_mask(self, start: int, stop: int) -> np.ndarray:
        """Loss mask [stop - start] uint8 of the same positions; all ones where the stream has none."""
        if self.masks is None:
            return np.ones(stop - start, np.uint8)
        return _across(self.masks, self.starts, start, stop)


def open_splits(
    folder: str, vocab_size: int, context: int, *, packed: bool
) -> tuple[Stream, Stream]:
    """The training and the validation split of a folder, checked. Raises InputError.

    `packed` says that conversations sharing a row will be kept apart; packed data demand it.
    """
    text, held_out = (
        open_stream(
            Path(folder),
            split,
            tokenizer=load_tokenizer().hash,
            vocab_size=vocab_size,
            context=context,
        )
        for split in ("train", "val")
    )
    if text.masks and not packed:
        raise InputError(
            f"{folder} holds packed conversations, which must not see each other: set data.isolate_documents=True"
        )
    return text, held_out


def open_stream(
    folder: Path, split: str, *, tokenizer: str, vocab_size: int, context: int
) -> Stream:
    """Map a split ("train" or "val") for a model of `vocab_size` and rows of `context` tokens, and check every file.

    Checked: tokenizer, row length, dtype, shape, size against the manifest, and the largest id. Raises InputError
    naming the file, what was found and what was expected.
    """
    manifest = read_manifest(folder)
    try:
        made_with, packed_for = manifest["tokenizer"], manifest["context"]
        splits = {
            name: [Shard(**shard) for shard in entry["shards"]]
            for name, entry in manifest["splits"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / MANIFEST}: not a manifest of ours ({error!r}): prepare the data again"
        ) from None
    if made_with != tokenizer:
        raise InputError(
            f"{folder}: made with another tokenizer ({made_with[:12]}, expected {tokenizer[:12]}): prepare the data again"
        )
    if packed_for not in (None, context):
        raise InputError(
            f"{folder}: packed for rows of {packed_for} tokens, but model.context is {context}: set one to the other"
        )
    shards = splits.get(split)
    if not shards:
        raise InputError(
            f"{folder}: no {split} split in {MANIFEST}, only {', '.join(splits) or 'nothing'}"
        )
    tokens = tuple(
        load_tokens(folder / s.file, expected=s.tokens, vocab_size=vocab_size) for s in shards
    )
    masked = shards[0].mask_sha256 is not None
    masks = (
        tuple(_load_mask(folder / mask_file(s.file), s.tokens) for s in shards) if masked else None
    )
    for shard in shards:
        _expect_unchanged(folder, shard)
    starts = tuple(accumulate((s.tokens for s in shards), initial=0))
    if starts[-1] < context + 1:
        raise InputError(
            f"{folder}: the {split} split has {starts[-1]} tokens, a row needs {context + 1}: bring more text or a smaller model.context"
        )
    identity = hashlib.sha256(
        json.dumps([made_with, [asdict(s) for s in shards]]).encode()
    ).hexdigest()
    return Stream(split, identity, starts, tokens, masks)


def load_tokens(path: Path, *, expected: int | None, vocab_size: int) -> np.ndarray:
    """Memory-map one token file [n] uint16 after checking its form and its largest id. Raises InputError."""
    tokens = _load(path, np.dtype(np.uint16), expected)
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise InputError(
            f"{path}: holds id {largest}, but the model's vocabulary ends at {vocab_size - 1}"
        )
    return tokens


def _load_mask(path: Path, expected: int) -> np.ndarray:
    mask = _load(path, np.dtype(np.uint8), expected)
    if mask.max() > 1:
        raise InputError(
            f"{path}: holds {mask.max()}, a loss mask is 0 or 1: it changed since it was prepared"
        )
    return mask


def _expect_unchanged(folder: Path, shard: Shard) -> None:
    """Compare checksums where a file is younger than its manifest: reading every byte at every start would take minutes."""
    written = (folder / MANIFEST).stat().st_mtime_ns
    for path, expected in (
        (folder / shard.file, shard.sha256),
        (folder / mask_file(shard.file), shard.mask_sha256),
    ):
        if expected is not None and path.stat().st_mtime_ns > written:
            expect_sha256(path, expected)


def expect_sha256(path: Path, expected: str) -> None:
    """Raises InputError unless the file holds the bytes that its manifest vouched for."""
    found = sha256(path)
    if found != expected:
        raise InputError(
            f"{path}: sha256 {found[:12]}, {MANIFEST} says {expected[:12]}: it changed since it was prepared"
        )


def mask_file(token_file: str) -> str:
    """Name of the loss mask that belongs to a token file."""
    return token_file.removesuffix(".npy") + ".mask.npy"


def _save(path: Path, array: np.ndarray) -> str:
    atomic_write(path, lambda file: np.save(file, array))
    return sha256(path)


def _load(path: Path, dtype: np.dtype, expected: int | None) -> np.ndarray:
    try:
        # The header is read by numpy itself, never as a pickle; a memory map costs no memory until it is read.
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path}: missing, although {MANIFEST} lists it") from None
    except Exception as error:  # numpy reads a header as Python source, so a damaged one raises whatever the parser does
        if "mmap length" in str(error):
            raise InputError(
                f"{path}: found {path.stat().st_size} bytes, expected more by its header: it was cut short"
            ) from None
        raise InputError(f"{path}: not a readable .npy array ({error})") from None
    if array.dtype != dtype or array.ndim != 1:
        raise InputError(
            f"{path}: found {array.dtype.str} with shape {array.shape}, expected one dimension of {dtype.name}"
        )
    if expected is not None and len(array) != expected:
        raise InputError(
            f"{path}: found {len(array)} tokens, {MANIFEST} says {expected}: it changed since it was prepared"
        )
    if not len(array):
        raise InputError(f"{path}: holds no token")
    surplus = path.stat().st_size - array.offset - array.nbytes
    if surplus:
        raise InputError(
            f"{path}: {surplus} bytes after the array: it changed since it was prepared"
        )
    return array


def _across(
    parts: tuple[np.ndarray, ...], starts: tuple[int, ...], start: int, stop: int
) -> np.ndarray:
    first = bisect_right(starts, start) - 1
    piece = parts[first][start - starts[first] : stop - starts[first]]
    if len(piece) == stop - start:
        return piece
    pieces, position = [piece], start + len(piece)
    while position < stop:
        first += 1
        pieces.append(parts[first][: stop - position])
        position += len(pieces[-1])
    return np.concatenate(pieces)
