"""One process: it is stopped by signals, at any time, and only one trainer works on a run."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from minigpt_jax.runtime.ctrl_c import SAME_REQUEST_SECONDS
from minigpt_jax.runtime.interrupt import SIGNALS
from tests.faults.processes import Start, catches, wait_for, wait_until
from tests.faults.workspace import HORIZON, Workspace
from tests.harness import (
    ENVIRONMENT,
    ROOT,
    command,
    final_arrays,
    history,
    train,
    write_chat,
    write_corpus,
)

# A run without an end and, but for the first, without saves and evaluations.
ENDLESS = {"horizon__steps": 10**6, "save__every": 1000, "eval__every": 10**6, "log__every": 1}


def wait_for_handlers(process: subprocess.Popen) -> None:
    wait_until(lambda: all(catches(process.pid, number) for number in SIGNALS))


def test_signals_are_handled_before_jax_is_loaded(workspace: Workspace, start: Start):
    process = start(workspace.settings("early", interrupted_exit_code=75))
    wait_for_handlers(process)
    assert "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text()
    # As make, uv and timeout pass a signal on: what comes right after the first changes nothing.
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert "stopped after step 0" in output and "Traceback" not in output
    assert not history(workspace.runs / "early")


@pytest.mark.campaign
def test_a_run_goes_on_without_its_console(workspace: Workspace):
    """Its log is on a full disk, stderr is closed, and the encoding lacks a character of its name.

    All of that says nothing about the disk of the run.
    """
    settings = workspace.settings("konsolé")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            ["bash", "-c", 'exec "$@" 2>&-', "bash", *command(**settings)],
            cwd=ROOT,
            env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
            stdout=full,
        )
    assert done.returncode == 0
    assert not workspace.differences(workspace.runs / "konsolé")


@pytest.mark.campaign
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_several_times_is_the_same_run(
    workspace: Workspace, start: Start, number: signal.Signals, tmp_path: Path
):
    """With its own folder of compiled programs, so that it is stopped in compilations too."""
    settings = workspace.settings("stopped", runs=tmp_path)
    draw = random.Random(number)
    for delay in (draw.uniform(0, 2), draw.uniform(2, 6), draw.uniform(0, 8)):
        process = start(settings, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"))
        wait_for_handlers(process)
        # Any moment will do: the test holds wherever the signal finds the process.
        time.sleep(delay)
        process.send_signal(number)
        output, _ = process.communicate()
        assert process.returncode == 0 and "Traceback" not in output, output
        assert "To continue, run" in output or f"all {HORIZON} steps are done" in output, output
    train(**settings)
    assert not workspace.differences(tmp_path / "stopped")


@pytest.mark.campaign
def test_an_evaluation_that_a_signal_stops_is_repeated(workspace: Workspace):
    """At the start, on the way and at the end of a run."""
    # Many batches: time to notice the signal.
    settings = workspace.settings("cut_short", eval__rows=10**6, interrupted_exit_code=75)
    for step in (0, 7, HORIZON):
        environment = {"MINIGPT_FAILPOINT": f"during_evaluation@{step}:term"}
        output = train(expect=75, environment=environment, **settings)
        assert f"after {step} steps: validation" not in output
        assert "finishing this step" in output
        endings = {
            0: "nothing to save",
            7: "everything is saved",
            HORIZON: "evaluation is missing",
        }
        assert endings[step] in output
    assert f"after {HORIZON} steps: validation" in train(**settings)
    assert not workspace.differences(workspace.runs / "cut_short")


# What docs/reliability.md promises; the compilation takes many times as long.
IMMEDIATELY = 1


@pytest.mark.campaign
def test_a_later_signal_ends_a_compilation_immediately(
    workspace: Workspace, start: Start, tmp_path: Path
):
    settings = workspace.settings("compiling", runs=tmp_path, model__layers=32, compute__unroll=32)
    process = start(settings, JAX_LOG_COMPILES="1", XLA_FLAGS="")
    wait_for(process, "Compiling jit(step)")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "finishing this step")
    time.sleep(SAME_REQUEST_SECONDS)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.wait()
    assert time.monotonic() - began < IMMEDIATELY
    assert process.returncode == 128 + signal.SIGTERM
    # It was compiling indeed.
    assert not history(tmp_path / "compiling")


@pytest.mark.campaign
def test_a_second_trainer_of_a_run_is_refused_and_the_first_continues(
    workspace: Workspace, start: Start
):
    settings = workspace.settings("twice", **ENDLESS)
    first = start(settings)
    wait_for(first, "step")
    output = train(expect=1, **settings)
    assert "another trainer works on this run" in output and str(first.pid) in output
    assert output.count("\n") == 1
    wait_for(first, "step")
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate()
    assert first.returncode == 0 and "everything is saved" in output
    steps = [step for step, *_ in history(workspace.runs / "twice")]
    assert steps == list(range(len(steps)))


@pytest.mark.campaign
def test_a_finetuning_that_is_killed_is_the_same_run(tmp_path: Path):
    """With masks, isolated documents and the weights of another run."""
    runs = tmp_path / "runs"
    chat = write_chat(tmp_path)
    train(runs, name="base", data__folder=write_corpus(tmp_path / "corpus"), horizon__steps=3)
    settings = {
        "runs": runs,
        "config": "configs/quickstart_finetune.py",
        "data__folder": chat,
        "init_from": runs / "base",
    }
    train(name="whole", **settings)
    for point in ("during_write@3", "before_flush@5", "before_commit@9"):
        environment = {"MINIGPT_FAILPOINT": f"{point}:kill"}
        train(expect=-signal.SIGKILL, environment=environment, name="killed", **settings)
    train(name="killed", **settings)
    assert history(runs / "killed") == history(runs / "whole")
    assert final_arrays(runs / "killed") == final_arrays(runs / "whole")
