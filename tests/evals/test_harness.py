"""lm-evaluation-harness gets from the adapter what our own functions find on the same rows."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.evals import harness, hellaswag
from minigpt_jax.evals.__main__ import main
from minigpt_jax.evals.harness import GenerationSettings, generation_settings
from minigpt_jax.evals.scoring import score
from minigpt_jax.loaded_run import LoadedRun, load_run
from minigpt_jax.sampling import sampling_params
from minigpt_jax.sharding import AXES, replicated
from minigpt_jax.tokenizer import END_OF_TEXT
from tests.harness import ENVIRONMENT, ROOT
from tests.in_process import run_main

# lm_eval and the packages it imports warn about many things.
pytestmark = pytest.mark.filterwarnings("default")
TASK = """
task: tiny_endings
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{ctx}}}}"
doc_to_target: "{{{{label|int}}}}"
doc_to_choice: "{{{{endings}}}}"
metric_list: [{{metric: acc}}]
"""
ROWS = 12


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    """One device: the others would only repeat its work."""
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)


@pytest.fixture(scope="module")
def run(base_run, mesh) -> LoadedRun:
    return load_run(base_run, replicated(mesh))


@pytest.fixture(scope="module")
def adapter(run, mesh):
    pytest.importorskip("lm_eval")
    return harness.make_adapter(run, mesh, batch=4)


@pytest.fixture
def task(tmp_path, questions, monkeypatch) -> Path:
    """A folder with a task of lm_eval over our questions; the test leaves no other files."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny_endings.yaml").write_text(TASK.format(rows=questions))
    return folder


def request(*arguments):
    """A request as lm_eval makes it."""
    return SimpleNamespace(args=arguments)


@pytest.mark.campaign
def test_a_local_task_gets_the_scores_of_our_own_scorer(run, mesh, task, questions):
    pytest.importorskip("lm_eval")
    results, table = harness.evaluate(
        run, mesh, tasks=["tiny_endings"], limit=ROWS, include=task, batch=8
    )
    rows = [json.loads(line) for line in questions.read_text().splitlines()[:ROWS]]
    parsed = [hellaswag.parse_question("row", row, run.config.context) for row in rows]
    ours = score(run, mesh, [(question.context, question.endings) for question in parsed])

    samples = sorted(results["samples"]["tiny_endings"], key=lambda sample: sample["doc_id"])
    theirs = [[response[0] for response in sample["resps"]] for sample in samples]
    np.testing.assert_allclose(
        [[logprob for logprob, _ in endings] for endings in theirs],
        [[s.logprob for s in endings] for endings in ours],
        atol=1e-4,
    )
    greedy = [[bool(greedy) for _, greedy in endings] for endings in theirs]
    assert greedy == [[s.greedy for s in endings] for endings in ours]

    predicted = np.argmax([[s.logprob for s in endings] for endings in ours], axis=1)
    accuracy = np.mean(predicted == [question.label for question in parsed])
    assert results["results"]["tiny_endings"]["acc,none"] == pytest.approx(accuracy)
    assert f"{accuracy:.4f}" in table


