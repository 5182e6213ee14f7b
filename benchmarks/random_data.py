"""Random tokens as training data, for benchmarks that run train.py itself."""

from pathlib import Path

import numpy as np

from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.tokenizer import TEXT_VOCAB, load_tokenizer

# Tokens of each split.
TOKENS = 10**6


def write_random_tokens(folder: Path) -> Path:
    """A folder of random tokens as training data."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    splits = {}
    for split in ("train", "val"):
        writer = ShardWriter(folder, split, shard_tokens=TOKENS)
        writer.append(draw.integers(0, TEXT_VOCAB - 1, TOKENS).astype(np.uint16))
        splits[split] = (writer.close(), 1)
    write_manifest(
        folder,
        splits,
        tokenizer=load_tokenizer().hash,
        vocab_size=TEXT_VOCAB,
        context=None,
        source="random",
    )
    return folder
