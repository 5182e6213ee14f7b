"""Processes that are asked to stop, that meet on one run, or that lose their companion."""

import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import read_jsonl
from tests.faults.scenarios import HORIZON, SAVE_EVERY, Place
from tests.harness import (
    ENVIRONMENT,
    ROOT,
    command,
    final_arrays,
    history,
    start_pair,
    train,
    write_chat,
    write_corpus,
)

ENDLESS = {"horizon__steps": 10**6, "save__every": 1000, "eval__every": 10**6, "log__every": 1}
STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    """No process of a test that failed outlives it."""
    yield
    for process in STARTED:
        process.kill()
    STARTED.clear()


def start(settings: dict, **environment: str) -> subprocess.Popen:
    process = subprocess.Popen(
        command(**settings),
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    deadline = threading.Timer(120, process.kill)  # what hangs is read to its end
    deadline.daemon = True
    deadline.start()
    return process


def start_two(settings: dict, *environments: dict) -> list[subprocess.Popen]:
    pair = start_pair(environments=environments or ({}, {}), **settings)
    STARTED.extend(pair)
    return pair


def wait_for(process: subprocess.Popen, text: str) -> str:
    """Read what the process says until a line has `text` in it."""
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"it ended ({process.wait()}) and never said {text!r}: {said}")


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def catches(process: subprocess.Popen, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal, as the kernel sees it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def test_signals_are_heard_before_jax_is_loaded(place: Place):
    process = start(place.settings("early"))
    wait_until(lambda: catches(process, signal.SIGTERM) and catches(process, signal.SIGINT))
    assert "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped after step 0" in said and "Traceback" not in said, (
        said
    )
    assert not history(place.runs / "early")


@pytest.mark.campaign
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_again_and_again_is_the_same_run(
    place: Place, number: signal.Signals, tmp_path: Path
):
    """Its own folder of compiled programs, so that compilation is among the moments; evaluations that were cut short are made up for."""
    settings, draw = place.settings("stopped", runs=tmp_path), random.Random(number)
    for delay in (draw.uniform(0, 2), draw.uniform(2, 6), draw.uniform(0, 8)):
        process = start(settings, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"))
        wait_until(
            lambda process=process: (
                catches(process, signal.SIGTERM) and catches(process, signal.SIGINT)
            )
        )
        time.sleep(delay)
        process.send_signal(number)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "Traceback" not in said, said
        assert "everything is saved" in said or f"all {HORIZON} steps are done" in said, said
    train(**settings)
    assert not place.problems(tmp_path / "stopped")


@pytest.mark.campaign
def test_an_evaluation_that_a_signal_cuts_short_is_made_up_for(place: Place):
    """At the start, on the way and at the end of a run, and each time the process says that it was told to stop."""
    settings = place.settings(
        "cut_short", eval__rows=10**6
    )  # many batches: time to hear the signal
    for step in (0, 7, HORIZON):
        said = train(
            environment={"MINIGPT_FAILPOINT": f"during_evaluation@{step}:term"}, **settings
        )
        assert f"after {step} steps: validation" not in said and "finishing this step" in said
        assert ("everything is saved" if step < HORIZON else "steps are done") in said
    assert f"after {HORIZON} steps: validation" in train(**settings)
    assert not place.problems(place.runs / "cut_short")


@pytest.mark.campaign
def test_a_second_signal_ends_a_compilation_within_a_second(place: Place, tmp_path: Path):
    settings = place.settings("compiling", runs=tmp_path, model__layers=16, compute__unroll=16)
    process = start(settings, JAX_LOG_COMPILES="1", XLA_FLAGS="")
    wait_for(process, "Compiling jit(step)")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "finishing this step")
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.wait(60)
    assert time.monotonic() - began < 1
    assert process.returncode == 128 + signal.SIGTERM
    assert not history(tmp_path / "compiling")  # it was compiling indeed


def test_a_second_trainer_on_one_run_stops_and_the_first_does_not_notice(place: Place):
    settings = place.settings("twice", **ENDLESS)
    first = start(settings)
    wait_for(first, "step")
    said = train(expect=1, **settings)
    assert (
        "another trainer works on this run" in said
        and str(first.pid) in said
        and said.count("\n") == 1
    )
    wait_for(first, "step")
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 0 and "everything is saved" in said
    assert [step for step, *_ in history(place.runs / "twice")] == list(
        range(len(history(place.runs / "twice")))
    )


@pytest.mark.campaign
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_processes_dies_the_other_ends_and_the_run_goes_on(
    place: Place, victim: int
):
    """... with as many processes as are there: two once more, then one."""
    name = f"pair_{victim}"
    settings = place.settings(name, **ENDLESS | {"save__every": 5})
    pair = start_two(settings)
    wait_until(lambda: len(checkpoint_steps(place.runs / name)) > 1)
    pair[victim].kill()
    began = time.monotonic()
    other = pair[1 - victim]
    said, _ = other.communicate(timeout=60)
    assert other.returncode != 0 and time.monotonic() - began < 20, said
    reached = checkpoint_steps(place.runs / name)[-1]
    ends = place.settings(name, horizon__steps=reached + 3)
    outputs = [process.communicate(timeout=120)[0] for process in start_two(ends)]
    assert (
        f"resumes from step {reached}" in outputs[0]
        and f"all {reached + 3} steps are done" in outputs[0]
    ), outputs
    assert f"resumes from step {reached + 3}" in train(
        **place.settings(name, horizon__steps=reached + 4)
    )


def test_an_error_in_one_of_two_processes_ends_both(place: Place):
    settings = place.settings("half_full", **ENDLESS | {"save__every": 5})
    ok, full = start_two(settings, {}, {"MINIGPT_FAILPOINT": "before_save@10:enospc"})
    said, _ = full.communicate(timeout=120)
    assert full.returncode == 1 and "no space left" in said.splitlines()[-1], said
    began = time.monotonic()
    ok.communicate(timeout=60)
    assert ok.returncode != 0 and time.monotonic() - began < 20


@pytest.mark.campaign
@pytest.mark.parametrize("point", ["during_restore", "during_verify"])
def test_two_processes_agree_on_the_checkpoint_to_go_on_from(place: Place, point: str):
    """One of them cannot read the newest: both take the one before, and say so."""
    run = place.copy(place.two_checkpoints, f"disagree_{point}")
    pair = start_two(
        place.settings(f"disagree_{point}"), {}, {"MINIGPT_FAILPOINT": f"{point}@18:enospc"}
    )
    outputs = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    assert (
        all("checkpoint 18 is damaged" in said for said in outputs)
        and "resumes from step 15" in outputs[0]
    )
    assert [(step, batch) for step, _, batch in history(run)] == [
        (step, batch) for step, _, batch in history(place.expected)
    ]


@pytest.mark.campaign
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(
    place: Place, number: signal.Signals
):
    name = f"pair_{number.name}"
    pair = start_two(place.settings(name, **ENDLESS))
    wait_until(lambda: len(read_jsonl(place.runs / name / "metrics.jsonl")) > 3)
    pair[1].send_signal(number)
    outputs = [process.communicate(timeout=60)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    assert "everything is saved" in outputs[0]
    assert checkpoint_steps(place.runs / name)[-1] == len(history(place.runs / name))


@pytest.mark.campaign
def test_the_run_goes_on_with_other_devices_and_other_processes(place: Place):
    """1 device, 4 in two axes, 2 with layers cut in two, 2 processes, 1 again: the same rows, and losses within 1e-5."""

    def part(begins: int, ends: int, devices: int = 1, **mesh) -> None:
        flags = f"{ENVIRONMENT['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = {
            "XLA_FLAGS": flags,
            "MINIGPT_FAILPOINT": f"before_save@{ends + SAVE_EVERY}:kill",
        }  # `ends` is on disk by then
        said = train(
            expect=-signal.SIGKILL, environment=environment, **place.settings("elastic", **mesh)
        )
        assert f"resumes from step {begins}" in said or not begins

    part(0, 3)
    part(3, 6, 4, mesh__data=2, mesh__fsdp=2)
    part(6, 9, 2, mesh__tensor=2)
    point = {"MINIGPT_FAILPOINT": f"before_save@{12 + SAVE_EVERY}:kill"}
    pair = start_two(place.settings("elastic", mesh__fsdp=2, mesh__data=1), point, point)
    outputs = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [
        -signal.SIGKILL
    ] * 2 and "resumes from step 9" in outputs[0], outputs
    assert "resumes from step 12" in train(**place.settings("elastic"))
    ours, theirs = (
        read_jsonl(run / "metrics.jsonl") for run in (place.runs / "elastic", place.expected)
    )
    assert [(r["step"], r["batch"]) for r in ours] == [(r["step"], r["batch"]) for r in theirs]
    np.testing.assert_allclose([r["loss"] for r in ours], [r["loss"] for r in theirs], atol=1e-5)


@pytest.mark.campaign
def test_finetuning_survives_kills_too(tmp_path: Path):
    """The same promise for the other phase: masks, isolated documents, weights that come from another run."""
    runs, chat = tmp_path / "runs", write_chat(tmp_path)
    train(runs, name="base", data__folder=write_corpus(tmp_path / "corpus"), horizon__steps=3)
    settings = {
        "runs": runs,
        "config": "configs/quickstart_finetune.py",
        "data__folder": chat,
        "init_from": runs / "base",
    }
    train(name="whole", **settings)
    for point in ("during_write@3", "before_flush@5", "before_commit@9"):
        train(
            expect=-signal.SIGKILL,
            environment={"MINIGPT_FAILPOINT": f"{point}:kill"},
            name="killed",
            **settings,
        )
    train(name="killed", **settings)
    assert history(runs / "killed") == history(runs / "whole") and final_arrays(
        runs / "killed"
    ) == final_arrays(runs / "whole")
