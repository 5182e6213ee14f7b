"""Numbers of a finetuned model's answers: ended, leaked markers, repetition, loss of references."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minigpt_jax import chat, load_run
from minigpt_jax.architectures import grow_vocab
from minigpt_jax.errors import InputError
from minigpt_jax.evals import answers
from minigpt_jax.evals.__main__ import main
from minigpt_jax.evals.answers import Answer, Pair
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.tokenizer import END, USER, load_tokenizer
from minigpt_jax.tracking.report import write_report
from tests.evals.plain import next_token_logprobs
from tests.harness import train, write_chat
from tests.in_process import run_main

CONTEXT = 32
GOOD = Pair("Why?", "Because.")
TOO_LONG = Pair("Why?", "because " * 40)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three", 0.0),
        ("a b c d e", 0.0),
        ("a b c d a b c d", 1 / 5),
        ("so so so so so so", 2 / 3),
    ],
)
def test_repetition_is_the_share_of_four_word_sequences_that_occurred_before(text, share):
    assert answers.repetition(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("answer", "leaks"),
    [
        (Answer("Four.", [1, 2, END], True), False),
        (Answer("Four.", [1, 2], False), False),
        (Answer("Four. <|user|> And?", [1, 2, 3, END], True), True),
        (Answer("Four.", [1, USER, 2, END], True), True),
    ],
)
def test_markers_leak_in_the_text_and_in_its_ids(answer, leaks):
    assert answers.leaks_markers(answer) == leaks


def test_a_summary_has_shares_of_all_answers():
    generated = [
        Answer("a b c d a b c d", [1, END], True),
        Answer("a", [USER, 1], False),
        Answer("a", [1], True),
        Answer("b", [1], True),
    ]
    expected = {"ended": 0.75, "leaked": 0.25, "repetition": 0.05, "distinct": 0.75}
    assert answers.summarize(generated) == pytest.approx(expected)


def write_pairs(path: Path, *pairs: Pair) -> str:
    path.write_text("".join(json.dumps(pair._asdict()) + "\n" for pair in pairs))
    return str(path)


def test_pairs_that_do_not_fit_are_skipped_and_counted(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", TOO_LONG, GOOD, GOOD, GOOD)
    assert answers.load(source, CONTEXT, load_tokenizer(), limit=2) == ([GOOD] * 2, 1)


def test_a_pair_without_text_is_named(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", GOOD, GOOD, Pair("Why?", ""))
    with pytest.raises(InputError, match=r"pairs.jsonl:3: .* must be texts"):
        answers.load(source, CONTEXT, load_tokenizer())


def test_a_source_without_a_pair_that_fits_is_refused(tmp_path):
    source = write_pairs(tmp_path / "pairs.jsonl", TOO_LONG)
    with pytest.raises(InputError, match="no row here fits"):
        answers.load(source, CONTEXT, load_tokenizer())


def test_the_split_of_a_source_with_several_can_be_chosen(tmp_path):
    source = tmp_path / "pairs.json"
    other = Pair("How?", "Slowly.")
    source.write_text(json.dumps({"train": [GOOD._asdict()], "val": [other._asdict()]}))
    for split, pair in (("train", GOOD), ("val", other)):
        assert answers.load(str(source), CONTEXT, load_tokenizer(), split=split) == ([pair], 0)


# ---- the command


PAIRS = [Pair(f"What is {n} and {n}?", f"It is {2 * n}.") for n in (151, 160, 170)]


@pytest.fixture(scope="module")
def finetuned(base_run, tmp_path_factory) -> Path:
    """What train.py makes from the base run and packed conversations."""
    runs = tmp_path_factory.mktemp("finetuned")
    train(
        runs,
        name="finetuned",
        config="configs/quickstart_finetune.py",
        init_from=base_run,
        data__folder=write_chat(tmp_path_factory.mktemp("chat")),
        schedule__peak=1e-2,
        save__every=12,
        eval__samples=0,
    )
    return runs / "finetuned"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "questions.json"
    path.write_text(json.dumps({"train": [], "val": [pair._asdict() for pair in PAIRS]}))
    return path


@pytest.fixture(scope="module")
def output(finetuned, source) -> str:
    """What the command prints; it also writes answers.json and the report."""
    write_report(finetuned)
    assert "Answers" not in (finetuned / "report.html").read_text()
    done = run_main(main, "answers", "--run", finetuned, "--source", source, "--show", "2")
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain_loss(run: LoadedRun) -> float:
    """Mean loss over the supervised tokens, one row at a time, with the chat template's mask."""
    total = weight = 0.0
    for pair in PAIRS:
        messages: list[chat.Message] = [
            {"role": "user", "content": pair.prompt},
            {"role": "assistant", "content": pair.completion},
        ]
        ids, mask = chat.render(messages, run.tokenizer)
        logprobs = next_token_logprobs(run, ids[:-1])
        total -= (logprobs[np.arange(len(ids) - 1), ids[1:]] * mask[1:]).sum()
        weight += sum(mask[1:])
    return total / weight


@pytest.mark.campaign
def test_base_and_finetuned_are_compared(output, finetuned, base_run):
    record = json.loads((finetuned / "answers.json").read_text())
    page = (finetuned / "report.html").read_text()
    run, base = load_run(finetuned), load_run(base_run)
    grown = grow_vocab(base.params, base.config.vocab_size, run.config)
    for name, model in (("finetuned", run), ("before", replace(run, params=grown))):
        found = record[name]
        assert found["loss"] == pytest.approx(plain_loss(model), abs=1e-4)
        loss_text = f"{found['loss']:.4f}"
        assert loss_text in page
        assert loss_text in next(line for line in output.splitlines() if "loss per" in line)
        generated = answers.generate_answers(model, PAIRS, batch=2)
        assert answers.summarize(generated).items() <= found.items()
    assert record["finetuned"]["loss"] < record["before"]["loss"]
    assert record["answers"] == 3 and record["step"] == 12
    assert record["tokens"] == answers.MAX_NEW_TOKENS
    assert "before finetuning" in page


def test_examples_are_printed_with_their_reference_answers(output, finetuned):
    assert output.count("question:  ") == 2
    generated = answers.generate_answers(load_run(finetuned), PAIRS, batch=2)
    for pair, answer in zip(PAIRS[:2], generated, strict=False):
        example = f"question:  {pair.prompt}\nanswer:    {answer.text}\n"
        assert example + f"reference: {pair.completion}\n" in output


def test_a_base_without_checkpoint_is_refused(finetuned, source, tmp_path):
    done = run_main(
        main, "answers", "--run", finetuned, "--source", source, "--base", tmp_path / "none"
    )
    assert done.returncode == 2 and "no usable checkpoint" in done.stderr
