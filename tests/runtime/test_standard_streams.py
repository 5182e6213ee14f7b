"""No console stops a command: closed, gone, full, read-only or in another encoding."""

import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.harness import ROOT

DEADLINE = 120
BEGIN = """
import os, signal, sys
from minigpt_jax.errors import InputError
from minigpt_jax.runtime.program import begin_program, exit_cleanly
begin_program({})
def main():
    for _ in range(3):
        print("Grüße 漢字", flush=True)
        print("Grüße 漢字", file=sys.stderr)
    with open(sys.argv[1], "wb") as file:
        file.write(b"descriptor %d" % file.fileno())
"""
# What a shell makes of the standard streams.
CONSOLES = {
    "stdout closed": ">&-",
    "stderr closed": "2>&-",
    "stdin closed": "<&-",
    "all closed": "<&- >&- 2>&-",
    "full disk": ">/dev/full 2>/dev/full",
    "read-only": "1</dev/null 2</dev/null",
    "reader gone": ">&3 2>&3",
}
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "ascii:strict", "PYTHONUNBUFFERED": "1"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "utf-16": {"PYTHONIOENCODING": "utf-16"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def run(
    program: str, folder: Path, redirection: str = "", needed: str = "", **environment: str
) -> subprocess.CompletedProcess:
    """Run `program`, which defines `main`, as a shell does with these redirections."""
    path = folder / "program.py"
    path.write_text(BEGIN.format(needed) + textwrap.dedent(program) + "\nexit_cleanly(main)\n")
    # Descriptor 3 is a pipe whose reader has ended.
    closed_pipe = "exec 3> >(true); wait $!"
    command = f'{closed_pipe}; "{sys.executable}" "{path}" "{folder / "written"}" {redirection}'
    return subprocess.run(
        ["bash", "-c", command],
        # Buffered, as it is by default.
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""} | environment,
        capture_output=True,
        timeout=DEADLINE,
    )


@pytest.mark.parametrize("name", CONSOLES)
def test_a_command_goes_on_without_its_console(name: str, tmp_path: Path):
    done = run("", tmp_path, CONSOLES[name])
    assert done.returncode == 0
    assert b"Traceback" not in done.stdout + done.stderr
    # Its files have their own descriptors: nothing that is printed later is written to them.
    assert (tmp_path / "written").read_bytes().startswith(b"descriptor ")
    assert int((tmp_path / "written").read_bytes().split()[1]) > 2


def test_a_command_goes_on_when_its_terminal_is_gone(tmp_path: Path):
    """Where SIGHUP is ignored, the next output is an error (EIO)."""
    program = tmp_path / "program.py"
    body = "def main():\n    input()\n    print('lost')\n    open(sys.argv[1], 'w').close()"
    program.write_text(BEGIN.format("") + f"{body}\nexit_cleanly(main)\n")
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, program, tmp_path / "written"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    os.close(terminal)
    process.communicate(b"go on\n", timeout=DEADLINE)
    assert process.returncode == 0 and (tmp_path / "written").exists()


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_character_that_the_terminal_lacks_is_escaped(name: str, tmp_path: Path):
    done = run("", tmp_path, **ENCODINGS[name])
    encoding = {"strict": "ascii", "C": "ascii"}.get(name, name)
    escaped = "Grüße 漢字\n".encode(encoding, "backslashreplace").decode(encoding)
    assert done.returncode == 0
    assert (done.stdout.decode(encoding), done.stderr.decode(encoding)) == (3 * escaped,) * 2


def test_a_lone_surrogate_is_escaped(tmp_path: Path):
    """A name of a file that is not UTF-8, for example."""
    done = run("def main(): raise InputError('\\udcff: no such file')", tmp_path)
    assert (done.returncode, done.stderr) == (2, b"error: \\udcff: no such file\n")


def test_a_result_that_cannot_be_written_is_a_failure(tmp_path: Path):
    """Where the output is the work; at the end too, when the last buffer is written."""
    for program in ("", "def main(): print('result')"):
        done = run(program, tmp_path, ">/dev/full", "output_needed=True")
        assert done.returncode == 1
        message = b"failed: [Errno 28] No space left on device: 'standard output': free space\n"
        assert done.stderr.endswith(message)
        assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


def test_a_result_that_cannot_be_written_does_not_hide_another_error(tmp_path: Path):
    program = "def main():\n    print('result')\n    raise InputError('no such file')"
    done = run(program, tmp_path, ">/dev/full", "output_needed=True")
    assert (done.returncode, done.stderr) == (2, b"error: no such file\n")


def test_a_reader_that_has_seen_enough_is_no_failure(tmp_path: Path):
    program = "def main():\n    while True: print('result')"
    done = run(program, tmp_path, "> >(head -n 1 >/dev/null)", "output_needed=True")
    assert (done.returncode, done.stderr) == (0, b"")


def test_another_broken_pipe_is_a_failure(tmp_path: Path):
    """To the hub, for example: it says nothing about the console."""
    program = "def main(): raise BrokenPipeError(32, 'Broken pipe')"
    for needed in ("", "output_needed=True"):
        done = run(program, tmp_path, "", needed)
        assert (done.returncode, done.stderr) == (1, b"failed: [Errno 32] Broken pipe\n")


def test_a_terminal_that_is_switched_to_non_blocking_loses_nothing(tmp_path: Path):
    """A program that shares the terminal may do that; Python's own stream would raise."""
    program = """
    def main():
        os.set_blocking(1, False)
        for number in range(30_000):
            print(number)
    """
    done = run(program, tmp_path, "| (sleep 0.3; cat)")
    assert done.stdout.split() == [b"%d" % number for number in range(30_000)]


def test_programs_that_are_started_get_the_streams_too(tmp_path: Path):
    program = """
    import subprocess
    def main():
        child = "import os; [os.fstat(n) for n in (0, 1, 2)]"
        subprocess.run([sys.executable, "-c", child], check=True)
    """
    assert run(program, tmp_path, "<&- >&- 2>&-").returncode == 0


def test_a_data_tool_goes_on_without_its_console(tmp_path: Path):
    rows = [{"prompt": f"Grüße {n}?", "completion": f"漢字 {n}"} for n in range(10)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "data_tools.instruct", "--source", tmp_path / "pairs.jsonl"]
    command += ["--out", tmp_path / "out", "--context", "64", "--val-every", "5", "--show", "3"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=DEADLINE,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out" / "manifest.json").exists()
