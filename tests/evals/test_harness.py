"""lm-evaluation-harness gets from the adapter what our own functions find on the same rows."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.errors import InputError
from minigpt_jax.evals import harness, hellaswag
from minigpt_jax.evals.scoring import score
from minigpt_jax.generate import Generator
from minigpt_jax.sampling import sampling_params
from minigpt_jax.sharding import AXES, replicated
from minigpt_jax.tokenizer import END_OF_TEXT
from tests.harness import ENVIRONMENT, ROOT

# Other people's code warns of what it likes.
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


@pytest.fixture(scope="module")
def model(pretrained):
    """Weights, config, tokenizer and mesh."""
    run = load_run(pretrained)
    params, config, tokenizer = run.params, run.config, run.tokenizer
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES
    )  # one device: the others would only repeat it
    return jax.device_put(params, replicated(mesh)), config, tokenizer, mesh


@pytest.fixture(scope="module")
def adapter(model):
    pytest.importorskip("lm_eval")
    return harness.adapter(*model, batch=4)


@pytest.fixture
def task(tmp_path, questions, monkeypatch) -> Path:
    """A folder with a task of lm_eval over our questions; nothing is kept outside of the test."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny_endings.yaml").write_text(TASK.format(rows=questions))
    return folder


def asked(*arguments):
    """A request as lm_eval makes it."""
    return SimpleNamespace(args=arguments)


def test_a_local_task_runs_end_to_end_and_equals_our_own_scorer(pretrained, model, task, questions):
    pytest.importorskip("lm_eval")
    results, table = harness.evaluate(
        *model, tasks=["tiny_endings"], limit=12, include=task, batch=8
    )
    rows = [json.loads(line) for line in questions.read_text().splitlines()[:12]]
    groups = [(q.context, q.endings) for q in (hellaswag._question("row", row, 32) for row in rows)]
    own = score(model[0], model[1], model[3], groups)
    assert own is not None
    samples = sorted(results["samples"]["tiny_endings"], key=lambda sample: sample["doc_id"])
    theirs = [[response[0] for response in sample["resps"]] for sample in samples]
    np.testing.assert_allclose(
        [[r[0] for r in row] for row in theirs],
        [[s.logprob for s in row] for row in own],
        atol=1e-4,
    )
    assert [[bool(r[1]) for r in row] for row in theirs] == [[s.greedy for s in row] for row in own]
    right = [
        max(range(4), key=lambda i: row[i].logprob) == int(q["label"])
        for row, q in zip(own, rows, strict=True)
    ]
    assert results["results"]["tiny_endings"]["acc,none"] == pytest.approx(np.mean(right))
    assert f"{results['results']['tiny_endings']['acc,none']:.2g}" in table


@pytest.mark.campaign
def test_the_command_prints_the_table(pretrained, model, task):
    pytest.importorskip("lm_eval")
    _, table = harness.evaluate(*model, tasks=["tiny_endings"], limit=12, include=task, batch=8)
    command = [
        "-m",
        "minigpt_jax.evals",
        "lm-eval",
        "--run",
        pretrained,
        "--tasks",
        "tiny_endings",
        "--limit",
        "12",
        "--include-path",
        task,
    ]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert table in done.stdout


def test_contexts_begin_a_document_and_lose_their_beginning_where_they_are_too_long(
    adapter, model, capsys
):
    params, config, tokenizer, mesh = model
    long = "the river " * 40
    found = adapter.loglikelihood(
        [asked("", "the stone"), asked("A dog", " sees light"), asked(long.strip(), " slowly")],
        disable_tqdm=True,
    )
    encode = tokenizer.encode
    rows = [
        ([END_OF_TEXT], encode("the stone")),
        ([END_OF_TEXT, *encode("A dog")], encode(" sees light")),
        (encode(long.strip()), encode(" slowly")),
    ]
    expected = score(
        params, config, mesh, [(context, [continuation]) for context, continuation in rows]
    )
    assert expected is not None
    assert found == [pytest.approx((s.logprob, s.greedy), abs=1e-4) for (s,) in expected]
    assert "1 of 3 contexts are longer" in capsys.readouterr().err


