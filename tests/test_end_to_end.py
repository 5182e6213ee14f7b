"""The commands as users run them: train, be killed, resume, finetune, sample, use two processes."""

import json
import re
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.errors import InputError
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import read_jsonl
from tests.harness import (
    ENVIRONMENT,
    ROOT,
    command,
    copy_run,
    history,
    run_script,
    start_pair,
    train,
    train_here,
)
from tests.runtime.launchers import slurm

DEADLINE = 300
# Two tests share the compiled program of this run.
SHORT = {
    "horizon__steps": 4,
    "schedule__kind": "constant",
    "schedule__warmup": 1,
    "log__tensorboard": False,
}


def files_of(run: Path) -> dict[Path, int]:
    """When each file of a run was written, but for the lock."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "lock")
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_run_leaves_records_checkpoints_and_a_report(trained_run):
    output = (trained_run.parent / "trained.txt").read_text()
    assert "starts with fresh weights" in output and "all 12 steps are done" in output

    records = read_jsonl(trained_run / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(12))
    assert records[0]["loss"] == pytest.approx(10.83, abs=0.1)
    assert records[-1]["loss"] < records[0]["loss"] - 1

    evaluations = read_jsonl(trained_run / "evaluations.jsonl")
    assert [e["step"] for e in evaluations] == [0, 4, 8, 12]
    assert evaluations[-1]["validation_loss"] < evaluations[0]["validation_loss"]
    # Bits per byte from the loss: every row holds whole words, so the bytes per token are those of
    # the text.
    bytes_per_token = (
        evaluations[-1]["validation_loss"] / np.log(2) / evaluations[-1]["bits_per_byte"]
    )
    assert 3.5 < bytes_per_token < 6

    assert checkpoint_steps(trained_run) == [9, 12]
    assert (trained_run / "report.html").stat().st_size > 10_000
    assert any((trained_run / "tensorboard").iterdir())
    assert json.loads((trained_run / "config.json").read_text())["model"]["embed"] == 32


def assert_same_run(run: Path, other: Path) -> None:
    """Losses bit for bit, batches and final weights are the same, and nothing else lies about."""
    assert history(run) == history(other)
    found, expected = (load_run(path).params for path in (run, other))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not [p for p in (run / "checkpoints").iterdir() if not p.name.isdecimal()]


@pytest.mark.campaign
def test_a_run_that_was_killed_and_terminated_ends_with_the_same_weights(
    tmp_path, corpus, trained_run
):
    settings = {"runs": tmp_path, "name": "interrupted", "data__folder": corpus}
    run = tmp_path / "interrupted"
    for point in ("during_write@3:kill", "after_step@4:kill"):
        train(expect=-signal.SIGKILL, environment={"MINIGPT_FAILPOINT": point}, **settings)

    process = subprocess.Popen(
        command(log__every=1, **settings),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step  6"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE) == 0
    assert "resumes from step 3" in lines[0]
    assert "everything is saved. To continue, run the same command again" in lines[-1]
    stopped_at = checkpoint_steps(run)[-1]
    assert 7 <= stopped_at < 12

    assert f"resumes from step {stopped_at}" in train(**settings)
    assert_same_run(run, trained_run)


@pytest.mark.campaign
def test_a_kill_during_a_deletion_changes_nothing(tmp_path, corpus, trained_run):
    settings = {"runs": tmp_path, "name": "killed", "data__folder": corpus}
    point = {"MINIGPT_FAILPOINT": "during_delete@3:kill"}
    train(expect=-signal.SIGKILL, environment=point, **settings)
    assert "resumes from step" in train(**settings)
    assert_same_run(tmp_path / "killed", trained_run)


def test_a_finished_run_is_left_alone(tmp_path, corpus, trained_run):
    run = copy_run(trained_run, tmp_path)
    before = files_of(run)
    assert "all 12 steps are done" in train_here(tmp_path, name=run.name, data__folder=corpus)
    assert files_of(run) == before


def test_a_finished_run_becomes_longer_and_keeps_its_precision(tmp_path, corpus):
    settings = {"name": "short", "data__folder": corpus} | SHORT
    first = train_here(tmp_path, **settings | {"horizon__steps": 2, "compute__dtype": "auto"})
    assert "in float32" in first
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    assert config["compute"]["dtype"] == "float32"

    with pytest.raises(InputError, match=r"compute.dtype: 'float32' -> 'bfloat16'"):
        train_here(tmp_path, compute__dtype="bfloat16", **settings)

    longer = train_here(tmp_path, compute__dtype="auto", **settings)
    assert "resumes from step 2" in longer
    assert [r["step"] for r in read_jsonl(tmp_path / "short" / "metrics.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"seed": 1, "optimizer__b2": 0.9}, ["seed: 1337 -> 1", "optimizer.b2: 0.95 -> 0.9"]),
        ({"model__layers": 3}, ["layers 2 -> 3"]),
    ],
)
def test_a_resumed_run_refuses_other_settings(tmp_path, corpus, trained_run, changes, parts):
    run = copy_run(trained_run, tmp_path)
    before = files_of(run)
    with pytest.raises(InputError) as refused:
        train_here(tmp_path, name=run.name, data__folder=corpus, horizon__steps=15, **changes)
    message = str(refused.value)
    assert all(part in message for part in parts) and "\n" not in message
    assert files_of(run) == before


def test_packed_conversations_must_be_kept_apart(tmp_path, conversations, trained_run):
    with pytest.raises(InputError, match="isolate_documents=True"):
        train_here(
            tmp_path,
            name="chat",
            data__folder=conversations,
            init_from=trained_run,
            model__vocab_size=50261,
        )


def test_a_trained_run_is_finetuned_and_sampled(finetuned_run, trained_run, capsys):
    output = (finetuned_run.parent / "finetuned.txt").read_text()
    assert f"starts with the weights of {trained_run}" in output
    evaluations = read_jsonl(finetuned_run / "evaluations.jsonl")
    # Better than a uniform guess (ln 50257 = 10.8) from the start.
    assert evaluations[-1]["train_loss"] < evaluations[0]["train_loss"] < 10.8

    question = ("--prompt", "What is 3 and 3?", "--max-new-tokens", 8)
    run_script("sample.py", "--runs", finetuned_run.parent, *question)
    # The newest run of the folder.
    assert str(finetuned_run) in capsys.readouterr().err


@pytest.mark.campaign
def test_two_processes_train_as_one(tmp_path, corpus, trained_run):
    """As tasks on two nodes of Slurm. They end with 0, not with the code of an interrupted run."""

    def launcher(index: int) -> dict:
        return slurm(index, 1, nodes=2)

    settings = {"name": "pair", "data__folder": corpus, "interrupted_exit_code": 75}
    pair = start_pair(tmp_path, launcher=launcher, **settings)
    outputs = [process.communicate(timeout=DEADLINE)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    assert "on 2 x cpu" in outputs[0]
    found, expected = (
        read_jsonl(run / "metrics.jsonl") for run in (tmp_path / "pair", trained_run)
    )
    assert [r["batch"] for r in found] == [r["batch"] for r in expected]
    losses = ([r["loss"] for r in records] for records in (found, expected))
    np.testing.assert_allclose(*losses, atol=1e-5)


@pytest.mark.campaign
def test_a_stop_during_an_evaluation_repeats_it_when_the_run_resumes(tmp_path, corpus):
    settings = {"name": "stopped", "data__folder": corpus, "eval__every": 2} | SHORT
    run = tmp_path / "stopped"

    def stop_requested() -> bool:
        """False until the steps before the evaluation of step 2 are on record."""
        return len(read_jsonl(run / "metrics.jsonl")) == 2

    output = train_here(tmp_path, stop_requested, **settings)
    assert re.search("stopped after step 2 of 4; everything is saved", output)
    assert [e["step"] for e in read_jsonl(run / "evaluations.jsonl")] == [0]
    train_here(tmp_path, **settings)
    assert [e["step"] for e in read_jsonl(run / "evaluations.jsonl")] == [0, 2, 4]


@pytest.mark.campaign
def test_a_report_that_fails_does_not_change_how_a_run_ends(tmp_path, corpus, capsys):
    run = tmp_path / "runs" / "quickstart"
    changes = SHORT | {"data__folder": corpus, "eval__every": 4}
    run.mkdir(parents=True)
    later = f"; to write it later: python -m minigpt_jax.report {run}"

    def warning() -> str:
        """The one line on stderr."""
        lines = [line for line in capsys.readouterr().err.splitlines() if "report" in line]
        assert len(lines) == 1
        start = "warning: the report could not be written: "
        assert lines[0].startswith(start) and lines[0].endswith(later)
        return lines[0].removeprefix(start)

    # The page cannot be written, and the run is interrupted.
    (run / "report.html.tmp").mkdir()
    metrics = run / "metrics.jsonl"
    output = train_here(
        tmp_path / "runs", lambda: metrics.is_file() and metrics.stat().st_size > 0, **changes
    )
    assert "stopped after step" in output.splitlines()[-1] and "report:" not in output
    assert "cannot write" in warning()
    (run / "report.html.tmp").rmdir()
    # What it is made of is damaged, and the run is done.
    (run / "answers.json").write_text("{")
    output = train_here(tmp_path / "runs", **changes)
    assert "all 4 steps are done" in output.splitlines()[-1]
    assert "answers.json: damaged" in warning()
