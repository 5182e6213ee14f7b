"""The speed of train.py itself, and whether a deterministic run survives kills bit for bit.

    python -m benchmarks.train_program --steps 40
    python -m benchmarks.train_program --steps 40 --kills 3
    python -m benchmarks.train_program --config configs/pretrain.py:gpt2-xl --config.data.batch=64

Random tokens are the data; other arguments are those of train.py.
The first ten steps are not counted. With --kills there are two more
runs, both with deterministic=True: one in peace, one killed (SIGKILL) and resumed so many times.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.contenders import ROOT, table
from benchmarks.random_data import write_random_tokens
from minigpt_jax.tracking.records import read_records

# The first steps compile and warm up.
WARMUP_STEPS = 10
HEAD = ("train.py", "tokens/s", "MFU")


def main() -> int:
    """Measure and print; exit code 1 if a killed run differs from the one in peace."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_program", description="The speed of train.py itself."
    )
    parser.add_argument("--steps", type=int, default=40, help="steps of a run (default: 40)")
    parser.add_argument("--kills", type=int, default=0, help="kills of a deterministic run")
    parser.add_argument("--config", default="configs/pretrain.py", help="default: %(default)s")
    options, overrides = parser.parse_known_args()
    overrides = [f"--config={options.config}", *overrides]
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        write_random_tokens(runs / "data")
        return measure(runs, options, overrides)


def measure(runs: Path, options: argparse.Namespace, overrides: list[str]) -> int:
    """Do the runs in the folder `runs` and print the table."""
    train(runs, "plain", options.steps, overrides)
    rows = [speed(runs, "plain")]
    if not options.kills:
        print(table(HEAD, rows))
        return 0
    overrides = [*overrides, "--config.deterministic=True"]
    train(runs, "peace", options.steps, overrides)
    moments = np.linspace(0, options.steps, options.kills + 2, dtype=int)[1:-1]
    for moment in (*moments, None):
        train(runs, "killed", options.steps, overrides, kill_after=moment)
    print(table(HEAD, [*rows, speed(runs, "peace"), speed(runs, "killed")]))
    peace, killed = (read_records(runs / name).steps["loss"] for name in ("peace", "killed"))
    equal = int((peace == killed).sum())
    print(f"{options.kills} kills: {equal} of {len(peace)} losses are equal bit for bit")
    return int(equal < len(peace))


def train(
    runs: Path, name: str, steps: int, overrides: list[str], kill_after: int | None = None
) -> None:
    """Run train.py until its end, or until its line of step `kill_after`."""
    settings = {
        "runs": runs,
        "name": name,
        "data.folder": runs / "data",
        "horizon.steps": steps,
        "schedule.warmup": 1,
        "log.every": 1,
        "eval.every": 10 * steps,
        "eval.rows": 8,
        "eval.samples": 0,
        # Before, between and after kills.
        "save.every": max(2, steps // 8),
    }
    fields = [f"--config.{field}={value}" for field, value in settings.items()]
    process = subprocess.Popen(
        [sys.executable, "-u", "train.py", *overrides, *fields],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = ""
    assert process.stdout
    for line in process.stdout:
        log += line
        if kill_after is not None and re.match(rf"step +{kill_after}/", line):
            process.kill()
    expected = 0 if kill_after is None else -signal.SIGKILL
    if process.wait() != expected:
        raise RuntimeError(f"train.py ended with {process.returncode}:\n{log}")


def speed(runs: Path, name: str) -> list[str]:
    """A row of the table."""
    steps = read_records(runs / name).steps
    counted = (steps["step"] >= WARMUP_STEPS) & np.isfinite(steps["tokens_per_s"])
    seconds = steps["seconds"][counted].sum()
    rate = steps["tokens"][counted].sum() / seconds
    mfu = (steps["mfu"][counted] * steps["seconds"][counted]).sum() / seconds
    return [name, f"{rate:,.0f}", f"{mfu:.1%}" if np.isfinite(mfu) else "n/a"]


if __name__ == "__main__":
    sys.exit(main())
