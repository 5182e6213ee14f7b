"""HellaSwag's accuracy is that of a plain scorer in torch, alone and during training."""

import json
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

from benchmarks.transformers_gpt2 import gpt2_with_weights
from minigpt_jax.errors import EvaluationStopped, InputError
from minigpt_jax.evals import hellaswag, scoring
from minigpt_jax.evals.scoring import Score
from minigpt_jax.loaded_run import load_run
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.sharding import make_mesh, replicated
from minigpt_jax.tokenizer import load_tokenizer
from tests.evals.conftest import OUTPUT, QUESTIONS_IN_TRAINING
from tests.evals.peer import losses_in_torch
from tests.harness import ENVIRONMENT, ROOT, run_train

CONTEXT = 32
GOOD = {
    "ctx": "A man sits on a roof. He",
    "endings": ["starts to sing.", "flies.", "is a roof.", "eats it."],
    "label": "3",
}


def test_a_question_is_encoded_as_a_document():
    tokenizer = load_tokenizer()
    question = hellaswag.parse_question("row", GOOD, CONTEXT)
    assert question.context == tokenizer.encode_document(GOOD["ctx"])
    assert question.label == 3
    for ids, ending in zip(question.endings, GOOD["endings"], strict=True):
        assert [*question.context, *ids] == tokenizer.encode_document(f"{GOOD['ctx']} {ending}")


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
def test_the_message_names_a_malformed_row(tmp_path, change, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(InputError) as refused:
        hellaswag.load(str(path), CONTEXT)
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in [f"{path}:2", *words])


def test_a_limit_takes_rows_from_the_whole_file(questions):
    all_questions = hellaswag.load(str(questions), CONTEXT)
    assert len(all_questions) == 30
    three = hellaswag.load(str(questions), CONTEXT, 3)
    assert three == [all_questions[0], all_questions[14], all_questions[29]]


def test_every_loss_is_that_of_a_plain_scorer_in_torch(base_run, questions):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    loaded = hellaswag.load(str(questions), CONTEXT)
    mesh = make_mesh()
    run = load_run(base_run, replicated(mesh))
    score = partial(scoring.score, run, mesh)
    found = [
        [s.loss for s in endings] for endings in score([(q.context, q.endings) for q in loaded])
    ]
    params = jax.device_get(run.params)
    losses = losses_in_torch(gpt2_with_weights(run.config, params), loaded)
    np.testing.assert_allclose(found, losses, atol=1e-4)
    expected = np.mean(losses.argmin(1) == [q.label for q in loaded])
    assert hellaswag.accuracy(loaded, score) == expected


TWO_QUESTIONS = [hellaswag.Question([1], [[2], [3], [4], [5]], label) for label in (0, 1)]


def test_the_smallest_loss_per_token_wins_at_any_length():
    scores = [Score(-4.0, 2, False), Score(-5.0, 5, False), Score(-3.0, 1, True)]
    assert hellaswag.predicted_ending(scores) == 1


def test_accuracy_is_the_share_of_right_endings():
    def first_is_best(groups):
        return [[Score(-1.0 - i, 1, False) for i in range(4)] for _ in groups]

    assert hellaswag.accuracy(TWO_QUESTIONS, first_is_best) == 0.5
    assert hellaswag.standard_error(0.25, 10042) == pytest.approx(0.00432, abs=1e-5)


def test_broken_weights_have_no_accuracy():
    def broken(groups):
        return [[Score(np.nan, 1, False)] * 4 for _ in groups]

    assert np.isnan(hellaswag.accuracy(TWO_QUESTIONS, broken))


def test_a_requested_stop_is_passed_on():
    def stopped(groups):
        raise EvaluationStopped

    with pytest.raises(EvaluationStopped):
        hellaswag.accuracy(TWO_QUESTIONS, stopped)


def test_training_measures_it_at_the_configured_steps(pretrained):
    run, output = pretrained, (pretrained / OUTPUT).read_text()
    records = read_jsonl(run / "evaluations.jsonl")
    measured = [(r["step"], "hellaswag" in r) for r in records]
    assert measured == [(0, True), (4, False), (8, True), (12, True)]
    for record in records:
        correct = record.get("hellaswag", 0) * QUESTIONS_IN_TRAINING
        assert correct == pytest.approx(round(correct))
    assert output.count("HellaSwag") == 3
    assert f"HellaSwag {records[-1]['hellaswag']:.1%}" in output
    assert "HellaSwag" in (run / "report.html").read_text()
    events = b"".join(p.read_bytes() for p in (run / "tensorboard").iterdir())
    assert events.count(b"evaluation/hellaswag") == 3


def test_the_command_finds_the_same_accuracy_as_training(pretrained, questions):
    """In a process of its own: it proves the command line."""
    command = [sys.executable, "-m", "minigpt_jax.evals", "hellaswag", "--run", pretrained]
    command += ["--source", questions, "--limit", QUESTIONS_IN_TRAINING]
    done = subprocess.run(
        [str(argument) for argument in command],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    accuracy = read_jsonl(pretrained / "evaluations.jsonl")[-1]["hellaswag"]
    assert f"HellaSwag {accuracy:.4f} (standard error " in done.stdout
    assert "on 20 rows" in done.stdout


def test_training_does_not_start_without_the_questions(tmp_path, corpus):
    done = run_train(tmp_path, data__folder=corpus, eval__hellaswag=tmp_path / "none.jsonl")
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1 and "none.jsonl: no such file" in done.stdout
    assert not list(tmp_path.iterdir())
