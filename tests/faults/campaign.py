"""The long campaign: hundreds of faults, one line each, a table at the end, and what it takes to make a failure happen again.

    python -m tests.faults.campaign --kills 50 --corruptions 200 --seed 0

Exit code 0 only if nothing failed. A failed run stays in the folder that is named, and its line says the seed.
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
    HORIZON,
    SAVE_EVERY,
    Outcome,
    Place,
    damage_checkpoint,
    draw_kills,
    kill,
    resume_anywhere,
)
from tests.harness import ENVIRONMENT, ROOT

KILLS_A_RUN = 2
IN_NUMBERS = [
    f"--ignore=tests/faults/test_{name}.py" for name in ("kills", "damage")
]  # done here, by the hundred
# Where the catalogue's other rows are tested, beside tests/faults.
ROWS = ["tests/faults", "tests/data_tools"] + [
    f"tests/test_{name}.py"
    for name in (
        "checkpoint",
        "config",
        "end_to_end",
        "generate",
        "interrupt",
        "metrics",
        "runs",
        "sample",
        "shards",
    )
]


def main() -> int:
    """Run the campaign and print its table."""
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
        help="resume at every step up to this one (default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first fault; the others count up"
    )
    parser.add_argument("--workers", type=int, default=2, help="faults at a time")
    parser.add_argument(
        "--only", choices=("kill", "corruption", "resume", "rows"), help="one kind alone"
    )
    options = parser.parse_args()
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="campaign_"))
    print(
        f"in {folder}; commit {_commit()}; {platform.machine()}, Python {platform.python_version()}, seed {options.seed}",
        flush=True,
    )
    outcomes = []
    if options.only != "rows":
        place = Place(folder)
        _ = (
            place.seconds,
            place.two_checkpoints,
            place.every_checkpoint,
        )  # made once, before the workers ask for them
        with ThreadPoolExecutor(options.workers) as pool:
            for group in _faults(place, options):
                for outcome in pool.map(_without_exceptions, group):
                    outcomes.append(outcome)
                    print(outcome.line(), flush=True)
                    if outcome.kind == "kill" and sum(o.tried for o in outcomes) >= options.kills:
                        break  # some kills come too late to count, so more runs are planned than are needed
    rows_failed = _rows() if options.only in (None, "rows") else 0
    _print_table(outcomes, time.monotonic() - began)
    lost = sum(o.redone > SAVE_EVERY for o in outcomes)
    print(f"{lost} runs redid more than one save interval")
    return 1 if rows_failed or lost or any(o.problems or o.silent for o in outcomes) else 0


def _faults(place: Place, options: argparse.Namespace) -> list[list[Callable[[], Outcome]]]:
    kills = [
        draw_kills(place, seed, KILLS_A_RUN)
        for seed in range(options.seed, options.seed + options.kills)
    ]
    faults: dict[str, list[Callable[[], Outcome]]] = {
        "kill": [
            partial(kill, place, f"kill_{seed}", plan)
            for seed, plan in enumerate(kills, options.seed)
        ],
        "corruption": [
            partial(damage_checkpoint, place, seed)
            for seed in range(options.seed, options.seed + options.corruptions)
        ],
        "resume": [partial(resume_anywhere, place, step) for step in range(1, options.resumes + 1)],
    }
    return [group for kind, group in faults.items() if options.only in (None, kind)]


def _rows() -> int:
    """The remaining rows of the catalogue, each a test of its own; how many failed."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-vv",
            "-m",
            "",
            *IN_NUMBERS,
            *ROWS,
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    results = []
    for line in process.stdout:
        if match := re.match(r"\[gw\d+\].* (PASSED|FAILED|ERROR|SKIPPED) (tests/\S+)", line):
            verdict, test = match.groups()
            results.append((verdict, test))
            if test.startswith("tests/faults/") or verdict != "PASSED":
                print(f"row         {test.partition('::')[2]:<80} {verdict.lower()}", flush=True)
    failed = sum(verdict in ("FAILED", "ERROR") for verdict, _ in results)
    print(f"row         {len(results)} tests, {failed} failed")
    return failed or int(process.wait() != 0 or not results)


def _without_exceptions(fault: Callable[[], Outcome]) -> Outcome:
    try:
        return fault()
    except Exception as error:  # one that hangs, say: the others are still to be tried
        return Outcome("harness", str(fault), [repr(error)])


def _print_table(outcomes: list[Outcome], seconds: float) -> None:
    print("\n| fault | tried | runs survived | most steps redone | silent |\n|---|---|---|---|---|")
    for kind in dict.fromkeys(o.kind for o in outcomes):
        group = [o for o in outcomes if o.kind == kind]
        good = sum(not (o.problems or o.silent) for o in group)
        redone = max(o.redone for o in group)
        print(
            f"| {kind} | {sum(o.tried for o in group)} | {good} of {len(group)} | {redone} | {sum(o.silent for o in group)} |"
        )
    print(f"a save every {SAVE_EVERY} steps of {HORIZON}; {seconds / 60:.1f} minutes")


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
