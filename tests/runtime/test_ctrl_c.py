"""Ctrl-C ends a command with one line and code 130, whenever and however often it is pressed."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from minigpt_jax.runtime.ctrl_c import INTERRUPTED, SAME_REQUEST_SECONDS
from tests.harness import ROOT, tracked_files

DEADLINE = 120
PRESS = "os.kill(os.getpid(), signal.SIGINT)"


def start(program: str, folder: Path) -> subprocess.Popen:
    """A command whose `main` is the last function of `program`."""
    begin = """
    import os, signal, sys, threading, time
    from minigpt_jax.runtime.program import begin_program, exit_cleanly
    begin_program()
    """
    text = textwrap.dedent(begin) + textwrap.dedent(program) + "\nexit_cleanly(main)\n"
    return subprocess.Popen(
        [sys.executable, "-c", text],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ends(program: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `program`."""
    process = start(program, folder)
    out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err


def test_the_work_can_clean_up(tmp_path: Path):
    code, out, err = ends(
        f"""
        def main():
            try:
                {PRESS}
                time.sleep(60)
            finally:
                print("cleaned up")
        """,
        tmp_path,
    )
    assert (code, out, err) == (INTERRUPTED, "cleaned up\n", "\ninterrupted\n")


def test_pressing_again_and_again_does_not_disturb_the_clean_up(tmp_path: Path):
    code, out, err = ends(
        f"""
        def main():
            try:
                {PRESS}
                time.sleep(60)
            finally:
                for _ in range(3):
                    {PRESS}
                    time.sleep(0.05)
                print("cleaned up")
        """,
        tmp_path,
    )
    assert (code, out, err) == (INTERRUPTED, "cleaned up\n", "\ninterrupted\n")


def test_a_later_press_ends_a_clean_up_that_takes_long(tmp_path: Path):
    code, out, err = ends(
        f"""
        def main():
            try:
                {PRESS}
                time.sleep(60)
            finally:
                time.sleep({SAME_REQUEST_SECONDS})
                {PRESS}
                print("not reached")
        """,
        tmp_path,
    )
    assert (code, out, err) == (INTERRUPTED, "", "\ninterrupted\n")


@pytest.mark.parametrize(
    "content",
    [
        f"import os, signal\n{PRESS}",
        # numpy, for one, makes an ImportError of whatever an extension raises.
        f"import os, signal\ntry:\n    {PRESS}\nexcept BaseException: raise ImportError('broken')",
    ],
)
def test_an_import_is_ended_at_once(content: str, tmp_path: Path):
    (tmp_path / "slow_import.py").write_text(content)
    for program in ("def main(): import slow_import", "import slow_import\ndef main(): pass"):
        assert ends(program, tmp_path) == (INTERRUPTED, "", "\ninterrupted\n")


@pytest.mark.parametrize(
    "work",
    [
        # A library may answer with an error of its own,
        f"try:\n        {PRESS}\n    except BaseException as e: raise ValueError('stopped') from e",
        # and Python drops what is raised here.
        f"type('T', (), {{'__del__': lambda _: {PRESS}}})()\n    time.sleep(60)",
    ],
)
def test_no_other_exception_is_shown(work: str, tmp_path: Path):
    code, _, err = ends(f"def main():\n    {work}", tmp_path)
    assert (code, err) == (INTERRUPTED, "\ninterrupted\n")


def test_a_press_while_an_error_is_printed_is_no_traceback(tmp_path: Path):
    code, _, err = ends(
        f"""
        from minigpt_jax.errors import InputError
        class Wrong(InputError):
            def __str__(self):
                {PRESS}
                return "wrong"
        def main():
            raise Wrong
        """,
        tmp_path,
    )
    assert (code, err) == (INTERRUPTED, "\ninterrupted\n")


def test_a_press_after_the_work_is_no_traceback(tmp_path: Path):
    """While Python waits for threads at its exit, and while it takes itself down."""
    code, _, err = ends(
        f"""
        def main():
            threading.Thread(target=time.sleep, args=(0.5,)).start()
            threading.Timer(0.2, lambda: {PRESS}).start()
        """,
        tmp_path,
    )
    assert (code, err) == (INTERRUPTED, "\ninterrupted\n")
    code, _, err = ends(
        """
        class AtTheVeryEnd:
            def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
                kill(pid, number)
        def main():
            sys.modules["kept"] = AtTheVeryEnd()
        """,
        tmp_path,
    )
    assert (code, err) == (0, "")


def test_ctrl_c_stays_ignored_where_it_was(tmp_path: Path):
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(f"def main():\n    {PRESS}\n    print('done')", tmp_path)
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert process.communicate(timeout=DEADLINE) == ("done\n", "")


def commands() -> list[str]:
    """Every file that runs as a command."""
    found = [name for name in tracked_files() if name.endswith(".py")]
    product = [n for n in found if n.startswith(("minigpt_jax/", "data_tools/", "sample.py"))]
    return [n for n in product if "exit_cleanly(main)" in (ROOT / n).read_text()]


def test_every_command_handles_ctrl_c_first():
    assert {"sample.py", "minigpt_jax/server/__main__.py", "data_tools/index.py"} <= set(commands())
    beginning = re.compile(
        r'"""(?:.|\n)*?"""\n\n'
        r"from minigpt_jax\.runtime\.program import begin_program, exit_cleanly\n\n"
        r'if __name__ == "__main__":\n    begin_program\('
    )
    for name in commands():
        assert beginning.match((ROOT / name).read_text()), name
    # What runs before that statement.
    for package in ("minigpt_jax", "minigpt_jax/runtime", "data_tools"):
        assert not re.search("^(import|from)", (ROOT / package / "__init__.py").read_text(), re.M)


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "data_tools.verify"],
        ["sample.py", "--prompt", "Hi", "--run"],
        ["-m", "minigpt_jax.server", "--port", "0", "--run"],
        ["-m", "minigpt_jax", "score", "bits", "--source", "x", "--run"],
    ],
    ids=["verify", "sample", "server", "minigpt"],
)
def test_a_real_command_ends_while_it_loads(command: list[str], tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, *command, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "numpy" not in maps.read_text():
        time.sleep(0.001)
    for _ in range(3):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
    output, _ = process.communicate(timeout=DEADLINE)
    assert "Traceback" not in output and "Exception ignored" not in output
    # 2: on a slow machine, it had refused the empty folder before the first press.
    assert process.returncode in (INTERRUPTED, 2), output
