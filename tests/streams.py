"""Small token streams for the tests of the format."""

from pathlib import Path

import numpy as np

from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.tokenizer import TEXT_VOCAB

TOKENIZER = "ab" * 32
# The arguments of open_stream that fit what `write_splits` writes.
READ = {"tokenizer": TOKENIZER, "vocab_size": TEXT_VOCAB, "context": 4}
FIRST_TOKEN = 100


def write_splits(
    folder: Path,
    *,
    tokens: int = 20,
    shard_tokens: int = 8,
    masked: bool = False,
    context: int | None = None,
) -> Path:
    """Both splits: tokens 100, 101, ... and, if `masked`, a mask of 0, 1, 1, 0, 1, 1, ..."""
    folder.mkdir()
    ids = np.arange(FIRST_TOKEN, FIRST_TOKEN + tokens, dtype=np.uint16)
    mask = np.sign(np.arange(tokens) % 3).astype(np.uint8) if masked else None
    splits = {}
    for split in ("train", "val"):
        writer = ShardWriter(folder, split, shard_tokens, masked=masked)
        writer.append(ids, mask)
        splits[split] = (writer.close(), 1)
    write_manifest(
        folder, splits, tokenizer=TOKENIZER, vocab_size=TEXT_VOCAB, context=context, source="test"
    )
    return folder
