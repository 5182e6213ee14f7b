"""Runs, shards and exports written by commit c5b4eae (version 0.1.0) still resume, sample, score, export and report.

c5b4eae.tar.xz was written by that commit. It holds a run stopped at step 6 of 12 (context 32, 2 layers, width 2), its
token shards, packed conversations, a folder whose preparation was killed, an export, and golden.json: what that commit
itself computed from them.
"""

import hashlib
import json
import runpy
import sys
import tarfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.runtime.files import read_jsonl
from tests.harness import run_command

ARCHIVE = Path(__file__).parent / "c5b4eae.tar.xz"
MODEL = {"layers": 2, "heads": 1, "embed": 2, "context": 32}
SETTINGS = {
    "schedule.warmup": 3,
    "eval.every": 6,
    "eval.rows": 8,
    "eval.samples": 1,
    "eval.sample_tokens": 4,
    "save.every": 6,
    "save.keep": 1,
    "log.every": 4,
    "log.tensorboard": False,
}


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A folder with what the old commit wrote; runs/old is the run."""
    folder = tmp_path_factory.mktemp("c5b4eae")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    (folder / "runs").mkdir()
    (folder / "run").rename(folder / "runs" / "old")
    return folder


@pytest.fixture(scope="module")
def golden(old) -> dict:
    return json.loads((old / "golden.json").read_text())


def train(old: Path, config: str = "configs/quickstart.py", expect: int = 0, **changes) -> str:
    """What train.py prints for the settings of the old run, changed as `changes` say."""
    fields = {f"model.{name}": value for name, value in MODEL.items()} | SETTINGS
    fields |= {"runs": old / "runs", "data.batch": 4}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    done = run_command([sys.executable, "train.py", "--config", config, *overrides])
    assert done.returncode == expect, done.stdout
    return done.stdout


def run_module(name: str, *arguments: object) -> None:
    """`python -m name arguments`, in this process."""
    before = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        # runpy warns where a module that this process has imported already runs as a program.
        with warnings.catch_warnings(), pytest.raises(SystemExit) as exit:
            warnings.simplefilter("ignore", RuntimeWarning)
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        assert not exit.value.code
    finally:
        sys.argv = before


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_fixture_is_small():
    assert ARCHIVE.stat().st_size < 2_000_000


def test_an_old_run_is_sampled(old, golden):
    done = run_command(
        [sys.executable, "sample.py", "--run", str(old / "runs" / "old")]
        + ["--prompt", "The river", "--temperature", "0", "--max-new-tokens", "8"]
    )
    assert golden["sample"] in done.stdout, done.stdout


def test_an_old_run_is_scored(old, golden, capsys):
    run_module("minigpt_jax.evals", "bits", "--run", old / "runs" / "old", "--source", old / "text")
    assert golden["bits"] in capsys.readouterr().out


def test_an_old_run_is_exported_as_before(old, golden, tmp_path):
    out = tmp_path / "exported"
    run_module("minigpt_jax.interop.export_hf", "--run", old / "runs" / "old", "--out", out)
    assert {name: sha256(out / name) for name in golden["exported_sha256"]} == (
        golden["exported_sha256"]
    )


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


def test_an_old_run_starts_a_finetuning_on_old_conversations(old):
    output = train(
        old,
        "configs/quickstart_finetune.py",
        name="chat",
        init_from=old / "runs" / "old",
        data__folder=old / "chat",
        horizon__steps=3,
    )
    assert "begins with the weights of" in output and "all 3 steps are done" in output


def test_a_preparation_that_the_old_commit_began_is_finished(old, golden):
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
    output = train(old, name="old", data__folder=old / "text", horizon__steps=12)
    assert "goes on from step 6" in output and "all 12 steps are done" in output
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
