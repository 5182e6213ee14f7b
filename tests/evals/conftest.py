"""A tiny run that knows HellaSwag, what came of it by finetuning, and questions for both: made once, by the real commands."""

import json
import random
from pathlib import Path

import pytest

from tests.harness import sentence, train, write_chat


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """HellaSwag's form with short random texts, so that the tiny model's context holds them."""
    draw, path = random.Random(1), tmp_path_factory.mktemp("hellaswag") / "validation.jsonl"
    rows = [
        {
            "ctx": sentence(draw),
            "endings": [sentence(draw) for _ in range(4)],
            "label": str(draw.randrange(4)),
        }
        for _ in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def pretrained(runs, corpus, questions) -> Path:
    """Twelve steps, with an evaluation after 0, 4, 8 and 12 of them, and HellaSwag at every second one."""
    given = {"eval__hellaswag": questions, "eval__hellaswag_every": 8, "eval__hellaswag_rows": 20}
    output = train(
        runs, name="pretrained", data__folder=corpus, eval__every=4, save__every=12, **given
    )
    (runs / "pretrained" / "said").write_text(output)
    return runs / "pretrained"


@pytest.fixture(scope="session")
def finetuned(runs, pretrained, tmp_path_factory) -> Path:
    folder = write_chat(tmp_path_factory.mktemp("chat"))
    given = {
        "config": "configs/quickstart_finetune.py",
        "init_from": pretrained,
        "data__folder": folder,
        "schedule__peak": 1e-2,
    }
    train(runs, name="finetuned", save__every=12, eval__samples=0, **given)
    return runs / "finetuned"
