"""The example questions are the run's own, and a run without its data has none."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt_jax.loaded_run import LoadedRun, load_run
from minigpt_jax.server.examples import example_questions
from minigpt_jax.token_stream import open_stream
from tests.harness import run_module
from tests.server.serving import tiny_run


@pytest.fixture(scope="module")
def run(finetuned_run) -> LoadedRun:
    return load_run(finetuned_run)


def with_folder(run: LoadedRun, folder: object, **meta) -> LoadedRun:
    return replace(run, meta=run.meta | {"config": {"data": {"folder": folder}}} | meta)


def chat_folder(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir()
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "chat"
    run_module(
        "data_tools.instruct",
        *("--source", pairs, "--out", out, "--context", 32, "--val-every", 10),
    )
    return out


def trained_on(run: LoadedRun, folder: Path) -> LoadedRun:
    stream = open_stream(
        folder,
        "train",
        tokenizer=run.tokenizer.hash,
        vocab_size=run.config.vocab_size,
        context=run.config.context,
    )
    return with_folder(run, str(folder), data=stream.identity)


def test_they_are_questions_from_all_over_the_data(run):
    examples = example_questions(run)
    assert len(set(examples)) == 3 and examples == example_questions(run)
    numbers = []
    for question in examples:
        words = question.removesuffix("?").split()
        assert words[:2] == ["What", "is"] and words[2] == words[4]
        numbers.append(int(words[2]))
    # 150 questions in the order of their numbers.
    assert numbers == sorted(numbers) and numbers[2] - numbers[0] > 60


def test_long_questions_questions_of_several_lines_and_repetitions_are_left_out(run, tmp_path):
    texts = ["What " + "very " * 20 + "long?", "Two\nlines?", "Why?", "Why?", "How?"] * 30
    rows = [{"prompt": text, "completion": "So."} for text in texts]
    folder = chat_folder(tmp_path / "data", rows)
    assert sorted(example_questions(trained_on(run, folder))) == ["How?", "Why?"]


def test_a_run_without_its_data_has_none(run, tmp_path):
    folder = Path(run.meta["config"]["data"]["folder"])
    assert example_questions(with_folder(run, str(tmp_path / "missing"))) == []
    assert example_questions(with_folder(run, None)) == []
    assert example_questions(with_folder(run, str(folder), data="other")) == []
    assert example_questions(replace(run, meta={})) == []
    assert example_questions(tiny_run()) == []
    for damage in (b"", b"{}", b"\0" * 999):
        for name in ("manifest.json", "train_000000.npy"):
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            (copy / name).write_bytes(damage)
            assert example_questions(with_folder(run, str(copy))) == []
            shutil.rmtree(copy)
