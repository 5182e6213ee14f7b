"""What commit c5b4eae wrote still resumes, samples, scores, exports, imports and reports."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.runtime.files import read_jsonl
from tests.compatibility import ARCHIVE, OLD_SETTINGS
from tests.harness import run_module, run_script, train, train_here


@pytest.fixture(scope="module")
def golden(old) -> dict:
    return json.loads((old / "golden.json").read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_fixture_is_small():
    assert ARCHIVE.stat().st_size < 2_000_000


def test_an_old_run_is_sampled(old, golden, capsys):
    greedy = ("--prompt", "The river", "--temperature", 0, "--max-new-tokens", 8)
    run_script("sample.py", "--run", old / "runs" / "old", *greedy)
    assert golden["sample"] in capsys.readouterr().out


def test_an_old_run_is_scored(old, golden, capsys):
    run_module("minigpt_jax.evals", "bits", "--run", old / "runs" / "old", "--source", old / "text")
    assert golden["bits"] in capsys.readouterr().out


def test_an_old_run_is_exported_as_before(old, golden, tmp_path):
    out = tmp_path / "exported"
    run_module("minigpt_jax.interop.export_hf", "--run", old / "runs" / "old", "--out", out)
    changed = ("generation_config.json", "tokenizer_config.json")
    expected = {n: digest for n, digest in golden["exported_sha256"].items() if n not in changed}
    assert {name: sha256(out / name) for name in expected} == expected
    # Both fields are for transformers: it warned about the one, and about the lack of the other.
    generation, tokenizer = (json.loads((out / name).read_text()) for name in changed)
    old_ones = [json.loads((old / "exported" / name).read_text()) for name in changed]
    assert [generation | {"max_length": 32}, tokenizer] == [
        old_ones[0],
        old_ones[1] | {"padding_side": "left"},
    ]


def test_an_old_export_is_imported(old):
    run_module(
        "minigpt_jax.interop.import_gpt2",
        *("--source", old / "exported", "--out", old / "imported" / "run"),
    )
    vocab = load_run(old / "runs" / "old").config.vocab_size
    found, expected = (
        load_run(run).params for run in (old / "imported" / "run", old / "runs" / "old")
    )
    for params in (found, expected):
        params["wte"] = params["wte"][:vocab]  # an export does not write the padding
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.campaign
def test_an_old_run_is_finetuned_on_old_conversations(old):
    output = train_here(
        old / "runs",
        config="configs/quickstart_finetune.py",
        name="chat",
        init_from=old / "runs" / "old",
        data__folder=old / "chat",
        horizon__steps=3,
        **OLD_SETTINGS | {"eval__samples": 0},
    )
    assert "starts with the weights of" in output and "all 3 steps are done" in output


def test_an_old_preparation_that_was_killed_is_finished(old, golden):
    run_module(
        "data_tools.fineweb",
        *("--source", old / "texts.jsonl", "--out", old / "half"),
        *("--val-every", 10, "--shard-tokens", 1500, "--workers", 1),
    )
    found = {path.name: sha256(path) for path in (old / "half").glob("*.npy")}
    assert found == golden["text_sha256"]


def test_an_old_run_resumes_and_is_reported(old, golden):
    """The last test of the file: it changes the run."""
    run = old / "runs" / "old"
    output = train(old / "runs", name="old", data__folder=old / "text", **OLD_SETTINGS)
    assert "resumes from step 6" in output and "all 12 steps are done" in output
    records, expected = read_jsonl(run / "metrics.jsonl"), golden["history"]
    assert [(r["step"], r["batch"]) for r in records] == [(r["step"], r["batch"]) for r in expected]
    losses = [r["loss"] for r in records], [r["loss"] for r in expected]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    found = [r["validation_loss"] for r in read_jsonl(run / "evaluations.jsonl")]
    wanted = [r["validation_loss"] for r in golden["evaluations"]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    (run / "report.html").unlink()
    run_module("minigpt_jax.report", run)
    assert (run / "report.html").stat().st_size > 10_000
