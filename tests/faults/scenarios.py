"""Faults that come in numbers: kills, damaged checkpoints, resuming anywhere. Each happens to the real train.py.

A scenario makes its own run, hurts it, lets the same command go on to the end, and compares with the run that nothing
happened to: losses bit for bit, batches, and the checksum of every final array. The same functions serve the tests (a
few of each) and the campaign (hundreds).
"""

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.tokenizer import load_tokenizer
from tests.harness import ENVIRONMENT, ROOT, command, final_arrays, history, run_train

HORIZON, SAVE_EVERY = 20, 3
# 512 ids are enough to learn something from, and a checkpoint of them is written in no time.
SMALL = {
    "model__vocab_size": 512,
    "model__embed": 16,
    "eval__samples": 0,
    "horizon__steps": HORIZON,
    "save__every": SAVE_EVERY,
    "eval__every": 7,
}
POINTS = (
    "during_restore",
    "before_save",
    "during_write",
    "before_commit",
    "during_delete",
    "after_step",
    "before_flush",
    "before_replace",
)


@dataclass
class Outcome:
    """What became of a run that a fault happened to."""

    kind: str
    case: str  # enough to make it happen again
    problems: list[str] = field(default_factory=list)
    silent: bool = False  # it went on from other values than those saved, and said nothing
    redone: int = 0  # most steps that one resumption had to do again
    remark: str = ""
    tried: int = 1

    def line(self) -> str:
        """One line for people."""
        verdict = "SILENT" if self.silent else "FAILED" if self.problems else "survived"
        return f"{self.kind:<11} {self.case:<58} {verdict:<9} {'; '.join(self.problems) or self.remark}"


def write_numbers(folder: Path) -> Path:
    """Shards of ids below 512, each number tied to the one before, several files a split."""
    folder.mkdir(parents=True)
    draw, splits = np.random.default_rng(0), {}
    for split, count in (("train", 9000), ("val", 900)):
        writer = ShardWriter(folder, split, shard_tokens=4000)
        writer.append((np.cumsum(draw.integers(1, 4, count)) % 512).astype(np.uint16))
        splits[split] = (writer.close(), 1)
    write_manifest(
        folder,
        splits,
        tokenizer=load_tokenizer().hash,
        vocab_size=512,
        context=None,
        source="numbers",
    )
    return folder


class Place:
    """A folder where scenarios happen, with the run that nothing happens to and two that others are copied from."""

    def __init__(self, folder: Path):
        self.folder, self.runs = folder, folder / "runs"
        self.numbers = write_numbers(folder / "numbers")
        self.expected = self._finished("expected")

    def settings(self, name: str, **more) -> dict:
        """Arguments of harness.command for a run of this place."""
        return {"runs": self.runs, "name": name, "data__folder": self.numbers} | SMALL | more

    def _finished(self, name: str, **more) -> Path:
        done = run_train(**self.settings(name, **more))
        assert done.returncode == 0, done.stdout
        return self.runs / name

    @cached_property
    def seconds(self) -> float:
        """Wall time of an uninterrupted run, programs compiled."""
        began = time.monotonic()
        self._finished("timed")
        return time.monotonic() - began

    @cached_property
    def two_checkpoints(self) -> Path:
        """A run that was killed before its last save, with two good checkpoints, of steps 15 and 18."""
        done = run_train(
            **self.settings("two_checkpoints"),
            environment={"MINIGPT_FAILPOINT": f"before_save@{HORIZON}:kill"},
        )
        assert done.returncode == -signal.SIGKILL and checkpoint_steps(
            self.runs / "two_checkpoints"
        )[-2:] == [15, 18], done.stdout
        return self.runs / "two_checkpoints"

    @cached_property
    def every_checkpoint(self) -> Path:
        """A finished run that kept the checkpoint of every step."""
        return self._finished("every_checkpoint", save__every=1, save__keep=HORIZON)

    def copy(self, run: Path, name: str) -> Path:
        """A run of its own to hurt."""
        return Path(shutil.copytree(run, self.runs / name))

    def problems(self, run: Path) -> list[str]:
        """How a finished run differs from the one that nothing happened to, and what it left lying about."""
        found = []
        if history(run) != history(self.expected):
            found.append("other losses or batches")
        if [e["step"] for e in read_jsonl(run / "evaluations.jsonl")] != [
            e["step"] for e in read_jsonl(self.expected / "evaluations.jsonl")
        ]:
            found.append("other evaluations")
        if final_arrays(run) != final_arrays(self.expected):
            found.append("other final arrays")
        strays = [p.name for p in (run / "checkpoints").iterdir() if not p.name.isdecimal()] + [
            p.name for p in run.glob("*.tmp")
        ]
        if strays:
            found.append(f"left behind: {', '.join(strays)}")
        return found


def resumed_at(said: str) -> int:
    """The step that a run said it goes on from; 0 for fresh weights."""
    match = re.search(r"goes on from step (\d+)", said)
    return int(match[1]) if match else 0


@dataclass(frozen=True)
class Moment:
    """When to kill: at a named point, or some seconds after the start or after the first recorded step."""

    point: str = ""
    seconds: float = 0.0
    stepping: bool = False

    def __str__(self) -> str:
        return self.point or f"{'first step' if self.stepping else 'start'} + {self.seconds:.2f} s"


