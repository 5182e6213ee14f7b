"""Disks that fill up, and checkpoints that no longer are what the run needs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt_jax.runs import checkpoint_steps
from tests.faults.scenarios import HORIZON, Place
from tests.harness import ENVIRONMENT, ROOT, command, train

# A disk of a few MB for the run's folder alone: full after some checkpoints, enlarged, and the same command again.
SMALL_DISK = """
mount -t tmpfs -o size=$1 tmpfs "$2" || exit 99
shift; run=$1; result=$2; shift 2
"$@"; echo "first: $?"
ls "$run/checkpoints"
mount -o remount,size=500m tmpfs "$run"
"$@"; echo "second: $?"
cp -r "$run" "$result"
"""


def may_mount() -> bool:
    return (
        subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
        if shutil.which("unshare")
        else False
    )


@pytest.mark.skipif(not may_mount(), reason="this system lets nobody mount a small disk")
def test_a_full_disk_is_reported_and_the_same_command_goes_on(place: Place):
    run, result = place.runs / "full", place.folder / "was_full"
    run.mkdir()
    arguments = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", "2m", str(run), str(result)]
    done = subprocess.run(
        [*arguments, *command(**place.settings("full", save__keep=100))],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout
    first, _, second = said.partition("first: ")
    assert second.startswith("1\n") and "second: 0" in second and "Traceback" not in said, said
    assert (
        "failed: " in first.splitlines()[-1]
        and "run the same command again" in first.splitlines()[-1]
    )
    listed = second.splitlines()[
        1 : second.splitlines().index(
            next(x for x in second.splitlines() if x.startswith(str(run)))
        )
    ]
    assert listed and all(name.isdecimal() for name in listed), (
        said
    )  # older ones intact, nothing half-written
    assert f"resumes from step {max(map(int, listed))}" in second
    assert not place.problems(result)


@pytest.mark.parametrize(
    "point", [pytest.param("before_save@9", marks=pytest.mark.campaign), "before_commit@9"]
)
def test_a_save_that_fails_ends_the_run_with_what_stands(place: Place, point: str):
    """In the foreground and in Orbax's thread; the exit code tells, and nothing half-written stays."""
    settings = place.settings(f"enospc_{point[:-2]}")
    said = train(expect=1, environment={"MINIGPT_FAILPOINT": f"{point}:enospc"}, **settings)
    assert "no space left on device" in said.splitlines()[-1]
    assert not [
        p
        for p in (place.runs / settings["name"] / "checkpoints").iterdir()
        if not p.name.isdecimal()
    ]
    assert "resumes from step 6" in train(**settings)
    assert not place.problems(place.runs / settings["name"])


def test_a_last_save_that_fails_is_not_called_a_success(place: Place):
    assert "could not be written" in train(
        expect=1,
        environment={"MINIGPT_FAILPOINT": f"before_commit@{HORIZON}:enospc"},
        **place.settings("last_save"),
    )


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_over_by_itself(place: Place):
    run = place.copy(place.two_checkpoints, "all_bad")
    for step in checkpoint_steps(run):
        (run / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")
    before = (run / "metrics.jsonl").read_bytes()
    said = train(expect=1, **place.settings("all_bad"))
    assert said.splitlines()[-1].startswith("failed:") and "--config.fresh=True" in said
    assert (run / "metrics.jsonl").read_bytes() == before
    train(**place.settings("all_bad", fresh=True))
    assert not place.problems(run)


def test_stray_entries_are_ignored(place: Place):
    run = place.copy(place.two_checkpoints, "strays")
    (run / "checkpoints" / str(HORIZON)).mkdir()  # where a checkpoint will be saved
    (run / "checkpoints" / "99").mkdir()
    (run / "checkpoints" / "9.tmp").mkdir()
    (run / "checkpoints" / "98").write_text("")
    (run / "checkpoints" / "abc").write_text("")
    said = train(**place.settings("strays"))
    assert "resumes from step 18" in said and "warning" not in said
    assert checkpoint_steps(run)[-1] == HORIZON and place.problems(run) == [
        "left behind: 9.tmp, abc"
    ]


def test_another_dtype_is_refused_by_name(place: Place):
    """A checkpoint that says of itself, with a valid seal, that its weights are bfloat16."""
    run = place.copy(place.two_checkpoints, "dtype")
    program = (
        "import json, sys; from pathlib import Path; from minigpt_jax.checkpoint import sealed\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    meta = json.loads(path.read_text()); del meta['seal']; meta['arrays']['params/wte']['dtype'] = 'bfloat16'\n"
        "    path.write_text(json.dumps(sealed(meta)))"
    )
    metas = [
        str(run / "checkpoints" / str(step) / "meta" / "metadata") for step in checkpoint_steps(run)
    ]
    subprocess.run(
        [sys.executable, "-c", program, *metas], cwd=ROOT, env=ENVIRONMENT, check=True, timeout=60
    )
    said = train(expect=2, **place.settings("dtype"))
    assert "params/wte: bfloat16[512, 16] -> float32[512, 16]" in said and said.count("\n") == 1


def test_a_changed_setting_is_refused_until_it_is_insisted_on(place: Place):
    place.copy(place.two_checkpoints, "insisted")
    said = train(expect=2, **place.settings("insisted", optimizer__b2=0.9))
    assert (
        "optimizer.b2: 0.95 -> 0.9" in said and "accept_changes" in said and said.count("\n") == 1
    )
    assert "resumes from step 18" in train(
        **place.settings("insisted", optimizer__b2=0.9, accept_changes=True)
    )


def test_a_fresh_start_that_cannot_begin_deletes_nothing(place: Place):
    run = place.copy(place.two_checkpoints, "fresh")
    train(expect=2, **place.settings("fresh", fresh=True, init_from="/nowhere"))
    assert checkpoint_steps(run)[-2:] == [15, 18]
    assert "starts with the weights of" in train(
        **place.settings("fresh", fresh=True, init_from=run)
    )  # even its own


@pytest.mark.campaign
def test_deterministic_is_the_same_run_on_a_cpu(place: Place):
    train(**place.settings("deterministic", deterministic=True))
    assert not place.problems(place.runs / "deterministic")


def test_a_shard_that_changed_since_the_run_began_is_refused(place: Place):
    run = place.copy(place.two_checkpoints, "changed")
    numbers = Path(shutil.copytree(place.numbers, place.folder / "changed_numbers"))
    shard = numbers / "train_000001.npy"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    said = train(expect=2, **place.settings("changed") | {"data__folder": numbers})
    assert str(shard) in said and "sha256" in said and said.count("\n") == 1
    # And where somebody vouches for the new content, it is not the text that the run began with.
    manifest = json.loads((numbers / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][1]["sha256"] = subprocess.run(
        ["sha256sum", str(shard)], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    (numbers / "manifest.json").write_text(json.dumps(manifest))
    said = train(expect=2, **place.settings("changed") | {"data__folder": numbers})
    assert "does not hold the training tokens that the run began with" in said
    assert checkpoint_steps(run)[-1] == 18
