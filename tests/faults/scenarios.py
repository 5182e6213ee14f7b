"""Faults that the campaign repeats by the hundred: kills, damaged checkpoints, resuming anywhere.

Each happens to the real train.py. A scenario makes its own run, interrupts or damages it, lets the
same command continue to the end, and compares it with the run that nothing happened to: losses bit
for bit, batches, and the checksum of every final array. The tests use the same functions.
"""

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from minigpt_jax.runtime.files import read_jsonl
from tests.faults.workspace import HORIZON, SAVE_EVERY, Workspace, resumed_step
from tests.harness import ENVIRONMENT, ROOT, command, run_train

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
# A run that takes longer hangs.
RUN_TIMEOUT = 300


@dataclass
class Outcome:
    """What happened to a run after a fault."""

    kind: str
    # Enough to repeat it.
    case: str
    problems: list[str] = field(default_factory=list)
    # It continued from other values than those saved, without a warning.
    silent: bool = False
    # The most steps that one resumption had to repeat.
    repeated: int = 0
    remark: str = ""
    tried: int = 1

    def line(self) -> str:
        """One line for people."""
        verdict = "survived"
        if self.problems:
            verdict = "FAILED"
        if self.silent:
            verdict = "SILENT"
        remark = "; ".join(self.problems) or self.remark
        return f"{self.kind:<11} {self.case:<58} {verdict:<9} {remark}"


@dataclass(frozen=True)
class Moment:
    """When to interrupt: at a named point, or `seconds` after the start or the first new step."""

    point: str = ""
    seconds: float = 0.0
    after_first_step: bool = False
    # At a named point: "kill", or "term" for a signal that lets the run save and end.
    action: str = "kill"

    def __str__(self) -> str:
        if self.point:
            return f"{self.point}:{self.action}"
        return f"{'first step' if self.after_first_step else 'start'} + {self.seconds:.2f} s"


def draw_kills(workspace: Workspace, seed: int, kills: int) -> list[Moment]:
    """Moments to kill a run at.

    Half are named points; a quarter are at any time, a quarter while the run steps and saves.
    """
    draw = random.Random(seed)
    moments = []
    for number in range(kills):
        if (seed + number) % 2:
            after_first_step = draw.random() < 0.5
            longest = 1.0 if after_first_step else 1.5 * workspace.seconds
            moments.append(
                Moment(seconds=draw.uniform(0.1, longest), after_first_step=after_first_step)
            )
            continue
        # The first start of a run restores nothing.
        point = draw.choice([p for p in POINTS if number or p != "during_restore"])
        if point in ("before_save", "during_write", "before_commit"):
            point += f"@{draw.randrange(SAVE_EVERY, HORIZON, SAVE_EVERY)}"
        elif point in ("after_step", "before_flush"):
            point += f"@{draw.randrange(HORIZON)}"
        moments.append(Moment(point))
    return moments


def interrupt(workspace: Workspace, name: str, moments: Sequence[Moment]) -> Outcome:
    """Interrupt a run at each of the moments, then let it finish.

    `tried` counts the interruptions that came before the run had finished.
    """
    settings = workspace.settings(name)
    run = workspace.runs / name
    log = workspace.folder / f"{name}.log"
    case = f"{name} ({workspace.recipe}): {', '.join(map(str, moments))}"
    outcome = Outcome("kill", case, tried=0)
    recorded = 0
    for moment in moments:
        output, code = _run_until(moment, settings, run, log)
        stopped = moment.action == "term" and "To continue, run" in output
        outcome.tried += code == -signal.SIGKILL or stopped
        outcome.problems += _bad_ending(output, code, -signal.SIGKILL)
        outcome.problems += _too_many_repeated(outcome, recorded, output)
        recorded = len(read_jsonl(run / "metrics.jsonl"))
    done = run_train(**settings)
    outcome.problems += _bad_ending(done.stdout, done.returncode)
    outcome.problems += _too_many_repeated(outcome, recorded, done.stdout)
    if done.returncode == 0:
        outcome.problems += workspace.differences(run)
    outcome.remark = f"{outcome.tried} interruptions, at most {outcome.repeated} steps repeated"
    return outcome


