"""The commands as users run them: train, be killed, go on, finetune, sample, and train in two processes at once."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import read_jsonl
from tests.harness import ENVIRONMENT, ROOT, command, history, start_pair, train, write_chat


def final_weights(run: Path) -> list[np.ndarray]:
    return [np.asarray(a) for a in jax.tree.leaves(load_run(run).params)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """One folder of runs for the module, so that programs are compiled once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uninterrupted(runs, corpus) -> Path:
    output = train(runs, name="uninterrupted", data__folder=corpus, eval__every=6, eval__samples=1)
    assert "begins with fresh weights" in output and "all 12 steps are done" in output
    return runs / "uninterrupted"


def test_a_run_leaves_everything_it_promises(uninterrupted):
    records = read_jsonl(uninterrupted / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(12))
    assert (
        records[0]["loss"] == pytest.approx(10.83, abs=0.1)
        and records[-1]["loss"] < records[0]["loss"] - 1
    )
    evaluations = read_jsonl(uninterrupted / "evaluations.jsonl")
    assert [e["step"] for e in evaluations] == [0, 6, 12] and evaluations[-1][
        "validation_loss"
    ] < evaluations[0]["validation_loss"]
    # Bits per byte from the loss by hand: every row holds whole words, so bytes a token are those of the text.
    ratio = evaluations[-1]["validation_loss"] / np.log(2) / evaluations[-1]["bits_per_byte"]
    assert 3.5 < ratio < 6
    assert checkpoint_steps(uninterrupted) == [9, 12]
    assert (uninterrupted / "report.html").stat().st_size > 10_000 and any(
        (uninterrupted / "tensorboard").iterdir()
    )
    assert json.loads((uninterrupted / "config.json").read_text())["model"]["embed"] == 32


@pytest.mark.parametrize(
    "points",
    [
        ["during_write@6:kill", "after_step@10:kill"],
        pytest.param(["during_delete@3:kill"], marks=pytest.mark.campaign),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(runs, corpus, uninterrupted, points):
    name = "killed_" + points[0].partition("@")[0]
    for point in points:
        train(
            runs,
            expect=-signal.SIGKILL,
            environment={"MINIGPT_FAILPOINT": point},
            name=name,
            data__folder=corpus,
        )
    assert "goes on from step" in train(runs, name=name, data__folder=corpus)
    assert history(runs / name) == history(uninterrupted)
    assert all(map(np.array_equal, final_weights(runs / name), final_weights(uninterrupted)))
    assert not [p for p in (runs / name / "checkpoints").iterdir() if not p.name.isdecimal()]


def test_a_terminated_run_saves_says_so_and_goes_on(runs, corpus, uninterrupted):
    process = subprocess.Popen(
        command(runs, name="terminated", data__folder=corpus, log__every=1),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step  4"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert "everything is saved. To go on, run the same command again" in lines[-1]
    stopped_at = checkpoint_steps(runs / "terminated")[-1]
    assert 5 <= stopped_at < 12
    train(runs, name="terminated", data__folder=corpus)
    assert history(runs / "terminated") == history(uninterrupted)
    assert all(
        map(np.array_equal, final_weights(runs / "terminated"), final_weights(uninterrupted))
    )


def test_a_finished_run_is_left_alone_and_a_longer_one_goes_on(runs, corpus, uninterrupted):
    before = sorted(
        (p, p.stat().st_mtime_ns)
        for p in uninterrupted.rglob("*")
        if p.is_file() and p.name != "lock"
    )
    assert "all 12 steps are done" in train(runs, name="uninterrupted", data__folder=corpus)
    assert before == sorted(
        (p, p.stat().st_mtime_ns)
        for p in uninterrupted.rglob("*")
        if p.is_file() and p.name != "lock"
    )
    given = {
        "name": "short",
        "data__folder": corpus,
        "schedule__kind": "constant",
        "compute__dtype": "auto",
    }
    train(runs, horizon__steps=6, **given)
    assert "goes on from step 6" in train(runs, horizon__steps=8, **given)
    assert [r["step"] for r in read_jsonl(runs / "short" / "metrics.jsonl")] == list(range(8))


def test_automatic_precision_goes_on_record(runs, corpus):
    given = {"name": "automatic", "data__folder": corpus, "schedule__warmup": 1}
    assert "in float32" in train(runs, horizon__steps=2, compute__dtype="auto", **given)
    assert (
        json.loads((runs / "automatic" / "config.json").read_text())["compute"]["dtype"]
        == "float32"
    )
    assert "compute.dtype: 'float32' -> 'bfloat16'" in train(
        runs, expect=2, horizon__steps=3, compute__dtype="bfloat16", **given
    )


def test_a_resumed_run_refuses_to_become_another(runs, corpus, uninterrupted):
    output = train(
        runs,
        expect=2,
        name="uninterrupted",
        data__folder=corpus,
        horizon__steps=15,
        seed=1,
        optimizer__b2=0.9,
    )
    assert (
        "seed: 1337 -> 1" in output
        and "optimizer.b2: 0.95 -> 0.9" in output
        and output.count("\n") == 1
    )
    output = train(
        runs,
        expect=2,
        name="uninterrupted",
        data__folder=corpus,
        horizon__steps=15,
        model__layers=3,
    )
    assert "layers 2 -> 3" in output


def test_pretrained_weights_are_finetuned_and_sampled(runs, uninterrupted, tmp_path):
    chat = write_chat(tmp_path)
    output = train(
        runs,
        expect=2,
        name="chat",
        data__folder=chat,
        init_from=uninterrupted,
        model__vocab_size=50261,
    )
    assert "isolate_documents=True" in output  # packed conversations must not see each other
    settings = {
        "name": "chat",
        "data__folder": chat,
        "init_from": uninterrupted,
        "config": "configs/quickstart_finetune.py",
    }
    assert "begins with the weights of" in train(runs, **settings)
    first, last = read_jsonl(runs / "chat" / "evaluations.jsonl")[
        :: len(read_jsonl(runs / "chat" / "evaluations.jsonl")) - 1
    ]
    assert (
        last["train_loss"] < first["train_loss"] < 10.8
    )  # better than a uniform guess from the start
    sampled = subprocess.run(
        [
            sys.executable,
            "sample.py",
            "--runs",
            str(runs),
            "--prompt",
            "What is 3 and 3?",
            "--max-new-tokens",
            "8",
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert str(runs / "chat") in sampled.stderr  # the newest run


def test_two_processes_train_as_one(runs, corpus, uninterrupted):
    pair = start_pair(runs, name="pair", data__folder=corpus)
    outputs = [process.communicate(timeout=300)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    assert "on 2 x cpu" in outputs[0]
    ours, theirs = (read_jsonl(run / "metrics.jsonl") for run in (runs / "pair", uninterrupted))
    assert [r["batch"] for r in ours] == [r["batch"] for r in theirs]
    np.testing.assert_allclose([r["loss"] for r in ours], [r["loss"] for r in theirs], atol=1e-5)
