"""How long a start takes: imports, and train.py to its first step, with nothing compiled and with what the last start compiled.

    python -m benchmarks.startup --config configs/quickstart.py

Every round makes a new run in a folder of its own, first without and then with compiled programs; random tokens serve
as data. Hits are programs that were found compiled, as JAX's own log says.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.rivals import ROOT, table
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.tokenizer import TEXT_VOCAB, load_tokenizer


class Start(NamedTuple):
    """What one start took."""

    first_step: float  # s from the start of the process to the line of its first step
    hits: int  # programs found compiled
    misses: int  # programs that had to be compiled


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description="How long a start takes."
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=3)
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        data = write_random(Path(folder, "data"))
        imports, cold, warm = [], [], []
        for number in range(options.rounds):
            imports.append(importing())
            for name, results in (("cold", cold), ("warm", warm)):
                results.append(
                    start(options.config, overrides, Path(folder, f"runs{number}"), name, data)
                )
    rows = [["imports", f"{statistics.median(imports):.1f} s", "", ""]]
    for name, results in (
        ("first step, nothing compiled", cold),
        ("first step, all compiled", warm),
    ):
        seconds = statistics.median(r.first_step for r in results)
        rows.append([name, f"{seconds:.1f} s", str(results[0].hits), str(results[0].misses)])
    print(table([f"{options.config}, median of {options.rounds}", "", "found", "compiled"], rows))


def importing() -> float:
    """Seconds to import all of train.py and leave."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import train"], cwd=ROOT, check=True)
    return time.perf_counter() - began


def start(config: str, overrides: list[str], runs: Path, name: str, data: Path) -> Start:
    """Start a run and stop it after its first step."""
    settings = {
        "runs": runs,
        "name": name,
        "data.folder": data,
        "horizon.steps": 2,
        "horizon.tokens": 0,
        "horizon.epochs": 0,
        "schedule.warmup": 1,
    }
    command = [
        sys.executable,
        "-u",
        "train.py",
        "--config",
        config,
        *(f"--config.{k}={v}" for k, v in settings.items()),
        *overrides,
    ]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {
        "JAX_DEBUG_LOG_MODULES": "jax._src.compiler"
    }
    began, log = time.perf_counter(), ""
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
            log += line
            if re.match(r"step +0/", line):
                break
        else:
            raise RuntimeError(f"no first step:\n{log}")
        seconds = time.perf_counter() - began
        process.stdout.read()
    return Start(
        seconds,
        log.count("Persistent compilation cache hit"),
        log.count("PERSISTENT COMPILATION CACHE MISS"),
    )


def write_random(folder: Path) -> Path:
    """A folder of random tokens, enough for a few rows."""
    folder.mkdir()
    draw, splits = np.random.default_rng(0), {}
    for split in ("train", "val"):
        writer = ShardWriter(folder, split, shard_tokens=10**6)
        writer.append(draw.integers(0, TEXT_VOCAB - 1, 10**6).astype(np.uint16))
        splits[split] = (writer.close(), 1)
    write_manifest(
        folder,
        splits,
        tokenizer=load_tokenizer().hash,
        vocab_size=TEXT_VOCAB,
        context=None,
        source="random",
    )
    return folder


if __name__ == "__main__":
    main()
