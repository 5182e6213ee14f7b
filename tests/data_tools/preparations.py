"""Texts to prepare, and the real program as a process that a test may kill."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from data_tools.fineweb import Recipe

SHARD_TOKENS = 48_000
VAL_EVERY = 20
WORDS = [
    *("the", "of", "light", "cell", "wave", "is", "plant", "when", "water", "café", "3", "1984"),
    *(",", ".", "(", "don't", "Ωhm", "--", "\n"),
]
FINISH_SECONDS = 180
WAIT_SECONDS = 120
POLL_SECONDS = 0.005


def random_texts(seed: int, documents: int, words: int) -> list[str]:
    """Texts of about `words` words each, the same for a seed."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(WORDS, k=draw.randint(words // 2, words * 3 // 2)))
        for _ in range(documents)
    ]


def write_jsonl(path: Path, rows: list) -> Path:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def recipe(source: Path, val_every: int = VAL_EVERY) -> Recipe:
    """What `start` prepares."""
    return Recipe([str(source)], val_every=val_every, shard_tokens=SHARD_TOKENS)


def start(source: Path, out: Path, *more: str, failpoint: str = "", **options) -> subprocess.Popen:
    """The real program, in a session of its own."""
    arguments = ["--source", source, "--out", out, "--workers", 2]
    arguments += ["--shard-tokens", SHARD_TOKENS, "--val-every", VAL_EVERY, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "data_tools.fineweb", *map(str, arguments)],
        env=os.environ | {"MINIGPT_FAILPOINT": failpoint},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(process: subprocess.Popen, code: int) -> str:
    """Wait for the program; returns its output, after checking its exit code."""
    stdout, stderr = process.communicate(timeout=FINISH_SECONDS)
    assert process.returncode == code, stdout + stderr
    assert "Traceback" not in stderr
    return stdout + stderr


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Poll until `condition` holds, or the process has ended."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(POLL_SECONDS)


def workers_of(pid: int) -> list[int]:
    """Process ids of the worker processes of a data tool."""
    command = ["pgrep", "-P", str(pid), "-f", "spawn_main"]
    return [int(child) for child in subprocess.run(command, capture_output=True).stdout.split()]


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True).stdout
    return bool(state) and not state.startswith("Z")
