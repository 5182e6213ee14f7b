"""HellaSwag's accuracy is what a plain scorer in another framework finds, alone and during training."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.transformers_gpt2 import gpt2_with_weights
from minigpt_jax import load_run
from minigpt_jax.errors import InputError
from minigpt_jax.evals import hellaswag, scoring
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.sharding import make_mesh, replicated
from minigpt_jax.tokenizer import END_OF_TEXT, load_tokenizer
from tests.evals.peer import in_torch
from tests.harness import ENVIRONMENT, ROOT, run_train

GOOD = {
    "ctx": "A man sits on a roof. He",
    "endings": ["starts to sing.", "flies.", "is a roof.", "eats it."],
    "label": "3",
}


def evals(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Run the command."""
    command = [sys.executable, "-m", "minigpt_jax.evals", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_question_is_read_as_documents_are():
    encode = load_tokenizer().encode
    question = hellaswag._question("here", GOOD, 32)
    assert question.context == [END_OF_TEXT, *encode(GOOD["ctx"])] and question.label == 3
    assert [[*question.context, *ending] for ending in question.endings] == [
        [END_OF_TEXT, *encode(f"{GOOD['ctx']} {e}")] for e in GOOD["endings"]
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"endings": ["one", "two", "three"]}, ["endings", "4"]),
        ({"endings": ["one", "two", "three", " "]}, ["endings"]),
        ({"endings": "four"}, ["endings"]),
        ({"label": ""}, ["label"]),
        ({"label": "4"}, ["label '4'"]),
        ({"ctx": None}, ["ctx"]),
        ({"endings": ["word" + " word" * 39, "two", "three", "four"]}, ["40 tokens", "32"]),
    ],
)
def test_a_malformed_row_is_named(tmp_path, change, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(InputError) as refused:
        hellaswag.load(str(path), 32)
    assert all(word in str(refused.value) for word in [f"{path}:2", *words]) and "\n" not in str(
        refused.value
    )


def test_a_limit_takes_rows_from_all_of_the_file(questions):
    everything, some = hellaswag.load(str(questions), 32), hellaswag.load(str(questions), 32, 3)
    assert len(everything) == 30 and some == [everything[0], everything[14], everything[29]]


def test_every_loss_is_that_of_a_plain_scorer_in_torch(pretrained, questions):
    asked = hellaswag.load(str(questions), 32)
    run = load_run(pretrained)
    params, config = run.params, run.config
    mesh = make_mesh()
    ask = partial(scoring.score, jax.device_put(params, replicated(mesh)), config, mesh)
    found = ask([(q.context, q.endings) for q in asked])
    assert found is not None
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    losses = in_torch(gpt2_with_weights(config, params), asked)
    np.testing.assert_allclose([[s.loss for s in own] for own in found], losses, atol=1e-4)
    assert hellaswag.accuracy(asked, ask) == np.mean(losses.argmin(1) == [q.label for q in asked])


def test_the_smallest_loss_a_token_wins_whatever_the_length():
    assert (
        hellaswag.best(
            [
                scoring.Score(-4.0, 2, False),
                scoring.Score(-5.0, 5, False),
                scoring.Score(-3.0, 1, True),
            ]
        )
        == 1
    )
    assert hellaswag.standard_error(0.25, 10042) == pytest.approx(0.00432, abs=1e-5)
    questions = [hellaswag.Question([1], [[2], [3], [4], [5]], label) for label in (0, 1)]
    assert (
        hellaswag.accuracy(
            questions,
            lambda groups: [[scoring.Score(-1.0 - i, 1, False) for i in range(4)] for _ in groups],
        )
        == 0.5
    )
    assert hellaswag.accuracy(questions, lambda groups: None) is None
    assert np.isnan(
        hellaswag.accuracy(
            questions, lambda groups: [[scoring.Score(np.nan, 1, False)] * 4 for _ in groups]
        )
        or 0
    )


def test_a_run_measures_it_while_it_trains(pretrained, questions):
    records = read_jsonl(pretrained / "evaluations.jsonl")
    assert [(r["step"], "hellaswag" in r) for r in records] == [
        (0, True),
        (4, False),
        (8, True),
        (12, True),
    ]
    assert all(
        r.get("hellaswag", 0) * 20 == pytest.approx(round(r.get("hellaswag", 0) * 20))
        for r in records
    )
    said = (pretrained / "said").read_text()
    assert said.count("HellaSwag") == 3 and f"HellaSwag {records[-1]['hellaswag']:.1%}" in said
    assert "HellaSwag" in (pretrained / "report.html").read_text()
    events = b"".join(p.read_bytes() for p in (pretrained / "tensorboard").iterdir())
    assert events.count(b"evaluation/hellaswag") == 3
    done = evals("hellaswag", "--run", pretrained, "--source", questions, "--limit", "20")
    assert done.returncode == 0, done.stderr
    assert (
        f"HellaSwag {records[-1]['hellaswag']:.4f} (standard error " in done.stdout
        and "on 20 rows" in done.stdout
    )


def test_a_run_is_refused_before_it_begins_where_the_questions_are_missing(tmp_path, corpus):
    done = run_train(tmp_path, data__folder=corpus, eval__hellaswag=tmp_path / "none.jsonl")
    assert (
        done.returncode == 2
        and done.stdout.count("\n") == 1
        and "none.jsonl: no such file" in done.stdout
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["poetry"], ["poetry"]),
        ([], ["required"]),
        (["hellaswag", "--run", "RUN", "--limit", "0"], ["'0'"]),
        (["hellaswag", "--run", "NONE"], ["no usable checkpoint"]),
        (["hellaswag", "--run", "RUN", "--source", "none.jsonl"], ["none.jsonl", "no such file"]),
        (["bits", "--run", "RUN", "--source", "NONE"], ["manifest.json"]),
        (["answers", "--run", "RUN", "--source", "PAIRS"], ["not finetuned"]),
        (
            ["lm-eval", "--run", "RUN", "--tasks", "none", "--include-path", "NONE"],
            ["no such folder"],
        ),
    ],
)
def test_wrong_input_ends_in_one_line(pretrained, tmp_path, arguments, words):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Why?", "completion": "Because."}) + "\n")
    named = {"RUN": pretrained, "NONE": tmp_path / "none", "PAIRS": pairs}
    done = evals(*(named.get(a, a) for a in arguments))
    assert done.returncode == 2 and done.stdout == ""
    *usage, last = done.stderr.strip().splitlines()
    assert all(word in last for word in words), done.stderr
    assert not usage or usage[0].startswith("usage:")