@pytest.mark.parametrize("words", [0, 5, 31, 32, 33, 100])
def test_a_rolling_likelihood_scores_each_token_once(adapter, model, words):
    params, config, tokenizer, mesh = model
    text = " ".join(["river", "stone", "light", "dog"][i % 4] for i in range(words))
    ids = tokenizer.encode(text)
    expected = 0.0
    for start in range(0, len(ids), config.context):
        stop = min(start + config.context, len(ids))
        before = [END_OF_TEXT, *ids][
            max(stop - config.context, 0) : start + 1
        ]  # the last window sees as much as it can
        found = score(params, config, mesh, [(before, [ids[start:stop]])])
        assert found is not None
        expected += found[0][0].logprob
    (total,) = adapter.loglikelihood_rolling([asked(text)], disable_tqdm=True)
    assert total == pytest.approx(expected, abs=1e-3)


def test_texts_end_at_stop_strings_and_at_their_limit_whoever_shares_the_batch(adapter, model):
    params, config, tokenizer, _ = model
    prompts = ["The dog", "A river under a stone", "the", "light with", "slowly the model"]
    free = adapter.generate_until([asked(p, {"max_gen_toks": 9, "until": []}) for p in prompts])
    for prompt, text in zip(prompts, free, strict=True):
        writer = Generator(params, config, tokenizer)
        pieces = writer.stream(
            [[END_OF_TEXT, *tokenizer.encode(prompt)]],
            sampling_params(1, config, temperature=0.0),
            max_new_tokens=9,
        )
        assert text == "".join(piece for _, piece in pieces)
    stop = free[0][3:6]
    (stopped,) = adapter.generate_until([asked(prompts[0], {"max_gen_toks": 9, "until": stop})])
    assert stopped == free[0][: free[0].index(stop)] and len(stopped) < len(free[0])


def test_drawn_texts_depend_on_the_request_alone(adapter):
    wish = {
        "do_sample": True,
        "temperature": 1.2,
        "top_p": 0.9,
        "max_gen_toks": 6,
        "until": ["\n\n"],
    }
    requests = [
        asked(text, wish)
        for text in ("The dog", "A river", "the", "light with a stone", "slowly", "under")
    ]
    texts = adapter.generate_until(requests)
    assert texts == adapter.generate_until(requests) and len(set(texts)) > 1
    assert adapter.generate_until(requests[:2]) == texts[:2]


def test_wishes_of_tasks():
    assert harness.wishes({"until": "x"}) == {
        "until": ["x"],
        "tokens": 256,
        "sampling": {"temperature": 0.0},
    }
    given = {"until": ["a", "b"], "max_gen_toks": 5, "do_sample": True, "top_k": 3}
    assert harness.wishes(given) == {
        "until": ["a", "b"],
        "tokens": 5,
        "sampling": {"temperature": 1.0, "top_k": 3},
    }
    assert harness.wishes({"do_sample": False, "temperature": 0.7})["sampling"] == {
        "temperature": 0.0
    }
    with pytest.raises(InputError, match="num_beams"):
        harness.wishes({"num_beams": 4})


@pytest.mark.campaign
def test_an_unknown_task_is_refused_in_one_line(model):
    pytest.importorskip("lm_eval")
    with pytest.raises(InputError, match="no task no_such_task"):
        harness.evaluate(*model, tasks=["no_such_task"], batch=8)


def test_without_the_package_the_extra_is_named(pretrained):
    code = """
import sys
sys.modules["lm_eval"] = None
sys.argv = ["evals", "lm-eval", "--run", sys.argv[1], "--tasks", "hellaswag"]
import runpy
runpy.run_module("minigpt_jax.evals", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, pretrained],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "pip install lm_eval" in done.stderr
    )
