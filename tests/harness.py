"""The real commands on models and texts so small that a run takes seconds.

Three ways to train, from the cheapest to the most faithful:

    train_here(...)  calls train() in this process, which has loaded JAX and has four simulated
                     devices: for refusals, records, and all that needs no process of its own
    train(...)       runs train.py as a subprocess on one device: for signals, kills, exit codes
    start_pair(...)  starts two processes of one run

A test that needs just some trained run takes the fixture `trained_run` or `finetuned_run` (see
conftest.py), which are made once for all test processes. A test that changes a run works on
`copy_run(run, folder)`. Programs other than train.py run in this process with `run_module` and
`run_script`.
"""

import fcntl
import io
import json
import os
import random
import runpy
import shutil
import socket
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from minigpt_jax.preflight import check_inputs
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime import program
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.tokenizer import END_OF_TEXT, TEXT_VOCAB, load_tokenizer

ROOT = Path(__file__).parents[1]
# Programs are compiled quickly, with few optimisations; with none, as in the test processes, which
# compile many and run them a few times, a training step takes twice as long. The simulated devices
# of conftest.py are for the test process only.
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": "--xla_backend_optimization_level=1",
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
WORDS = "the a model token learns reads writes river stone light small dog sees under with slowly"


def sentence(draw: random.Random) -> str:
    """A few random words: enough text to learn something from."""
    return " ".join(draw.choices(WORDS.split(), k=draw.randint(4, 12))).capitalize() + "."


def write_corpus(folder: Path, documents: int = 120) -> Path:
    """Shards of random sentences in `folder`, several files a split."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    tokenizer = load_tokenizer()
    splits = {}
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


def write_questions(path: Path, count: int = 30) -> Path:
    """A file of `count` questions in HellaSwag's form, with short random texts."""
    draw = random.Random(1)
    rows = [
        {
            "ctx": sentence(draw),
            "endings": [sentence(draw) for _ in range(4)],
            "label": str(draw.randrange(4)),
        }
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_chat(folder: Path, context: int = 32) -> Path:
    """A folder of packed conversations, made by the real tool in `folder`."""
    rows = [
        {"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(150)
    ]
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "chat"
    run_module(
        "data_tools.instruct",
        *("--source", pairs, "--out", out, "--context", context, "--val-every", 10),
    )
    return out


def command(runs: Path, config: str = "configs/quickstart.py", **changes) -> list[str]:
    """The command line that trains the tiny model; `data__batch=8` means --config.data.batch=8."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    settings = TINY | {"runs": runs} | changes
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    return [sys.executable, "train.py", "--config", config, *overrides]


@contextmanager
def arguments(*argv: object) -> Iterator[None]:
    """sys.argv, for a program that runs in this process."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in argv])
        # In this process the streams and the signals are pytest's.
        monkeypatch.setattr(program, "begin_program", lambda **_: None)
        # runpy warns where a module that this process has imported runs as a program; Python 3.15
        # will remove the way in which ml_collections loads config files.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield


def run_module(name: str, *argv: object) -> None:
    """`python -m name argv` in this process; it must succeed. pytest's `capsys` sees its output."""
    with arguments(name, *argv), pytest.raises(SystemExit) as exit:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert not exit.value.code


def run_script(file: str, *argv: object) -> None:
    """`python file argv` in this process, for a program of the root folder; it must succeed."""
    with arguments(file, *argv), pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / file), run_name="__main__")
    assert not exit.value.code


def train_here(runs: Path, stop_requested: Callable[[], bool] = lambda: False, **changes) -> str:
    """Call train() in this process; returns what it printed. Raises what train.py reports."""
    # Imported here, because most tests do not need it.
    from train import train

    argv = command(runs, **changes)[1:]
    # ml_collections loads a config file into one module name, on top of the file before.
    sys.modules.pop("config_config", None)
    output = io.StringIO()
    with arguments(*argv), redirect_stdout(output):
        train(check_inputs(sys.argv, stop_requested))
    return output.getvalue()


def run_command(
    arguments: Sequence[str], environment: dict | None = None
) -> subprocess.CompletedProcess:
    """Run a command of the project to its end; `stdout` holds everything that it printed."""
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def run_train(
    runs: Path, environment: dict | None = None, **changes
) -> subprocess.CompletedProcess:
    """Run train.py to its end, whatever the exit code; `stdout` holds everything it printed."""
    return run_command(command(runs, **changes), environment)


def train(runs: Path, expect: int = 0, environment: dict | None = None, **changes) -> str:
    """Run train.py, expect this exit code and no traceback; returns what it printed."""
    done = run_train(runs, environment, **changes)
    assert done.returncode == expect, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def explicit_launcher(index: int) -> dict[str, str]:
    """JAX's own variables for the process `index` of two."""
    return {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}


def start_pair(
    runs: Path,
    environments: Sequence[dict] = ({}, {}),
    launcher: Callable[[int], dict] = explicit_launcher,
    **changes,
) -> list[subprocess.Popen]:
    """Two processes of one run, as `launcher` starts them; each may have its own variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}"}
    return [
        subprocess.Popen(
            command(runs, **changes),
            cwd=ROOT,
            env=ENVIRONMENT | address | launcher(process) | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process, own in enumerate(environments)
    ]


def copy_run(run: Path, runs: Path) -> Path:
    """A copy of `run` in the folder `runs`, with its file times: for a test that changes it."""
    return Path(shutil.copytree(run, runs / run.name))


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, filled by the first test process that needs it; the others wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    complete = folder / "complete"
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


def history(run: Path) -> list[tuple]:
    """(step, loss bit for bit, batch) of every recorded step."""
    return [(r["step"], r["loss"].hex(), r["batch"]) for r in read_jsonl(run / "metrics.jsonl")]


def final_arrays(run: Path) -> dict:
    """Shape, dtype and checksum of every array of the newest checkpoint, from its record."""
    newest = run / "checkpoints" / str(checkpoint_steps(run)[-1])
    return json.loads((newest / "meta" / "metadata").read_text())["arrays"]


def fresh_python(code: str):
    """What a fresh interpreter prints, read as JSON. `code` may be indented."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def tracked_files() -> list[str]:
    """Names of the files that git tracks or would add, relative to the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def link_checkout(folder: Path) -> Path:
    """A copy of the repository in `folder`, made of links."""
    for name in tracked_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(ROOT / name)
    return folder
