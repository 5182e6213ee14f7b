"""The first signal asks for an orderly end; one 2 s later ends at once, also during a C call."""

import ast
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from minigpt_jax.runtime.ctrl_c import SAME_REQUEST_SECONDS
from minigpt_jax.runtime.interrupt import SIGNALS
from tests.faults.stops import LAUNCHERS
from tests.harness import ROOT, command

DEADLINE = 120
START = """
import hashlib, sys, time
from minigpt_jax.runtime.interrupt import Interrupt
interrupt = Interrupt()
print("ready", flush=True)
"""
# One C call of several minutes that releases the interpreter's lock, as a compilation does.
C_CALL = """
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
print("returned", flush=True)
"""
SLEEP = """
while not interrupt.requested: time.sleep(0.01)
print("saved", flush=True)
"""
SORT = """
import numpy as np
numbers = np.random.default_rng(0).random(2_000_000)
print("sorting", flush=True)
while not interrupt.requested: np.sort(numbers)
print("saved", flush=True)
"""
SAVE_SLOWLY = """
while not interrupt.requested: time.sleep(0.01)
time.sleep(0.5)
print("saved", flush=True)
"""
FINISHING = "finishing this step, then saving (again in 2 s or later: stop immediately)"


def start(program: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", START + program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("program", [SLEEP, SORT], ids=["sleep", "sort"])
def test_one_signal_lets_the_program_end_in_order(program: str, number: signal.Signals):
    process = start(program)
    if program is SORT:
        assert process.stdout and process.stdout.readline() == "sorting\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    assert out == "saved\n" and process.returncode == 0
    assert err.strip() == FINISHING


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", SIGNALS)
def test_a_signal_that_follows_at_once_is_the_same_request(
    first: signal.Signals, second: signal.Signals
):
    process = start(SAVE_SLOWLY)
    process.send_signal(first)
    process.send_signal(second)
    out, err = process.communicate(timeout=DEADLINE)
    assert out == "saved\n" and process.returncode == 0
    assert err.strip() == FINISHING


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_signals_twice_lets_the_program_end_in_order(
    launcher: str, number: signal.Signals, tmp_path: Path
):
    """The whole process group gets the signal, and the launcher passes its own on."""
    program = tmp_path / "program.py"
    program.write_text(START + SAVE_SLOWLY)
    process = subprocess.Popen(
        LAUNCHERS[launcher]([sys.executable, str(program)], tmp_path),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=DEADLINE)
    assert out.splitlines()[0] == "saved"
    assert err.strip().startswith(FINISHING) and "stopped immediately" not in err
    # make ends by the signal.
    assert process.returncode == 0 or launcher == "make"


def test_a_signal_while_python_ends_is_no_failure():
    """The process has saved: the second of two signals must not change its exit code."""
    at_the_end = """
    class AtTheVeryEnd:
        def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
            kill(pid, number)
    sys.modules["kept"] = AtTheVeryEnd()
    """
    process = start("import os, signal" + textwrap.dedent(at_the_end))
    assert process.communicate(timeout=DEADLINE) == ("", "") and process.returncode == 0


def test_a_console_that_nobody_reads_does_not_delay_the_end():
    """A stopped terminal or a full pipe: what is written to it would wait for ever."""
    fill = """
    os.set_blocking(2, False)
    try:
        while True: os.write(2, bytes(4096))
    except BlockingIOError:
        os.set_blocking(2, True)
    print("full", flush=True)
    """
    process = start("import os\n" + textwrap.dedent(fill) + C_CALL)
    assert process.stdout and process.stdout.readline() == "full\n"
    # It cannot say when it has seen the first one.
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    process.kill()
    assert process.wait() == 128 + signal.SIGTERM


def test_the_former_place_of_the_module_still_works():
    code = "from minigpt_jax.interrupt import Interrupt; print(Interrupt().requested)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT) == b"False\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(number: signal.Signals):
    ignored = signal.signal(number, signal.SIG_IGN)
    try:
        process = start(SLEEP)
    finally:
        signal.signal(number, ignored)
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    other = signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM
    process.send_signal(other)
    assert process.communicate(timeout=DEADLINE)[0] == "saved\n"


@pytest.mark.parametrize("second", SIGNALS)
def test_a_later_signal_ends_a_running_c_call(second: signal.Signals):
    process = start(C_CALL)
    # Let it enter the call.
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.stderr and process.stderr.readline() == "\n"
    # The signal is answered although the call is still running, and does nothing else.
    assert process.stderr.readline().startswith("finishing this step, then saving")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=SAME_REQUEST_SECONDS)
    process.send_signal(second)
    began = time.monotonic()
    out, err = process.communicate(timeout=DEADLINE)
    # What docs/reliability.md promises; the call takes minutes.
    assert time.monotonic() - began < 1
    assert process.returncode == 128 + second and out == ""
    assert err.strip() == "stopped immediately"


@pytest.mark.parametrize("name", ["trained", "new"])
def test_an_immediate_end_names_the_checkpoint_where_there_is_one(
    name: str, trained_run: Path, corpus: Path
):
    program = "import hashlib, time\nfrom minigpt_jax.preflight import preflight\npreflight()\n"
    program += f"print('ready', flush=True)\n{C_CALL}"
    options = command(trained_run.parent, name=name, data__folder=corpus)[2:]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr
    while FINISHING not in process.stderr.readline():
        pass
    time.sleep(SAME_REQUEST_SECONDS)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE)
    remark = "; the checkpoint of step 12 is complete" if name == "trained" else ""
    assert err.splitlines()[-1] == f"stopped immediately{remark}"


def test_other_signals_are_ignored():
    # Without a handler the signal would end the process.
    install = "import signal; signal.signal(signal.SIGUSR2, lambda *_: None)"
    process = start(f"{install}\nprint('installed', flush=True)\n{SLEEP}")
    assert process.stdout and process.stdout.readline() == "installed\n"
    process.send_signal(signal.SIGUSR2)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=DEADLINE)[0] == "saved\n"


def test_the_handlers_are_installed_before_anything_slow_is_imported():
    """train.py imports preflight first: a machine may be taken away while JAX is being imported."""
    program = (
        "import sys\nfrom minigpt_jax.preflight import preflight\n"
        "print(sorted({'jax', 'numpy', 'absl', 'tiktoken'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.stdout == "[]\n", done.stderr
    statements = ast.parse((ROOT / "train.py").read_text()).body
    assert "minigpt_jax.preflight" in ast.unparse(statements[1])
    assert "preflight()" in ast.unparse(statements[2])
