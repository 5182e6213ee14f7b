"""A tiny run with random weights, and HellaSwag questions that fit into its context."""

import json
import random
from pathlib import Path

import pytest

from minigpt_jax.model import GPTConfig
from minigpt_jax.tokenizer import TEXT_VOCAB
from tests.harness import TINY, sentence
from tests.interop.models import write_random_run

CONFIG = GPTConfig(
    vocab_size=TEXT_VOCAB,
    context=TINY["model.context"],
    layers=TINY["model.layers"],
    heads=TINY["model.heads"],
    embed=TINY["model.embed"],
)


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """30 rows in HellaSwag's format with short random texts."""
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("hellaswag") / "validation.jsonl"
    with path.open("w") as file:
        for _ in range(30):
            context = sentence(draw)
            endings = [sentence(draw) for _ in range(4)]
            label = str(draw.randrange(4))
            file.write(json.dumps({"ctx": context, "endings": endings, "label": label}) + "\n")
    return path


@pytest.fixture(scope="session")
def base_run(tmp_path_factory) -> Path:
    """A run with random weights. The tests only read it."""
    return write_random_run(tmp_path_factory.mktemp("runs") / "base", CONFIG)
