"""`make install` gives the environment the accelerator that was asked for, and no other."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """What `make install` would do, as if nothing were installed."""
    return subprocess.run(
        ["make", "--dry-run", "--always-make", "install", "PYTHON=python3", *arguments],
        cwd=ROOT,
        # Not what `make test` tells the programs that it starts.
        env={name: value for name, value in os.environ.items() if "MAKE" not in name}
        | {"MFLAGS": ""}
        | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("argument", "extra", "plugin"),
    [
        ("CUDA=1", "cuda12", "jax-cuda12-plugin"),
        ("CUDA=12", "cuda12", "jax-cuda12-plugin"),
        ("CUDA=13", "cuda13", "jax-cuda13-plugin"),
        ("ROCM=1", "rocm", "jax-rocm7-plugin"),
        ("TPU=1", "tpu", "libtpu"),
    ],
)
def test_an_accelerator_takes_the_place_of_the_others(argument: str, extra: str, plugin: str):
    steps = make(argument).stdout.splitlines()
    uninstall = next(step for step in steps if "uninstall" in step).split()
    plugins = {"jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin", "libtpu"}
    assert plugins - set(uninstall) == {plugin}
    stamps = {f".venv/installed-{name}" for name in ("cuda12", "cuda13", "rocm", "tpu")}
    removed = next(step for step in steps if step.startswith("rm ")).split()
    assert stamps - set(removed) == {f".venv/installed-{extra}"}
    assert f'".[fast,{extra}]"' in "\n".join(steps)
    assert steps[-1] == f"touch .venv/installed-{extra}"


def test_without_an_accelerator_none_is_removed():
    # A folder, as clusters name it.
    steps = make(CUDA="/usr/local/cuda").stdout
    assert '".[fast]"' in steps
    assert "uninstall" not in steps and "rm " not in steps


@pytest.mark.parametrize(
    "arguments",
    [["CUDA=11"], ["CUDA=0"], ["CUDA=12.4"], ["ROCM=7"], ["TPU=v5e"], ["CUDA=12", "TPU=1"]],
)
def test_another_value_is_refused_in_one_line(arguments: list[str]):
    done = make(*arguments)
    assert done.returncode == 2
    assert done.stdout + done.stderr.removesuffix("\n") == done.stderr.splitlines()[0]
    assert all(argument in done.stderr for argument in arguments)
    assert "give one of CUDA=12, CUDA=13, ROCM=1, TPU=1" in done.stderr
