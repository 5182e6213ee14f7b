"""How long a start takes: --help, the imports, and train.py until its first step.

    python -m benchmarks.startup --config configs/quickstart.py

Every round makes a new run in a folder of its own, first without and then with compiled programs;
random tokens are the data. "found" counts the programs that JAX found compiled, by its own log.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import ROOT, seconds_of, table
from benchmarks.random_data import write_random_tokens

COMMANDS = {
    "train.py": ["train.py"],
    "sample.py": ["sample.py"],
    "minigpt": ["-m", "minigpt_jax"],
    "minigpt_jax.plan": ["-m", "minigpt_jax.plan"],
    "minigpt_jax.report": ["-m", "minigpt_jax.report"],
    "minigpt_jax.evals": ["-m", "minigpt_jax.evals"],
    "minigpt_jax.server": ["-m", "minigpt_jax.server"],
    "minigpt_jax.interop.import_hf": ["-m", "minigpt_jax.interop.import_hf"],
    "minigpt_jax.interop.export_hf": ["-m", "minigpt_jax.interop.export_hf"],
    "minigpt_jax.interop.export_gguf": ["-m", "minigpt_jax.interop.export_gguf"],
    "data_tools.fineweb": ["-m", "data_tools.fineweb"],
    "data_tools.instruct": ["-m", "data_tools.instruct"],
    "data_tools.python_docs": ["-m", "data_tools.python_docs"],
    "data_tools.verify": ["-m", "data_tools.verify"],
}


class Start(NamedTuple):
    """The measurements of one start."""

    # Seconds from the start of the process to the line of its first step.
    first_step: float
    # Programs that JAX found compiled.
    hits: int
    # Programs that it had to compile.
    misses: int


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description="How long a start takes."
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=3)
    options, overrides = parser.parse_known_args()

    helps = {name: [] for name in COMMANDS}
    imports, cold, warm = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        data = write_random_tokens(Path(folder, "data"))
        for number in range(options.rounds):
            for name, command in COMMANDS.items():
                helps[name].append(seconds_of(partial(run, *command, "--help")))
            imports.append(seconds_of(partial(run, "-c", "import train")))
            runs = Path(folder, f"runs{number}")
            cold.append(start(options.config, overrides, runs, "cold", data))
            warm.append(start(options.config, overrides, runs, "warm", data))

    median = f"median of {options.rounds}"
    rows = [[name, f"{statistics.median(seconds):.2f} s"] for name, seconds in helps.items()]
    print(table([f"--help, {median}", ""], rows) + "\n")
    rows = [["imports", f"{statistics.median(imports):.1f} s", "", ""]]
    for name, starts in (
        ("first step, nothing compiled", cold),
        ("first step, all compiled", warm),
    ):
        seconds = statistics.median(s.first_step for s in starts)
        rows.append([name, f"{seconds:.1f} s", str(starts[0].hits), str(starts[0].misses)])
    print(table([f"{options.config}, {median}", "", "found", "compiled"], rows))


def run(*arguments: str) -> None:
    """Run Python in the project's folder, without its output."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def start(config: str, overrides: list[str], runs: Path, name: str, data: Path) -> Start:
    """Start a run and let it end after two steps."""
    settings = {
        "runs": runs,
        "name": name,
        "data.folder": data,
        "horizon.steps": 2,
        "horizon.tokens": 0,
        "horizon.epochs": 0,
        "schedule.warmup": 1,
    }
    command = [sys.executable, "-u", "train.py", "--config", config]
    command += [f"--config.{field}={value}" for field, value in settings.items()]
    command += overrides
    # Programs are then kept in `runs`.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["JAX_DEBUG_LOG_MODULES"] = "jax._src.compiler"

    began = time.perf_counter()
    first_step = None
    log = ""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if first_step is None:
                log += line
                if re.match(r"step +0/", line):
                    first_step = time.perf_counter() - began
    if first_step is None:
        raise RuntimeError(f"no first step:\n{log}")
    hits = log.count("Persistent compilation cache hit")
    misses = log.count("PERSISTENT COMPILATION CACHE MISS")
    return Start(first_step, hits, misses)


if __name__ == "__main__":
    main()