def _run_until(moment: Moment, settings: dict, run: Path, log: Path) -> tuple[str, int]:
    """Start the run and interrupt it; returns its output and exit code."""
    environment = dict(ENVIRONMENT)
    if moment.point:
        environment["MINIGPT_FAILPOINT"] = f"{moment.point}:{moment.action}"
    records = run / "metrics.jsonl"
    recorded_before = len(read_jsonl(records))
    # The output goes to a file: a full pipe could stop the process before the kill does.
    with log.open("w+") as file:
        process = subprocess.Popen(
            command(**settings), cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        if moment.point:
            # Raises if it hangs.
            process.wait(RUN_TIMEOUT)
        else:
            if moment.after_first_step:
                _wait_for_step(process, records, recorded_before)
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment.seconds)
            process.kill()
            process.wait()
        file.seek(0)
        return file.read(), process.returncode


def _wait_for_step(process: subprocess.Popen, records: Path, recorded_before: int) -> None:
    while process.poll() is None and len(read_jsonl(records)) in (0, recorded_before):
        time.sleep(0.01)


def _bad_ending(output: str, code: int, *allowed: int) -> Iterator[str]:
    """An exit code that is neither 0 nor allowed, or a traceback."""
    if code not in (0, *allowed):
        yield f"exit {code}: {output.splitlines()[-1:]}"
    if "Traceback" in output:
        yield "a traceback"


def _too_many_repeated(outcome: Outcome, recorded: int, output: str) -> Iterator[str]:
    """At most one interval between two saves may be lost."""
    # The run may have been killed before it printed where it starts, or be finished.
    if not re.search("resumes from|starts with", output):
        return
    start = resumed_step(output)
    outcome.repeated = max(outcome.repeated, recorded - start)
    if recorded - start > SAVE_EVERY:
        yield f"{recorded} steps were on record, it resumed from {start}"


def damage_file(folder: Path, draw: random.Random) -> str:
    """Flip a bit in a random file of `folder`, cut the file or delete it; returns what was done."""
    victim = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    name = victim.relative_to(folder)
    size = victim.stat().st_size
    action = draw.choice(("flip", "flip", "truncate", "delete"))
    if action == "flip" and size:
        bit = draw.randrange(size * 8)
        content = bytearray(victim.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        victim.write_bytes(content)
        return f"{name} flip bit {bit}"
    if action == "truncate" and size:
        length = draw.randrange(size)
        victim.write_bytes(victim.read_bytes()[:length])
        return f"{name} cut to {length} of {size}"
    victim.unlink()
    return f"{name} delete"


def damage_checkpoint(workspace: Workspace, seed: int) -> Outcome:
    """Damage a file of the newest checkpoint, then let the run continue to its end."""
    run = workspace.copy(workspace.two_checkpoints, f"damage_{seed}")
    damage = damage_file(run / "checkpoints" / "18", random.Random(seed))
    outcome = Outcome("corruption", f"seed {seed} ({workspace.recipe}): {damage}")
    done = run_train(**workspace.settings(run.name))
    warned = "checkpoint 18 is damaged" in done.stdout
    start = resumed_step(done.stdout)
    outcome.problems += _bad_ending(done.stdout, done.returncode)
    if done.returncode == 0:
        outcome.problems += workspace.differences(run)
        outcome.silent = not warned and (start != 18 or bool(outcome.problems))
    if start not in (15, 18):
        outcome.problems.append(f"resumed from step {start}")
    outcome.remark = "found, the one before used" if warned else "no harm"
    if not outcome.problems:
        shutil.rmtree(run)
    return outcome


def resume_anywhere(workspace: Workspace, step: int) -> Outcome:
    """Resume from the checkpoint of `step`, as if the process had been killed right after it."""
    run = workspace.copy(workspace.every_checkpoint, f"resume_{step}")
    for later in range(step + 1, HORIZON + 1):
        shutil.rmtree(run / "checkpoints" / str(later))
    (run / "report.html").unlink()
    outcome = Outcome("resume", f"at step {step} ({workspace.recipe})")
    done = run_train(**workspace.settings(run.name))
    outcome.problems += _bad_ending(done.stdout, done.returncode)
    start = resumed_step(done.stdout)
    if start != step:
        outcome.problems.append(f"resumed from step {start}")
    if done.returncode == 0:
        outcome.problems += workspace.differences(run)
    shutil.rmtree(run)
    return outcome
