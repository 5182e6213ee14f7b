"""Disks that become full, and checkpoints or data that are not what the run needs."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from minigpt_jax.errors import InputError, RunError
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.token_stream import MANIFEST, open_splits
from tests.faults.workspace import HORIZON, VOCAB, Workspace, resumed_step
from tests.harness import command, run_command, train, train_here

# Gives the run's folder a disk of its own, which becomes full; then enlarges it and repeats the
# command. $1 size of the disk, $2 folder of the run, $3 where to copy it, then the command.
RUN_ON_A_SMALL_DISK = """
run=$2
result=$3
mount -t tmpfs -o size=$1 tmpfs "$run" || exit 99
shift 3
"$@"
echo "exit code $?"
ls "$run/checkpoints" | tr '\\n' ' '
echo "are the checkpoints"
mount -o remount,size=500m tmpfs "$run"
"$@"
echo "exit code $?"
cp -r "$run" "$result"
"""


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    done = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this system does not let users mount a small disk")
def test_after_a_full_disk_the_same_command_continues_the_run(workspace: Workspace):
    run = workspace.runs / "full"
    run.mkdir()
    result = workspace.folder / "was_full"
    program = ["unshare", "-rm", "sh", "-c", RUN_ON_A_SMALL_DISK, "sh", "2m", str(run), str(result)]
    done = run_command([*program, *command(**workspace.settings("full", save__keep=100))])
    output = done.stdout
    assert "Traceback" not in output, output
    first, second, _ = output.split("exit code ", 2)
    code, *listing = second.splitlines()
    assert code == "1" and output.endswith("exit code 0\n"), output
    failure = first.splitlines()[-1]
    assert "failed: " in failure and "run the same command again" in failure
    # The checkpoints before are complete, and nothing half-written is left.
    checkpoints = listing[0].removesuffix("are the checkpoints").split()
    assert checkpoints and all(name.isdecimal() for name in checkpoints), output
    assert resumed_step(second) == max(map(int, checkpoints))
    assert not workspace.differences(result)


@pytest.mark.campaign
def test_a_save_that_fails_ends_the_run_and_the_same_command_continues_it(workspace: Workspace):
    """In Orbax's thread, before its rename; once on the way and once for the last save."""
    settings = workspace.settings("save_fails")
    folder = workspace.runs / "save_fails" / "checkpoints"

    def fail(point: str) -> str:
        environment = {"MINIGPT_FAILPOINT": f"{point}:enospc"}
        output = train(expect=1, environment=environment, **settings)
        last_line = output.splitlines()[-1]
        assert "no space left on device" in last_line and "could not be written" in last_line
        assert all(entry.name.isdecimal() for entry in folder.iterdir())
        return output

    fail("before_commit@9")
    assert resumed_step(fail(f"before_commit@{HORIZON}")) == 6
    assert resumed_step(train(**settings)) == 18
    assert not workspace.differences(workspace.runs / "save_fails")


@pytest.mark.campaign
def test_a_save_that_fails_before_the_write_ends_the_run(workspace: Workspace):
    """In the foreground."""
    settings = workspace.settings("save_fails_early")
    environment = {"MINIGPT_FAILPOINT": "before_save@9:enospc"}
    output = train(expect=1, environment=environment, **settings)
    assert "no space left on device" in output.splitlines()[-1]
    assert resumed_step(train(**settings)) == 6
    assert not workspace.differences(workspace.runs / "save_fails_early")


@pytest.mark.campaign
def test_a_run_starts_again_only_if_told_to_and_only_if_it_can(workspace: Workspace):
    run = workspace.copy(workspace.two_checkpoints, "fresh")
    # A fresh start that cannot begin deletes nothing.
    with pytest.raises(InputError, match="/nowhere"):
        train_here(**workspace.settings("fresh", fresh=True, init_from="/nowhere"))
    assert checkpoint_steps(run)[-2:] == [15, 18]
    # A run may even start with its own weights.
    output = train(**workspace.settings("fresh", fresh=True, init_from=run, horizon__steps=4))
    assert "starts with the weights of" in output
    # If all checkpoints are damaged, the run does not start again on its own.
    assert checkpoint_steps(run)
    for step in checkpoint_steps(run):
        (run / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"--config\.fresh=True"):
        train_here(**workspace.settings("fresh"))
    assert (run / "metrics.jsonl").read_bytes() == before
    train(**workspace.settings("fresh", fresh=True))
    assert not workspace.differences(run)


@pytest.mark.campaign
def test_changed_settings_and_data_are_refused_unless_accepted(workspace: Workspace):
    run = workspace.copy(workspace.two_checkpoints, "changed")
    numbers = Path(shutil.copytree(workspace.numbers, workspace.folder / "changed_numbers"))
    change_last_token(numbers)
    # With a manifest for the new content: good data, but not the data of this run.
    update_manifest(numbers)
    changes = {"optimizer__b2": 0.9, "data__folder": numbers}
    settings = workspace.settings("changed") | changes
    output = train(expect=2, **settings)
    assert "optimizer.b2: 0.95 -> 0.9" in output and "accept_changes" in output
    assert "does not hold the training tokens" in output
    assert output.count("\n") == 1
    assert checkpoint_steps(run)[-1] == 18
    # Entries that are no checkpoints do not disturb, even where one will be saved.
    folder = run / "checkpoints"
    for name in (str(HORIZON), "99", "9.tmp"):
        (folder / name).mkdir()
    for name in ("98", "abc"):
        (folder / name).write_text("")
    output = train(**settings, accept_changes=True)
    assert resumed_step(output) == 18 and "warning" not in output
    assert checkpoint_steps(run)[-1] == HORIZON
    others = {entry.name for entry in folder.iterdir() if not entry.name.isdecimal()}
    assert others == {"9.tmp", "abc"}


def change_last_token(numbers: Path) -> None:
    shard = numbers / "train_000001.npy"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)


def update_manifest(numbers: Path) -> None:
    manifest = json.loads((numbers / MANIFEST).read_text())
    content = (numbers / "train_000001.npy").read_bytes()
    manifest["splits"]["train"]["shards"][1]["sha256"] = hashlib.sha256(content).hexdigest()
    (numbers / MANIFEST).write_text(json.dumps(manifest))
    open_splits(str(numbers), VOCAB, 32, packed=False)


@pytest.mark.campaign
def test_a_deterministic_run_is_the_same_run_on_a_cpu(workspace: Workspace):
    train(**workspace.settings("deterministic", deterministic=True))
    assert not workspace.differences(workspace.runs / "deterministic")
