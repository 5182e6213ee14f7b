"""Run a command of the project within the tests' own process, which has imported JAX already."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper

import pytest

from minigpt_jax.runtime.program import exit_cleanly


def run_main(main: Callable[[], int | None], *arguments: object) -> subprocess.CompletedProcess:
    """Run `main` with these command-line arguments to its end; the same result as a process has."""
    command = ["program", *map(str, arguments)]
    # As begin_program sets them up.
    out = TextIOWrapper(BytesIO(), "utf-8", "backslashreplace")
    err = TextIOWrapper(BytesIO(), "utf-8", "backslashreplace")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as exit,
    ):
        monkeypatch.setattr(sys, "argv", command)
        exit_cleanly(main)
    code = 0 if exit.value.code is None else exit.value.code
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(command, code, *texts)
