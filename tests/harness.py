"""The real commands as subprocesses, on models and texts so small that a run takes seconds."""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.tokenizer import END_OF_TEXT, TEXT_VOCAB, load_tokenizer

ROOT = Path(__file__).parents[1]
# Compiled fast rather than well; the simulated devices of conftest.py are for the tests' own process.
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PLATFORMS": "cpu",
}
TINY = {
    "model.layers": 2,
    "model.heads": 2,
    "model.embed": 32,
    "model.context": 32,
    "data.batch": 4,
    "horizon.steps": 12,
    "schedule.warmup": 3,
    "eval.every": 12,
    "eval.rows": 8,
    "eval.samples": 0,
    "eval.sample_tokens": 4,
    "save.every": 3,
    "log.every": 4,
}
WORDS = [
    "the",
    "a",
    "model",
    "token",
    "learns",
    "reads",
    "writes",
    "river",
    "stone",
    "light",
    "small",
    "dog",
    "sees",
    "under",
    "with",
    "slowly",
]


def sentence(draw: random.Random) -> str:
    """A few random words: text enough to learn something from, made anew on every machine."""
    return " ".join(draw.choices(WORDS, k=draw.randint(4, 12))).capitalize() + "."


def write_corpus(folder: Path, documents: int = 120) -> Path:
    """Shards of random sentences in `folder`, several files a split."""
    folder.mkdir(parents=True)
    draw, tokenizer, splits = random.Random(0), load_tokenizer(), {}
    for split, count in (("train", documents), ("val", documents // 10)):
        writer = ShardWriter(folder, split, shard_tokens=1500)
        for _ in range(count):
            text = " ".join(sentence(draw) for _ in range(8))
            writer.append(np.array([END_OF_TEXT, *tokenizer.encode(text)], np.uint16))
        splits[split] = (writer.close(), count)
    write_manifest(
        folder,
        splits,
        tokenizer=tokenizer.hash,
        vocab_size=TEXT_VOCAB,
        context=None,
        source="random sentences",
    )
    return folder


def write_chat(folder: Path) -> Path:
    """A folder of packed conversations, made by the real tool in `folder`."""
    rows = folder / "pairs.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."}) + "\n"
            for n in range(150)
        )
    )
    out = folder / "chat"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "data_tools.instruct",
            "--source",
            str(rows),
            "--out",
            str(out),
            "--context",
            "32",
            "--val-every",
            "10",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return out


def command(runs: Path, config: str = "configs/quickstart.py", **changes) -> list[str]:
    """The command line that trains the tiny model; `data__batch=8` means --config.data.batch=8."""
    settings = (
        TINY | {"runs": runs} | {name.replace("__", "."): value for name, value in changes.items()}
    )
    return [
        sys.executable,
        "train.py",
        "--config",
        config,
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


def run_command(arguments: Sequence[str]) -> subprocess.CompletedProcess:
    """Run a command of the project to its end; `stdout` holds all it printed."""
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def run_train(
    runs: Path, environment: dict | None = None, **changes
) -> subprocess.CompletedProcess:
    """Run train.py to its end, whatever that is; `stdout` holds all it said."""
    return subprocess.run(
        command(runs, **changes),
        cwd=ROOT,
        env=ENVIRONMENT | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def train(runs: Path, expect: int = 0, environment: dict | None = None, **changes) -> str:
    """Run train.py to the end that is expected; returns what it printed."""
    done = run_train(runs, environment, **changes)
    assert done.returncode == expect, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def start_pair(
    runs: Path, environments: Sequence[dict] = ({}, {}), **changes
) -> list[subprocess.Popen]:
    """Two processes of one run, as a launcher would start them; each may have variables of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            command(runs, **changes),
            cwd=ROOT,
            env=ENVIRONMENT
            | {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
            }
            | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i, own in enumerate(environments)
    ]


def history(run: Path) -> list[tuple]:
    """(step, loss bit for bit, batch) of every recorded step."""
    return [(r["step"], r["loss"].hex(), r["batch"]) for r in read_jsonl(run / "metrics.jsonl")]


def final_arrays(run: Path) -> dict:
    """Shape, dtype and checksum of every array of the newest checkpoint, as its own record says; train.py verified them."""
    newest = run / "checkpoints" / str(checkpoint_steps(run)[-1])
    return json.loads((newest / "meta" / "metadata").read_text())["arrays"]
