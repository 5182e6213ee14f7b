"""Tiny runs, with random weights and trained, and HellaSwag questions that fit their context."""

import json
import random
from pathlib import Path

import pytest

from minigpt_jax.model_config import GPTConfig
from minigpt_jax.tokenizer import TEXT_VOCAB
from tests.harness import TINY, sentence, train
from tests.interop.models import write_random_run

CONFIG = GPTConfig(
    vocab_size=TEXT_VOCAB,
    context=TINY["model.context"],
    layers=TINY["model.layers"],
    heads=TINY["model.heads"],
    embed=TINY["model.embed"],
)
QUESTIONS_IN_TRAINING = 20
# What train.py printed, in the folder of the run.
OUTPUT = "output.txt"


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


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, corpus, questions) -> Path:
    """A run of twelve steps, made by train.py.

    It is evaluated after 0, 4, 8 and 12 steps, with HellaSwag every second time and at the end.
    """
    runs = tmp_path_factory.mktemp("runs")
    output = train(
        runs,
        name="pretrained",
        data__folder=corpus,
        eval__every=4,
        eval__hellaswag=questions,
        eval__hellaswag_every=8,
        eval__hellaswag_rows=QUESTIONS_IN_TRAINING,
        save__every=12,
    )
    (runs / "pretrained" / OUTPUT).write_text(output)
    return runs / "pretrained"
