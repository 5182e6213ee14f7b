"""The long campaign: hundreds of faults, a line for each, a table at the end.

    python -m tests.faults.campaign --kills 50 --corruptions 200 --seed 0

Exit code 0 only if nothing failed. A failed run stays in the folder that is printed, and its line
has the seed that repeats it.
"""

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.faults.scenarios import (
    Outcome,
    damage_checkpoint,
    draw_kills,
    interrupt,
    resume_anywhere,
)
from tests.faults.stops import LAUNCHERS, REQUESTS, stop
from tests.faults.workspace import HORIZON, RECIPES, SAVE_EVERY, Workspace
from tests.harness import ENVIRONMENT, ROOT

KILLS_PER_RUN = 2
# Done here, by the hundred.
IGNORED = [f"--ignore=tests/faults/test_{name}.py" for name in ("kills", "damage")]
# Where the other faults of docs/reliability.md are tested.
OTHER_TESTS = [
    "tests/faults",
    "tests/data_tools",
    "tests/runtime",
    "tests/tracking/test_run_log.py",
    "tests/test_checkpoint.py",
    "tests/test_config.py",
    "tests/test_end_to_end.py",
    "tests/test_generate.py",
    "tests/test_modern_recipe.py",
    "tests/test_runs.py",
    "tests/test_sample.py",
    "tests/test_shard_writer.py",
    "tests/test_token_stream.py",
]

Fault = Callable[[], Outcome]


def main() -> int:
    """Run the campaign and print its table."""
    options = parse_options()
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="campaign_"))
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(f"in {folder}; commit {_commit()}; {machine}, seed {options.seed}", flush=True)
    outcomes = [] if options.only == "rows" else _run_faults(folder, options)
    other_failures = _run_other_tests() if options.only in (None, "rows") else 0
    _print_table(outcomes, time.monotonic() - start)
    repeated_too_many = sum(outcome.repeated > SAVE_EVERY for outcome in outcomes)
    print(f"{repeated_too_many} runs repeated more than one save interval")
    failures = [outcome for outcome in outcomes if outcome.problems or outcome.silent]
    return 1 if other_failures or repeated_too_many or failures else 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--corruptions", type=int, default=200)
    parser.add_argument(
        "--resumes",
        type=int,
        default=HORIZON,
        help="resume from every step up to this one (default %(default)s)",
    )
    parser.add_argument(
        "--stops",
        type=int,
        default=2,
        help="stop a run so often through each launcher with each signal (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first fault of each kind")
    parser.add_argument("--workers", type=int, default=2, help="faults at the same time")
    parser.add_argument(
        "--only", choices=("kill", "corruption", "resume", "stop", "rows"), help="one kind of fault"
    )
    return parser.parse_args()


def _run_faults(folder: Path, options: argparse.Namespace) -> list[Outcome]:
    workspaces = [Workspace(folder / recipe, folder / "shared", recipe) for recipe in RECIPES]
    # Made before the workers need them at the same time.
    for workspace in workspaces:
        _ = workspace.seconds
        if options.only in (None, "corruption"):
            _ = workspace.two_checkpoints
        if options.only in (None, "resume"):
            _ = workspace.every_checkpoint
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(options.workers) as pool:
        for faults in _planned_faults(workspaces, options):
            for outcome in pool.map(_without_exceptions, faults):
                outcomes.append(outcome)
                print(outcome.line(), flush=True)
                # Some kills come too late to count, so more runs are planned than are needed.
                kills = sum(o.tried for o in outcomes if o.kind == "kill")
                if outcome.kind == "kill" and kills >= options.kills:
                    break
    return outcomes


def _planned_faults(workspaces: list[Workspace], options: argparse.Namespace) -> list[list[Fault]]:
    """The faults of each kind; one after the other takes the next recipe."""
    first = options.seed

    def at(number: int) -> Workspace:
        return workspaces[number % len(workspaces)]

    kills: list[Fault] = []
    for seed in range(first, first + options.kills):
        moments = draw_kills(at(seed), seed, KILLS_PER_RUN)
        kills.append(partial(interrupt, at(seed), f"kill_{seed}", moments))
    corruptions: list[Fault] = [
        partial(damage_checkpoint, at(seed), seed)
        for seed in range(first, first + options.corruptions)
    ]
    resumes: list[Fault] = [
        partial(resume_anywhere, at(step), step) for step in range(1, options.resumes + 1)
    ]
    stops: list[Fault] = [
        partial(stop, at(seed), launcher, number, seed)
        for seed in range(first, first + options.stops)
        for launcher in LAUNCHERS
        for number in REQUESTS
    ]
    faults = {"kill": kills, "corruption": corruptions, "resume": resumes, "stop": stops}
    return [group for kind, group in faults.items() if options.only in (None, kind)]


def _run_other_tests() -> int:
    """Run the tests of the other faults; returns how many failed."""
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-vv", "-m", ""]
    process = subprocess.Popen(
        [*pytest, *IGNORED, *OTHER_TESTS],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    verdicts = []
    for line in process.stdout:
        match = re.match(r"\[gw\d+\].* (PASSED|FAILED|ERROR|SKIPPED) (tests/\S+)", line)
        if not match:
            continue
        verdict, test = match.groups()
        verdicts.append(verdict)
        if test.startswith("tests/faults/") or verdict != "PASSED":
            print(f"row         {test.partition('::')[2]:<80} {verdict.lower()}", flush=True)
    failed = sum(verdict in ("FAILED", "ERROR") for verdict in verdicts)
    print(f"row         {len(verdicts)} tests, {failed} failed")
    # pytest may fail without a failed test: an error while it collects them.
    return failed or int(process.wait() != 0 or not verdicts)


def _without_exceptions(fault: Fault) -> Outcome:
    try:
        return fault()
    # One that hangs, for example: the others are still to be tried.
    except Exception as error:
        return Outcome("harness", str(fault), [repr(error)])


def _print_table(outcomes: list[Outcome], seconds: float) -> None:
    print("\n| fault | tried | runs survived | most steps repeated | silent |")
    print("|---|---|---|---|---|")
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        group = [outcome for outcome in outcomes if outcome.kind == kind]
        tried = sum(outcome.tried for outcome in group)
        survived = sum(not (outcome.problems or outcome.silent) for outcome in group)
        repeated = max(outcome.repeated for outcome in group)
        silent = sum(outcome.silent for outcome in group)
        print(f"| {kind} | {tried} | {survived} of {len(group)} | {repeated} | {silent} |")
    print(f"a save every {SAVE_EVERY} steps of {HORIZON}; {seconds / 60:.1f} minutes")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
