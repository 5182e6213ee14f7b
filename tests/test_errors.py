"""What is wrong with the machine is one line with its own name and a way out."""

import errno
import os

import jax
import jax.numpy as jnp
import pytest

from minigpt_jax.errors import InputError, RunError, machine_fault
from minigpt_jax.runtime.program import exit_on_error


def device_error() -> Exception:
    """The error of a device whose memory is full."""
    try:
        jnp.zeros(2**45)
    except jax.errors.JaxRuntimeError as error:
        return error
    raise AssertionError("a machine with 128 TB")


@pytest.mark.parametrize(
    ("error", "cause", "way_out"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x"), "Too many open files: 'x'", "-n"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "x"), "Input/output error: 'x'", "disk"),
        (OSError(errno.EXDEV, os.strerror(errno.EXDEV), "x"), "[Errno 18]", "'x'"),
        (MemoryError("10 GiB for an array"), "memory is full (10 GiB", "end other programs"),
        (MemoryError(), "memory is full (MemoryError)", "end other programs"),
        (ModuleNotFoundError("No module named 'zstd'"), "No module named 'zstd'", "make install"),
        (device_error(), "memory of a device is full (RESOURCE_EXHAUSTED", "other programs"),
        (jax.errors.JaxRuntimeError("INTERNAL: cuDNN\nmore"), "(INTERNAL: cuDNN)", "driver"),
        (RuntimeError("can't start new thread"), "no more threads", "ulimit -u"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_fault_of_the_machine_is_one_line(error: Exception, cause: str, way_out: str, capsys):
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as exit:
        exit_on_error(fail)
    assert exit.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("failed: ") and cause in line and way_out in line


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_a_name_with_a_line_break_is_shown_on_one_line(kind: type[Exception], capsys):
    def fail() -> None:
        raise kind("runs/a\nb\tc: missing")

    with pytest.raises(SystemExit):
        exit_on_error(fail)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": runs/a\\nb\\tc: missing")


def test_a_fault_of_the_program_is_no_fault_of_the_machine():
    for error in (ValueError("x"), KeyError("x"), RuntimeError("x"), AssertionError()):
        assert machine_fault(error) is None
