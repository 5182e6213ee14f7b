"""The README's commands run as they are written; its tests exist and its length is right.

Commands that need a network, a GPU or an installation are left out. The two that train get a
smaller model appended. Commands other than train.py and the server run in this process, which has
JAX loaded already.
"""

import io
import json
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt_jax.runtime import program
from tests.harness import ENVIRONMENT, ROOT, WORDS, link_checkout

README = (ROOT / "README.md").read_text()
NEEDS_NETWORK_OR_GPU = re.compile(
    r"HuggingFace|tatsu-lab|configs/(pretrain|finetune)\.py$|^(git|cd|make|source)\b"
)
SMALLER = {
    "model.layers": 1,
    "model.heads": 2,
    "model.embed": 16,
    "horizon.steps": 2,
    "schedule.warmup": 1,
    "eval.rows": 4,
    "eval.samples": 0,
    "log.tensorboard": False,
}
START_SECONDS = 120


def readme_commands() -> list[str]:
    """Commands of the bash blocks, in order, then the commands that stand in the text."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    lines += re.findall(r"`((?:python|minigpt) [^`]+)`", text)
    return [line for line in lines if line and not NEEDS_NETWORK_OR_GPU.search(line)]


class Terminal(io.StringIO):
    """Standard input of a person who types the given text."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the repository with a text folder and pairs, as the README names them."""
    folder = link_checkout(tmp_path_factory.mktemp("clone"))
    texts = folder / "my_texts"
    texts.mkdir()
    for number in range(30):
        (texts / f"{number}.txt").write_text(" ".join(WORDS) * 12)
    pairs = [{"prompt": f"What is {n}?", "completion": f"It is {n}. " * 9} for n in range(60)]
    (folder / "my_pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def run(command: str, clone: Path) -> None:
    """Run one command of the README in the clone."""
    program, *arguments = shlex.split(command)
    if program == "minigpt":
        arguments = ["-m", "minigpt_jax", *arguments]
    if arguments[0] == "train.py":
        arguments += [f"--config.{name}={value}" for name, value in SMALLER.items()]
        done = subprocess.run(
            [sys.executable, *arguments], cwd=clone, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    elif "serve" in arguments:
        run_server([sys.executable, *arguments, "--port", "0"], clone, ENVIRONMENT)
    else:
        run_here(arguments)


def run_here(arguments: list[str]) -> None:
    """Run a module or a script in this process."""
    sys.argv = arguments[1:] if arguments[0] == "-m" else arguments
    with warnings.catch_warnings(), pytest.raises(SystemExit) as exit:
        warnings.simplefilter("ignore")
        if arguments[0] == "-m":
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    assert not exit.value.code, " ".join(arguments)


def run_server(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    while_it_runs: Callable[[str], object] = lambda address: None,
) -> None:
    """Start the server, ask for its health, and stop it."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    try:
        deadline = time.monotonic() + START_SECONDS
        printed = ""
        while not (address := re.search(r"http://[\w.]+:\d+", printed)):
            assert process.poll() is None and time.monotonic() < deadline, printed
            printed += process.stderr.readline()
        with urllib.request.urlopen(address[0] + "/health", timeout=START_SECONDS) as answer:
            assert json.load(answer)["status"] == "ok"
        while_it_runs(address[0])
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_SECONDS) == 0
    finally:
        process.kill()
        process.stderr.close()


@pytest.mark.campaign
def test_every_command_runs_as_written(clone, monkeypatch):
    commands = readme_commands()
    assert len(commands) >= 10
    monkeypatch.chdir(clone)
    monkeypatch.setattr(sys, "argv", sys.argv)
    # In this process the streams and the signals are pytest's.
    monkeypatch.setattr(program, "begin_program", lambda **_: None)
    for command in commands:
        monkeypatch.setattr(sys, "stdin", Terminal("/quit\n"))
        run(command, clone)
    assert (clone / "exported" / "model.safetensors").is_file()
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example) == 1
    script = clone / "example.py"
    script.write_text(example[0])
    runpy.run_path(str(script))


def test_every_test_that_the_documents_name_exists():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        if document.name == "log.md":
            continue
        for path in re.findall(r"`(tests/[\w/.]+)`", document.read_text()):
            assert (ROOT / path).exists(), f"{document.name}: {path}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
