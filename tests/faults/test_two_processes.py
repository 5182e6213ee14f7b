"""Two processes of one run: they stop, fail and choose a checkpoint together."""

import signal
from collections.abc import Callable

import numpy as np
import pytest

from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import read_jsonl
from tests.faults.processes import StartTwo, wait_until
from tests.faults.workspace import RECIPES, SAVE_EVERY, Workspace, fingerprint, resumed_step
from tests.harness import ENVIRONMENT, history, train
from tests.runtime.launchers import kubernetes, mpich, open_mpi, slurm

# What docs/reliability.md promises. The heartbeat is 10 s; JAX's own would be 100 s.
NOTICED_WITHIN = 20
ENDLESS = {"horizon__steps": 10**6, "save__every": 5, "eval__every": 10**6, "log__every": 1}


@pytest.mark.campaign
def test_an_error_in_one_of_two_processes_ends_both(workspace: Workspace, start_two: StartTwo):
    settings = workspace.settings("half_full", **ENDLESS)
    good, full = start_two(settings, {}, {"MINIGPT_FAILPOINT": "before_save@10:enospc"})
    output, _ = full.communicate()
    assert full.returncode == 1 and "No space left" in output.splitlines()[-1], output
    # It would run forever.
    good.communicate(timeout=NOTICED_WITHIN)
    assert good.returncode != 0


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("slurm", lambda index: slurm(index, 1, nodes=2)),
        ("slurm_tasks", lambda index: slurm(index, 2, gpus=2)),
        ("open_mpi", lambda index: open_mpi(index, 2, 2)),
        ("mpich", lambda index: mpich(index, 2, 1)),
        ("kubernetes", lambda index: kubernetes(index) | {"JAX_NUM_PROCESSES": "2"}),
    ],
)
def test_two_processes_of_a_launcher_train_together_and_a_stop_is_told_by_their_exit_code(
    workspace: Workspace, start_two: StartTwo, name: str, launcher: Callable[[int], dict]
):
    """Both are stopped after step 5, and end with the exit code for it; started again, with 0."""
    settings = workspace.settings(f"launched_{name}", interrupted_exit_code=75)
    stop = {"MINIGPT_FAILPOINT": "after_step@4:term"}
    for environments, code in ((({}, stop), 75), (({}, {}), 0)):
        pair = start_two(settings, *environments, launcher=launcher)
        outputs = [process.communicate()[0] for process in pair]
        assert [process.returncode for process in pair] == [code, code], "\n".join(outputs)
    assert steps_and_batches(workspace.runs / f"launched_{name}") == steps_and_batches(
        workspace.expected
    )


@pytest.mark.campaign
@pytest.mark.parametrize("victim", [0, 1])
def test_if_one_of_two_processes_is_killed_the_other_ends_and_the_run_can_continue(
    workspace: Workspace, start_two: StartTwo, victim: int
):
    """It continues with two processes, then with one."""
    name = f"pair_{victim}"
    run = workspace.runs / name
    pair = start_two(workspace.settings(name, **ENDLESS))
    wait_until(lambda: len(checkpoint_steps(run)) > 1)
    pair[victim].kill()
    other = pair[1 - victim]
    output, _ = other.communicate(timeout=NOTICED_WITHIN)
    assert other.returncode != 0, output
    reached = checkpoint_steps(run)[-1]
    pair = start_two(workspace.settings(name, horizon__steps=reached + 3))
    outputs = [process.communicate()[0] for process in pair]
    assert resumed_step(outputs[0]) == reached, outputs
    assert f"all {reached + 3} steps are done" in outputs[0], outputs
    output = train(**workspace.settings(name, horizon__steps=reached + 4))
    assert resumed_step(output) == reached + 3


@pytest.mark.campaign
@pytest.mark.parametrize("point", ["during_restore", "during_verify"])
def test_two_processes_agree_on_the_checkpoint_to_resume_from(
    workspace: Workspace, start_two: StartTwo, point: str
):
    """If one of them finds the newest damaged, both take the one before and report it."""
    run = workspace.copy(workspace.two_checkpoints, f"disagree_{point}")
    pair = start_two(workspace.settings(run.name), {}, {"MINIGPT_FAILPOINT": f"{point}@18:damage"})
    outputs = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    assert all("checkpoint 18 is damaged" in output for output in outputs)
    assert resumed_step(outputs[0]) == 15
    assert steps_and_batches(run) == steps_and_batches(workspace.expected)


@pytest.mark.campaign
def test_if_one_of_two_processes_cannot_read_a_checkpoint_both_end_and_it_stays(
    workspace: Workspace, start_two: StartTwo
):
    run = workspace.copy(workspace.two_checkpoints, "one_cannot_read")
    before = fingerprint(run / "checkpoints")
    stale = {"MINIGPT_FAILPOINT": "during_restore@18:estale"}
    pair = start_two(workspace.settings(run.name), {}, stale)
    outputs = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [1, 1], "\n".join(outputs)
    assert "another process cannot read checkpoint 18" in outputs[0]
    assert "checkpoint 18 cannot be read ([Errno 116] Stale file handle" in outputs[1]
    assert fingerprint(run / "checkpoints") == before


def steps_and_batches(run) -> list[tuple]:
    return [(step, batch) for step, _, batch in history(run)]


@pytest.mark.campaign
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(
    workspace: Workspace, start_two: StartTwo, number: signal.Signals
):
    run = workspace.runs / f"pair_{number.name}"
    pair = start_two(workspace.settings(run.name, **ENDLESS))
    wait_until(lambda: len(read_jsonl(run / "metrics.jsonl")) > 3)
    pair[1].send_signal(number)
    outputs = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    assert "everything is saved" in outputs[0]
    assert checkpoint_steps(run)[-1] == len(history(run))


@pytest.mark.campaign
@pytest.mark.parametrize("workspace", RECIPES, indirect=True)
def test_a_run_continues_with_other_devices_and_another_number_of_processes(
    workspace: Workspace, start_two: StartTwo
):
    """1 device; 4 on two axes; 2 by tensor; 2 processes; 1 again: same rows, losses within 1e-5."""

    def kill_after(saved: int) -> dict:
        """The environment that kills the process once `saved` is on disk."""
        return {"MINIGPT_FAILPOINT": f"before_save@{saved + SAVE_EVERY}:kill"}

    def train_until(saved: int, *, devices: int = 1, **mesh) -> int:
        """The step from which the run resumed."""
        flags = f"{ENVIRONMENT['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment = kill_after(saved) | {"XLA_FLAGS": flags}
        settings = workspace.settings("elastic", **mesh)
        return resumed_step(train(expect=-signal.SIGKILL, environment=environment, **settings))

    assert train_until(3) == 0
    assert train_until(6, devices=4, mesh__data=2, mesh__fsdp=2) == 3
    assert train_until(9, devices=2, mesh__tensor=2) == 6
    settings = workspace.settings("elastic", mesh__fsdp=2, mesh__data=1)
    pair = start_two(settings, kill_after(12), kill_after(12))
    outputs = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [-signal.SIGKILL] * 2, outputs
    assert resumed_step(outputs[0]) == 9
    assert resumed_step(train(**workspace.settings("elastic"))) == 12
    run = workspace.runs / "elastic"
    assert steps_and_batches(run) == steps_and_batches(workspace.expected)
    losses, expected = (
        [record["loss"] for record in read_jsonl(folder / "metrics.jsonl")]
        for folder in (run, workspace.expected)
    )
    np.testing.assert_allclose(losses, expected, atol=1e-5)
