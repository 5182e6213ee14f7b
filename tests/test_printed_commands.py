"""A command that a program prints works when it is copied into a shell, whatever a folder's name.

Each test takes the command out of the real output, splits it as a shell does and compares the name,
or runs it.
"""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest

from data_tools import fineweb
from minigpt_jax import config
from minigpt_jax.__main__ import run_word
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.interop import export_gguf, export_hf, import_hf
from minigpt_jax.interop.hugging_face import write_folder
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.files import shell_word, user_path
from minigpt_jax.token_stream import read_manifest
from minigpt_jax.tracking.run_log import TOO_MANY_SKIPPED, RunLog
from tests.harness import ROOT, train_here
from tests.harness import arguments as command_line
from tests.in_process import run_main
from tests.interop.models import BASE, NANOCHAT, random_run

NAMES = (
    "plain",
    "two words",
    " spaces ",
    "it's",
    'say "x"',
    "$HOME",
    "`id`",
    "$(id)",
    "-dash",
    "--config.name=x",
    "~",
    "~root",
    "a;b&c|d>e",
    "*",
    "#",
    "back\\slash",
    "élan 日本",
    "!1",
)
# All of it in one name.
NAME = '-it\'s "$HOME" ; ~'


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_and_our_options_read_the_name_back(tmp_path: Path, name: str):
    command = f"printf %s {shell_word(Path(name))}"
    found = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert user_path(found) == Path(name)
    assert not found.startswith("-")


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """Names are relative to this folder, so that one may begin with a dash."""
    monkeypatch.chdir(tmp_path)
    return Path(NAME)


def words_after(text: str, command: str) -> list[str]:
    """The arguments of `command` in `text`, as a shell would pass them."""
    assert text.count(command) == 1, text
    return shlex.split(text.split(command)[1].splitlines()[0])


def test_data_that_a_tool_must_verify(here: Path):
    with pytest.raises(InputError) as error:
        read_manifest(here)
    assert words_after(str(error.value), "python -m data_tools.verify ") == [f"./{NAME}"]


def test_data_that_were_prepared_before_or_elsewhere(here: Path):
    source = Path("texts")
    source.mkdir()
    for number in range(10):
        (source / f"{number}.txt").write_text("some words " * 20)
    prepare = ("--source", source, f"--out={here}", "--val-every", "5", "--workers", "1")
    assert run_main(fineweb.main, *prepare).returncode == 0
    done = run_main(fineweb.main, *prepare)
    assert words_after(done.stdout, "python -m data_tools.verify ") == [f"./{NAME}"]

    (here / "manifest.json").unlink()
    done = run_main(fineweb.main, *prepare)
    assert done.returncode == 2
    assert words_after(done.stderr, "python -m data_tools.verify ") == [f"./{NAME}"]


@pytest.mark.parametrize("model", [BASE, NANOCHAT], ids=lambda model: model.name)
def test_an_imported_run_that_is_sampled_and_finetuned(here: Path, model: GPTConfig):
    write_folder(Path("source"), random_run(model), "random")
    done = run_main(import_hf.main, "--source", "source", f"--out={here}")
    assert done.returncode == 0, done.stderr
    arguments = words_after(done.stdout, "minigpt sample ")
    assert arguments == ["--run", f"./{NAME}"]
    sampled = run_main(run_word, "sample", *arguments, "--prompt", "Hello", "--max-new-tokens", "2")
    assert sampled.returncode == 0, sampled.stderr

    arguments = words_after(done.stdout, "python train.py ")
    _, file, *rest = arguments
    sys.modules.pop("config_config", None)
    with command_line("train.py", "--config", ROOT / file, *rest):
        settings = config.parse(sys.argv)
    assert Path(settings.init_from) == here
    # The weights of one fit the other, but for the role markers that it learns.
    assert replace(GPTConfig(**settings.model), vocab_size=model.vocab_size) == model


def test_an_exported_file_and_an_upload_that_failed(here: Path, base_run_here: Path, monkeypatch):
    file = f"{NAME}.gguf"
    done = run_main(export_gguf.main, "--run", base_run_here, f"--out={file}")
    assert done.returncode == 0, done.stderr
    assert words_after(done.stdout, "llama-cli ") == ["-m", f"./{file}"]

    # A port on which nothing listens.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    done = run_main(
        export_hf.main, "--run", base_run_here, f"--out={here}", "--push", "someone/tiny"
    )
    assert done.returncode == 1
    assert words_after(done.stderr, "hf upload ") == [
        "someone/tiny",
        str(here.absolute()),
        "--private",
    ]


@pytest.fixture
def base_run_here(here: Path) -> Path:
    """A run to export."""
    write_folder(Path("source"), random_run(BASE), "random")
    done = run_main(import_hf.main, "--source", "source", "--out", "run")
    assert done.returncode == 0, done.stderr
    return Path("run")


def test_a_run_that_diverged(here: Path):
    here.mkdir()
    log = RunLog(
        here,
        start=0,
        horizon=9,
        every=1,
        tensorboard=False,
        tracker="",
        main_process=True,
        tokens_per_step=1,
        flops_per_step=1.0,
    )
    step = log.clock.timed(lambda: (None, {}))
    numbers = {"loss": jnp.nan, "learning_rate": 0.0, "grad_norm": jnp.nan, "skipped": 1.0}
    metrics = {name: jnp.float32(number) for name, number in numbers.items()}
    with pytest.raises(RunError) as error:
        for number in range(TOO_MANY_SKIPPED):
            step()
            log.step(number, "", metrics)
    log.close()
    text = str(error.value).split(". To continue")[0]
    assert words_after(text, "python -m minigpt_jax.report ") == [f"./{NAME}"]


def test_a_run_that_is_done(tmp_path: Path, corpus: Path):
    name = "it's $HOME"
    settings = {"horizon__steps": 2, "schedule__warmup": 0, "log__tensorboard": False}
    output = train_here(tmp_path, name=name, data__folder=corpus, **settings)
    assert words_after(output, "python sample.py ") == ["--run", str(tmp_path / name)]