@pytest.mark.campaign
def test_the_command_prints_the_table(base_run, run, mesh, task):
    pytest.importorskip("lm_eval")
    _, table = harness.evaluate(
        run, mesh, tasks=["tiny_endings"], limit=ROWS, include=task, batch=8
    )
    command = [sys.executable, "-m", "minigpt_jax.evals", "lm-eval", "--run", base_run]
    command += ["--tasks", "tiny_endings", "--limit", ROWS, "--include-path", task]
    done = subprocess.run(
        [str(argument) for argument in command],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert table in done.stdout


def test_contexts_begin_a_document_and_are_truncated_from_the_left(adapter, run, mesh, capsys):
    encode = run.tokenizer.encode
    long = ("the river " * 40).strip()
    found = adapter.loglikelihood(
        [request("", "the stone"), request("A dog", " sees light"), request(long, " slowly")],
        disable_tqdm=True,
    )
    groups = [
        ([END_OF_TEXT], [encode("the stone")]),
        ([END_OF_TEXT, *encode("A dog")], [encode(" sees light")]),
        (encode(long), [encode(" slowly")]),
    ]
    expected = score(run, mesh, groups)
    assert found == [pytest.approx((s.logprob, s.greedy), abs=1e-4) for (s,) in expected]
    assert "1 of 3 contexts are longer" in capsys.readouterr().err


@pytest.mark.parametrize("words", [0, 5, 31, 32, 33, 100])
def test_a_rolling_likelihood_scores_each_token_once(adapter, run, mesh, words):
    text = " ".join(["river", "stone", "light", "dog"][i % 4] for i in range(words))
    ids = run.tokenizer.encode(text)
    context = run.config.context
    groups = []
    for start in range(0, len(ids), context):
        stop = min(start + context, len(ids))
        # The last window has as much context as fits.
        before = [END_OF_TEXT, *ids][max(stop - context, 0) : start + 1]
        groups.append((before, [ids[start:stop]]))
    expected = sum(s.logprob for (s,) in score(run, mesh, groups))
    (total,) = adapter.loglikelihood_rolling([request(text)], disable_tqdm=True)
    assert total == pytest.approx(expected, abs=1e-3)


PROMPTS = ["The dog", "A river under a stone", "the", "light with", "slowly the model"]


@pytest.mark.campaign
def test_greedy_texts_are_those_of_single_prompts(adapter, run):
    kwargs = {"max_gen_toks": 9, "until": []}
    texts = adapter.generate_until([request(prompt, kwargs) for prompt in PROMPTS])
    generator = run.generator()
    greedy = sampling_params(1, run.config, temperature=0.0)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = run.tokenizer.encode_document(prompt)
        (completion,) = generator.complete([ids], greedy, max_new_tokens=9)
        assert text == completion.text


def test_a_text_ends_before_a_stop_string(adapter):
    (free,) = adapter.generate_until([request(PROMPTS[0], {"max_gen_toks": 9, "until": []})])
    stop = free[3:6]
    (text,) = adapter.generate_until([request(PROMPTS[0], {"max_gen_toks": 9, "until": stop})])
    assert text == free[: free.index(stop)] and len(text) < len(free)


def test_sampled_texts_depend_only_on_their_request(adapter):
    kwargs = {"do_sample": True, "temperature": 1.2, "top_p": 0.9}
    kwargs |= {"max_gen_toks": 6, "until": ["\n\n"]}
    requests = [request(prompt, kwargs) for prompt in PROMPTS]
    texts = adapter.generate_until(requests)
    assert texts == adapter.generate_until(requests) and len(set(texts)) > 1
    # The first prompt shares a batch of four above, and has one of its own here.
    assert adapter.generate_until(requests[:1]) == texts[:1]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"until": "x"}, GenerationSettings(["x"], 256, {"temperature": 0.0})),
        (
            {"until": ["a", "b"], "max_gen_toks": 5, "do_sample": True, "top_k": 3},
            GenerationSettings(["a", "b"], 5, {"temperature": 1.0, "top_k": 3}),
        ),
        (
            {"do_sample": False, "temperature": 0.7},
            GenerationSettings([], 256, {"temperature": 0.0}),
        ),
    ],
)
def test_the_settings_of_tasks(kwargs, expected):
    assert generation_settings(kwargs) == expected


def test_an_unknown_setting_of_a_task_is_refused():
    with pytest.raises(InputError, match="num_beams"):
        generation_settings({"num_beams": 4})


@pytest.mark.campaign
def test_an_unknown_task_is_refused_in_one_line(run, mesh):
    pytest.importorskip("lm_eval")
    with pytest.raises(InputError, match="no task no_such_task"):
        harness.evaluate(run, mesh, tasks=["no_such_task"], batch=8)


def test_without_the_package_the_message_names_it(base_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = run_main(main, "lm-eval", "--run", base_run, "--tasks", "hellaswag")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "pip install lm_eval" in done.stderr