def draw_kills(place: Place, seed: int, kills: int) -> list[Moment]:
    """Moments to kill a run at: half of them named points, a quarter anywhere, a quarter while it steps and saves."""
    draw, plan = random.Random(seed), []
    for number in range(kills):
        if (seed + number) % 2:
            stepping = draw.random() < 0.5
            plan.append(
                Moment(
                    seconds=draw.uniform(0.1, 1.0 if stepping else 1.5 * place.seconds),
                    stepping=stepping,
                )
            )
            continue
        point = draw.choice([p for p in POINTS if number or p != "during_restore"])
        if point in ("before_save", "during_write", "before_commit"):
            point += f"@{draw.randrange(SAVE_EVERY, HORIZON, SAVE_EVERY)}"
        elif point in ("after_step", "before_flush"):
            point += f"@{draw.randrange(HORIZON)}"
        plan.append(Moment(point))
    return plan


def kill(place: Place, name: str, plan: Sequence[Moment]) -> Outcome:
    """Kill a run at each moment of `plan`, then let it end; `tried` counts kills that came before it had ended by itself."""
    settings, run, recorded = place.settings(name), place.runs / name, 0
    outcome = Outcome("kill", f"{name}: {', '.join(map(str, plan))}", tried=0)
    for moment in plan:
        said, code = _kill_once(settings, moment, run, log=place.folder / f"{name}.log")
        outcome.tried += code == -signal.SIGKILL
        outcome.problems += _unexpected(said, code, -signal.SIGKILL) + _lost_too_much(
            outcome, recorded, said
        )
        recorded = len(read_jsonl(run / "metrics.jsonl"))
    done = run_train(**settings)
    outcome.problems += _unexpected(done.stdout, done.returncode) + _lost_too_much(
        outcome, recorded, done.stdout
    )
    outcome.problems += place.problems(run) if done.returncode == 0 else []
    outcome.remark = f"{outcome.tried} kills, at most {outcome.redone} steps redone"
    return outcome


def _kill_once(settings: dict, moment: Moment, run: Path, log: Path) -> tuple[str, int]:
    """Start and kill; what was said, and the exit code."""
    point = {"MINIGPT_FAILPOINT": f"{moment.point}:kill"} if moment.point else {}
    before, steps = len(read_jsonl(run / "metrics.jsonl")), run / "metrics.jsonl"
    # Into a file: a pipe that nobody reads could stop the process before the kill does.
    with log.open("w+") as file:
        process = subprocess.Popen(
            command(**settings),
            cwd=ROOT,
            env=ENVIRONMENT | point,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        if moment.point:
            process.wait(300)  # raises where it hangs
        else:
            while (
                moment.stepping
                and process.poll() is None
                and (not steps.exists() or len(read_jsonl(steps)) in (0, before))
            ):
                time.sleep(0.01)
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment.seconds)
            process.kill()
            process.wait()
        file.seek(0)
        return file.read(), process.returncode


def _unexpected(said: str, code: int, *allowed: int) -> list[str]:
    """An exit code that is neither 0 nor allowed, or a traceback."""
    wrong = [f"exit {code}: {said.splitlines()[-1:]}"] * (code not in (0, *allowed))
    return wrong + ["a traceback"] * ("Traceback" in said)


def _lost_too_much(outcome: Outcome, recorded: int, said: str) -> list[str]:
    """One interval of work is lost at most."""
    if not re.search(
        "goes on from|begins with", said
    ):  # killed before it could say so, or done already
        return []
    begins = resumed_at(said)
    outcome.redone = max(outcome.redone, recorded - begins)
    return (
        [f"{recorded} steps were done, it went on from {begins}"]
        if recorded - begins > SAVE_EVERY
        else []
    )


def damage_checkpoint(place: Place, seed: int) -> Outcome:
    """Flip a bit in a file of the newest checkpoint, cut the file or delete it; then let the run go on to its end."""
    draw = random.Random(seed)
    run = place.copy(place.two_checkpoints, f"damage_{seed}")
    newest = run / "checkpoints" / "18"
    victim = draw.choice(sorted(p for p in newest.rglob("*") if p.is_file()))
    size, how = victim.stat().st_size, draw.choice(("flip", "flip", "truncate", "delete"))
    if how == "flip" and size:
        bit = draw.randrange(size * 8)
        content = bytearray(victim.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        victim.write_bytes(content)
        how = f"flip bit {bit}"
    elif how == "truncate" and size:
        length = draw.randrange(size)
        victim.write_bytes(victim.read_bytes()[:length])
        how = f"cut to {length} of {size}"
    else:
        victim.unlink()
        how = "delete"
    outcome = Outcome("corruption", f"seed {seed}: {victim.relative_to(newest)} {how}")
    done = run_train(**place.settings(run.name))
    warned, begins = "checkpoint 18 is damaged" in done.stdout, resumed_at(done.stdout)
    outcome.problems += _unexpected(done.stdout, done.returncode)
    if not done.returncode:
        outcome.problems += place.problems(run)
        outcome.silent = not warned and (begins != 18 or bool(outcome.problems))
    if begins not in (15, 18):
        outcome.problems.append(f"went on from step {begins}")
    outcome.remark = "found, the one before used" if warned else "no harm"
    if not outcome.problems:
        shutil.rmtree(run)
    return outcome


def resume_anywhere(place: Place, step: int) -> Outcome:
    """Go on from the checkpoint of `step` as if the process had been killed right after it."""
    run = place.copy(place.every_checkpoint, f"resume_{step}")
    for later in range(step + 1, HORIZON + 1):
        shutil.rmtree(run / "checkpoints" / str(later))
    (run / "report.html").unlink()
    outcome = Outcome("resume", f"at step {step}")
    done = run_train(**place.settings(run.name))
    outcome.problems += _unexpected(done.stdout, done.returncode)
    if resumed_at(done.stdout) != step:
        outcome.problems.append(f"went on from {resumed_at(done.stdout)}")
    if not done.returncode:
        outcome.problems += place.problems(run)
    shutil.rmtree(run)
    return outcome
