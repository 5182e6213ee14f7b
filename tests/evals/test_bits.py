"""Bits per byte of a stream are what train.py's own evaluation says of it."""

import re

import jax
import numpy as np
import pytest

from minigpt_jax.evals import bits
from minigpt_jax.evals.__main__ import main
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.sharding import AXES
from minigpt_jax.token_stream import open_stream
from minigpt_jax.tokenizer import END_OF_TEXT, TEXT_VOCAB, load_tokenizer
from tests.in_process import run_main


@pytest.mark.parametrize(("split", "field"), [("val", "validation_loss"), ("train", "train_loss")])
def test_the_numbers_are_those_of_the_last_evaluation(pretrained, corpus, split, field):
    last = read_jsonl(pretrained / "evaluations.jsonl")[-1]
    done = run_main(
        main,
        "bits",
        "--run",
        pretrained,
        "--source",
        corpus,
        "--split",
        split,
        "--limit",
        "8",
        "--batch",
        "3",
    )
    assert done.returncode == 0, done.stderr
    found = re.search(
        r"loss (\S+) per token, (\S+) bits per byte \(8 rows of 32, 256 tokens", done.stdout
    )
    assert found, done.stdout
    assert float(found[1]) == pytest.approx(last[field], abs=1e-4)
    if split == "val":
        assert float(found[2]) == pytest.approx(last["bits_per_byte"], abs=1e-4)


def test_bytes_are_those_of_the_tokens_that_have_weight(tmp_path):
    """One row by hand: a loss of ln 2 a token is one bit a token."""
    ids = [END_OF_TEXT, *load_tokenizer().encode("two wonderful rivers")]
    mask, splits = np.array([0, 0, 1, 1], np.uint8), {}
    for split in ("train", "val"):
        writer = ShardWriter(tmp_path, split, shard_tokens=100, masked=True)
        writer.append(np.array([*ids, END_OF_TEXT], np.uint16), np.array([*mask, 0], np.uint8))
        splits[split] = (writer.close(), 1)
    write_manifest(
        tmp_path,
        splits,
        tokenizer=load_tokenizer().hash,
        vocab_size=TEXT_VOCAB,
        context=4,
        source="by hand",
    )
    stream = open_stream(
        tmp_path, "val", tokenizer=load_tokenizer().hash, vocab_size=TEXT_VOCAB, context=4
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    found = bits.measure(
        {},
        stream,
        lambda params, batch: (batch.weights.sum() * np.log(2), batch.weights.sum()),
        mesh,
        rows=1,
        batch=1,
        context=4,
    )
    assert found and len(ids) == 4 and found.tokens == 2 and found.loss == pytest.approx(np.log(2))
    assert found.bits_per_byte == pytest.approx(2 / len(" wonderful rivers"))


def test_without_a_limit_every_row_counts(pretrained, corpus):
    done = run_main(main, "bits", "--run", pretrained, "--source", corpus)
    rows = int(re.search(r"\((\d+) rows", done.stdout)[1])  # pyright: ignore
    assert rows > 20 and f"{rows * 32:,} tokens in the loss" in done.stdout
