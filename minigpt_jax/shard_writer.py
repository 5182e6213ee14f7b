"""Write training data: token streams as `.npy` shards, and the manifest that makes them usable.

token_stream.py defines the format and reads it.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from minigpt_jax.runtime.files import atomic_write, sha256, write_json
from minigpt_jax.token_stream import FORMAT, MANIFEST, Shard, mask_file

# 200 MB: few files to list, and little work lost if one must be written again after a crash.
SHARD_TOKENS = 100_000_000


class ShardWriter:
    """Collects tokens into files of exactly `shard_tokens` tokens; the last file may be shorter.

    Every file is complete or absent. `shards` are the files already written, by an earlier process
    or by this one; `buffered` counts the tokens that are in no file yet. With `masked`, every
    append needs a loss mask of the same length.
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
        self.folder = folder
        self.split = split
        self.shard_tokens = shard_tokens
        self.shards = list(shards)
        self.buffered = 0
        self._tokens = np.empty(shard_tokens, np.uint16)
        self._mask = np.empty(shard_tokens, np.uint8) if masked else None

    def append(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Add `tokens` [n] (and `mask` [n]) to the stream; writes a file whenever one is full."""
        if (mask is None) != (self._mask is None):
            raise ValueError("either every append of a stream has a loss mask, or none has")
        start = 0
        while start < len(tokens):
            count = min(len(tokens) - start, self.shard_tokens - self.buffered)
            source = slice(start, start + count)
            target = slice(self.buffered, self.buffered + count)
            self._tokens[target] = tokens[source]
            if mask is not None and self._mask is not None:
                self._mask[target] = mask[source]
            start += count
            self.buffered += count
            if self.buffered == self.shard_tokens:
                self._write()

    def close(self) -> list[Shard]:
        """Write the tokens that are left, and return all shards of the stream."""
        if self.buffered:
            self._write()
        return self.shards

    def _write(self) -> None:
        name = f"{self.split}_{len(self.shards):06d}.npy"
        mask_sha256 = None
        # The mask first: a kill then never leaves a token file of a masked stream without its mask.
        if self._mask is not None:
            mask_sha256 = _save(self.folder / mask_file(name), self._mask[: self.buffered])
        tokens_sha256 = _save(self.folder / name, self._tokens[: self.buffered])
        self.shards.append(Shard(name, self.buffered, tokens_sha256, mask_sha256))
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
    """Record finished shards: `splits` maps "train" and "val" to (shards, number of documents).

    `context` is the row length that conversations were packed for, None if any will do; `source` is
    a description of where the text comes from.
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
                "tokens": sum(shard.tokens for shard in shards),
                "shards": [asdict(shard) for shard in shards],
            }
            for split, (shards, documents) in splits.items()
        },
    }
    write_json(folder / MANIFEST, manifest)


def _save(path: Path, array: np.ndarray) -> str:
    atomic_write(path, lambda file: np.save(file, array))
    return sha256(path)
