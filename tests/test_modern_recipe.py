"""The modern recipe (NanoChat, Muon) from tokens to a server, with the commands that users run."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import load_run, plan
from minigpt_jax.architectures import make_model
from minigpt_jax.checkpoint import abstract_params
from minigpt_jax.decoding import empty_cache, forward, next_logits, prepare_for_decoding
from minigpt_jax.errors import InputError
from minigpt_jax.evals.__main__ import main as evals
from minigpt_jax.quantize import Int8
from minigpt_jax.resume import initial_params_from
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.server.connection import DEADLINES
from minigpt_jax.sharding import make_mesh, replicated
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT, USER
from tests.evals.plain import next_token_logprobs
from tests.harness import TINY, copy_run, made_once, run_module, run_script, train_here
from tests.in_process import run_main
from tests.server.serving import in_process_server

# ml_collections loads config files in a way that Python 3.15 will remove.
pytestmark = [
    pytest.mark.filterwarnings("ignore:the load_module.* method is deprecated:DeprecationWarning"),
    # Daily, the tests of each part have a NanoChat among their models.
    pytest.mark.campaign,
]

CONFIG = "configs/quickstart_modern.py"
QUESTION = "What is 3 and 3?"


@pytest.fixture(scope="module")
def base_run(shared, corpus) -> Path:
    """A run of twelve steps on four devices; `output.txt` beside it holds what was printed."""

    def make(folder: Path) -> None:
        mesh = {"mesh__data": 2, "mesh__fsdp": 2}
        output = train_here(folder, config=CONFIG, name="base", data__folder=corpus, **mesh)
        (folder / "output.txt").write_text(output)

    return made_once(shared / "modern_base", make) / "base"


@pytest.fixture(scope="module")
def chat_run(shared, base_run, conversations) -> Path:
    """`base_run` finetuned on conversations that do not see each other."""

    def make(folder: Path) -> None:
        output = train_here(folder, **finetuning(base_run, conversations), save__every=12)
        (folder / "output.txt").write_text(output)

    return made_once(shared / "modern_chat", make) / "chat"


def finetuning(source: Path, conversations: Path) -> dict:
    return {
        "config": CONFIG,
        "name": "chat",
        "init_from": source,
        "model__vocab_size": CHAT_VOCAB,
        "data__folder": conversations,
        "data__isolate_documents": True,
    }


def test_a_run_learns_and_says_what_it_is(base_run):
    output = (base_run.parent / "output.txt").read_text()
    assert "all 12 steps are done" in output
    losses = [record["loss"] for record in read_jsonl(base_run / "metrics.jsonl")]
    # The head begins with zeros, so the first guess is uniform over the tokens.
    assert losses[0] == pytest.approx(np.log(50257), abs=1e-4)
    assert losses[-1] < losses[0] - 1
    config = json.loads((base_run / "config.json").read_text())
    assert (config["model"]["architecture"], config["optimizer"]["kind"]) == ("nanochat", "muon")
    parameters = f"{load_run(base_run).config.parameters:,} parameters"
    assert parameters in output
    assert "architecture" in (base_run / "report.html").read_text()


def test_a_run_is_finetuned_from_it(chat_run, base_run):
    output = (chat_run.parent / "output.txt").read_text()
    assert f"starts with the weights of {base_run}" in output
    evaluations = read_jsonl(chat_run / "evaluations.jsonl")
    # From the start better than a uniform guess: every table has kept its rows.
    assert evaluations[-1]["train_loss"] < evaluations[0]["train_loss"] < np.log(CHAT_VOCAB) - 0.01


@pytest.mark.parametrize("quantize", [(), ("--quantize", "int8")], ids=["f32", "int8"])
def test_it_is_sampled(chat_run, capsys, quantize):
    greedy = ("--prompt", QUESTION, "--max-new-tokens", 8, "--temperature", 0)
    run_script("sample.py", "--run", chat_run, *greedy, *quantize)
    assert capsys.readouterr().out.strip()


def test_the_most_likely_text_is_that_of_plain_forward_passes(base_run):
    run = load_run(base_run)
    ids = [END_OF_TEXT, *run.tokenizer.encode("The river")]
    length = len(ids)
    for _ in range(6):
        ids.append(int(next_token_logprobs(run, ids)[-1].argmax()))
    text = run.complete("The river", temperature=0.0, max_new_tokens=6)
    assert text == run.tokenizer.decode(ids[length:])


def test_it_answers_through_the_server(chat_run):
    run = load_run(chat_run)
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 8,
    }
    with in_process_server(run, DEADLINES) as server:
        reply = server.request("/v1/chat/completions", body)
    assert reply.status == 200
    answer = json.loads(reply.body)["choices"][0]["message"]["content"]
    assert answer == run.chat(body["messages"], temperature=0.0, max_new_tokens=8)


def test_its_bits_are_those_of_its_last_evaluation(base_run, corpus):
    last = read_jsonl(base_run / "evaluations.jsonl")[-1]
    done = run_main(evals, "bits", "--run", base_run, "--source", corpus, "--limit", 8)
    assert done.returncode == 0, done.stderr
    found = re.search(r"loss (\S+) per token, (\S+) bits per byte", done.stdout)
    assert found, done.stdout
    assert float(found[1]) == pytest.approx(last["validation_loss"], abs=1e-4)
    assert float(found[2]) == pytest.approx(last["bits_per_byte"], abs=1e-4)


def test_eight_bits_change_its_logits_a_little(chat_run):
    run = load_run(chat_run)
    ids = np.array([[END_OF_TEXT, USER, *run.tokenizer.encode(QUESTION)]])
    positions = np.arange(ids.size)[None]

    # So large that the cap of the logits counts.
    head = run.params["lm_head"]
    states = jax.jit(make_model(run.config).apply)({"params": run.params}, ids)[0]
    weights = run.params | {"lm_head": head * (20 / jnp.abs(states @ head.T).max())}

    def logits(quantize: str | None) -> tuple[jax.Array, dict]:
        model, params = prepare_for_decoding(weights, run.config, jnp.float32, quantize)
        cache = empty_cache(run.config, 1, jnp.float32)
        hidden, _ = jax.jit(forward, static_argnums=0)(model, params, ids, positions, cache)
        return next_logits(hidden, params, run.config)[..., : run.config.vocab_size], params

    exact, _ = logits(None)
    found, params = logits("int8")
    assert float(jnp.abs(exact).max()) == pytest.approx(15 * np.tanh(20 / 15), abs=0.01)
    assert 0 < jnp.abs(found - exact).max() < 1
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Int8))
    assert sum(isinstance(leaf, Int8) for leaf in leaves) == 1 + 4 * run.config.layers


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model__architecture": "gpt2"}, "architecture"),
        ({"optimizer__kind": "adamw"}, "optimizer.kind: 'muon' -> 'adamw'"),
        ({"optimizer__head_lr_scale": 1.0}, "optimizer.head_lr_scale: 0.8 -> 1.0"),
    ],
)
def test_a_resumed_run_refuses_another_recipe(base_run, corpus, tmp_path, changes, part):
    run = copy_run(base_run, tmp_path)
    with pytest.raises(InputError) as refused:
        train_here(
            tmp_path,
            config=CONFIG,
            name=run.name,
            data__folder=corpus,
            horizon__steps=15,
            **changes,
        )
    assert part in str(refused.value) and "\n" not in str(refused.value)


def test_weights_of_another_architecture_are_refused(trained_run, conversations, tmp_path):
    with pytest.raises(InputError) as refused:
        train_here(tmp_path, **finetuning(trained_run, conversations))
    assert str(refused.value) == (
        f"init_from {trained_run}: it holds another model (architecture gpt2 -> nanochat): "
        "set config.model to match it"
    )
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_its_weights_suit_any_context(base_run):
    config = dataclasses.replace(load_run(base_run).config, context=16)
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = abstract_params(config, replicated(mesh))
    params = initial_params_from(str(base_run), config, abstract, mesh)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)


def test_an_export_comes_back_as_it_was(chat_run, tmp_path):
    out = tmp_path / "exported"
    run_module("minigpt_jax.interop.export_hf", "--run", chat_run, "--out", out)
    assert json.loads((out / "config.json").read_text())["model_type"] == "nanochat"
    back = tmp_path / "back"
    run_module("minigpt_jax.interop.import_hf", "--source", out, "--out", back)
    found, expected = load_run(back), load_run(chat_run)
    assert found.config == expected.config
    for name in ("wte", "lm_head"):
        # An export does not write the rows that pad a table.
        for params in (found.params, expected.params):
            params[name] = params[name][: expected.config.vocab_size]
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_the_plan_counts_both_tables():
    overrides = [f"--config.{name}={value}" for name, value in TINY.items()]
    done = run_main(plan.main, "--config", CONFIG, *overrides)
    assert done.returncode == 0, done.stderr
    tables = 2 * 50257 * TINY["model.embed"]
    parameters = tables + 12 * TINY["model.layers"] * TINY["model.embed"] ** 2
    assert f"{parameters:,} parameters" in done.stdout
