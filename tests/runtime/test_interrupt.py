"""One signal asks for an orderly end and the second ends at once, also while the process is deep in a C call."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BEGINNING = "import hashlib, sys, time\nfrom minigpt_jax.runtime.interrupt import Interrupt\ninterrupt = Interrupt()\nprint('ready', flush=True)\n"
# One call into C of several minutes, which releases the interpreter's lock as a compilation does: no handler of Python's runs in it.
C_CALL = BEGINNING + "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\nprint('returned', flush=True)"
LOOP = BEGINNING + "while not interrupt.requested: time.sleep(0.01)\nprint('saved', flush=True)"
SORT = BEGINNING + (
    "import numpy as np\nnumbers = np.random.default_rng(0).random(2_000_000)\nprint('sorting', flush=True)\n"
    "while not interrupt.requested: np.sort(numbers)\nprint('saved', flush=True)"
)
SIGNALS = [signal.SIGTERM, signal.SIGINT]


def start(program: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("program", [LOOP, SORT], ids=["sleep", "sort"])
def test_one_signal_lets_the_program_end_in_order(program: str, number: signal.Signals):
    process = start(program)
    if program is SORT:
        assert process.stdout and process.stdout.readline() == "sorting\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == "saved\n" and process.returncode == 0
    assert err.strip() == "finishing this step, then saving (again: stop at once)"


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_a_running_c_call_within_a_second(
    first: signal.Signals, second: signal.Signals
):
    process = start(C_CALL)
    time.sleep(0.1)  # into the call
    process.send_signal(first)
    assert process.stderr and process.stderr.readline() == "\n"
    # It has heard, although the call runs on; and it does nothing else by itself.
    assert process.stderr.readline() == "finishing this step, then saving (again: stop at once)\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.send_signal(second)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 1
    assert process.returncode == 128 + second and out == ""
    assert err.strip() == "stopped at once; the last checkpoint stands"


def test_other_signals_are_not_its_business():
    process = start(
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: None)\n" + LOOP
    )  # without a handler it would never hear of it
    process.send_signal(signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n"


def test_it_is_there_before_anything_slow():
    """train.py's first statements: a machine may be taken away while JAX is still being imported."""
    program = "import sys\nfrom minigpt_jax.runtime.interrupt import Interrupt\nprint(sorted({'jax', 'numpy', 'absl'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
