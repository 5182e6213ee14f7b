"""Bits per byte of a stream are what train.py's own evaluation says of it."""

import re

import pytest

from minigpt_jax.metrics import read_jsonl
from tests.evals.test_hellaswag import evals


@pytest.mark.parametrize(("split", "field"), [("val", "validation_loss"), ("train", "train_loss")])
def test_the_numbers_are_those_of_the_last_evaluation(pretrained, corpus, split, field):
    last = read_jsonl(pretrained / "evaluations.jsonl")[-1]
    done = evals("bits", "--run", pretrained, "--source", corpus, "--split", split, "--limit", "8", "--batch", "3")
    assert done.returncode == 0, done.stderr
    found = re.search(r"loss (\S+) per token, (\S+) bits per byte \(8 rows of 32, 256 tokens", done.stdout)
    assert found, done.stdout
    assert float(found[1]) == pytest.approx(last[field], abs=1e-4)
    if split == "val":
        assert float(found[2]) == pytest.approx(last["bits_per_byte"], abs=1e-4)


def test_without_a_limit_every_row_counts(pretrained, corpus):
    done = evals("bits", "--run", pretrained, "--source", corpus)
    rows = int(re.search(r"\((\d+) rows", done.stdout)[1])  # pyright: ignore
    assert rows > 20 and f"{rows * 32:,} tokens with weight" in done.stdout
