"""What is said of answers: whether they end, leak marks and repeat themselves, and what the hoped-for ones cost a model."""

import json

import jax
import numpy as np
import pytest

from minigpt_jax import chat, load_run, loss
from minigpt_jax.errors import InputError
from minigpt_jax.evals import answers
from minigpt_jax.evals.answers import Pair, Written
from minigpt_jax.model import GPT, grow_vocab
from minigpt_jax.tokenizer import END, USER, load_tokenizer
from minigpt_jax.tracking.report import write_report
from tests.evals.test_hellaswag import evals


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
def test_repetition_counts_runs_of_four_words_that_were_there_before(text, share):
    assert answers.repetition(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("answer", "leaks"),
    [
        (Written("Four.", [1, 2, END], True), False),
        (Written("Four.", [1, 2], False), False),
        (Written("Four. <|user|> And?", [1, 2, 3, END], True), True),
        (Written("Four.", [1, USER, 2, END], True), True),
    ],
)
def test_marks_leak_in_the_text_and_in_its_ids(answer, leaks):
    assert answers.leaks(answer) == leaks


def test_a_summary_is_shares_of_all_answers():
    written = [
        Written("a b c d a b c d", [1, END], True),
        Written("a", [USER, 1], False),
        Written("a", [1], True),
        Written("b", [1], True),
    ]
    assert answers.summary(written) == pytest.approx(
        {"ended": 0.75, "leaked": 0.25, "repetition": 0.05, "distinct": 0.75}
    )


def test_pairs_that_do_not_fit_are_left_out_and_bad_ones_named(tmp_path):
    path, tokenizer = tmp_path / "pairs.jsonl", load_tokenizer()
    good, long = (
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": "Why?", "completion": "because " * 40},
    )
    path.write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in (long, good, good, good, {"prompt": "Why?", "completion": ""})
        )
    )
    assert answers.load(str(path), 32, tokenizer, 2) == ([Pair(**good)] * 2, 1)
    with pytest.raises(InputError, match=r"pairs.jsonl:5: .* must be texts"):
        answers.load(str(path), 32, tokenizer)
    path.write_text(json.dumps(long) + "\n")
    with pytest.raises(InputError, match="no row here fits"):
        answers.load(str(path), 32, tokenizer)


def plain_loss(params, config, pairs: list[Pair]) -> float:
    """Mean loss over the supervised tokens, a row at a time with the template's own mask."""
    total = weight = 0.0
    for pair in pairs:
        ids, mask = chat.render(
            [
                {"role": "user", "content": pair.prompt},
                {"role": "assistant", "content": pair.completion},
            ],
            load_tokenizer(),
        )
        hidden, _ = GPT(config).apply({"params": params}, np.array([ids[:-1]]))  # pyright: ignore
        logprobs = np.asarray(
            jax.nn.log_softmax(loss.logits(hidden, params["wte"], config.vocab_size))
        )[0]
        total -= (logprobs[np.arange(len(ids) - 1), ids[1:]] * mask[1:]).sum()
        weight += sum(mask[1:])
    return total / weight


def test_base_and_finetuned_are_compared_and_shown(finetuned, pretrained, tmp_path):
    write_report(finetuned)
    assert "Answers" not in (finetuned / "report.html").read_text()
    source = tmp_path / "questions.json"
    pairs = [Pair(f"What is {n} and {n}?", f"It is {2 * n}.") for n in (151, 160, 170)]
    source.write_text(json.dumps({"train": [], "val": [pair._asdict() for pair in pairs]}))
    done = evals("answers", "--run", finetuned, "--source", source)
    assert done.returncode == 0, done.stderr
    record = json.loads((finetuned / "answers.json").read_text())
    run = load_run(finetuned)
    params, config = run.params, run.config
    base = load_run(pretrained)
    before, theirs = base.params, base.config
    grown = grow_vocab(before, theirs.vocab_size, config)
    page = (finetuned / "report.html").read_text()
    for name, weights in (("finetuned", params), ("before", grown)):
        assert record[name]["loss"] == pytest.approx(plain_loss(weights, config, pairs), abs=1e-4)
        assert f"{record[name]['loss']:.4f}" in page
        assert (
            answers.summary(
                answers.write(weights, config, load_tokenizer(), pairs, batch=2)
            ).items()
            <= record[name].items()
        )
    assert record["finetuned"]["loss"] < record["before"]["loss"]
    assert (record["answers"], record["step"], record["tokens"]) == (
        3,
        12,
        answers.TOKENS,
    ) and "before finetuning" in page
    other = evals("answers", "--run", finetuned, "--source", source, "--base", tmp_path / "none")
    assert other.returncode == 2 and "no usable checkpoint" in other.stderr
