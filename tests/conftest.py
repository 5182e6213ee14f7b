"""Four simulated devices (compiled fast rather than well) and strict modes for the whole suite, and a tiny corpus that most tests share."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"

import random
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax.shards import ShardWriter, write_manifest
from minigpt_jax.tokenizer import END_OF_TEXT, TEXT_VOCAB, load_tokenizer

jax.config.update("jax_numpy_rank_promotion", "raise")

WORDS = ["the", "a", "model", "token", "learns", "reads", "writes", "river", "stone", "light", "small", "dog", "sees", "under", "with", "slowly"]


def sentence(draw: random.Random) -> str:
    """A few random words: text enough to learn something from, made anew on every machine."""
    return " ".join(draw.choices(WORDS, k=draw.randint(4, 12))).capitalize() + "."


def write_corpus(folder: Path, documents: int = 120) -> Path:
    """Shards of random sentences in `folder`, several files a split."""
    folder.mkdir(parents=True)
    draw, tokenizer, splits = random.Random(0), load_tokenizer(), {}
    for split, count in (("train", documents), ("val", documents // 10)):
        writer = ShardWriter(folder, split, shard_tokens=1500)
        for _ in range(count):
            text = " ".join(sentence(draw) for _ in range(8))
            writer.append(np.array([END_OF_TEXT, *tokenizer.encode(text)], np.uint16))
        splits[split] = (writer.close(), count)
    write_manifest(folder, splits, tokenizer=tokenizer.hash, vocab_size=TEXT_VOCAB, context=None, source="random sentences")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder of token shards, read-only for the tests."""
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")
