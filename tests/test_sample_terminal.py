"""A conversation with `python sample.py` in a real terminal, with Ctrl-C and Ctrl-D as keys."""

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.known_answers import WORDS, make_chat_run
from tests.test_sample import TIMEOUT, command

PROMPT = r"\n> "
WORD = f"({'|'.join(WORDS)}) "
# Replaces itself by the real program once the pseudo-terminal is its controlling one. `preexec_fn`
# would fork this process, which is full of JAX's threads.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Terminal:
    """The real program behind a pseudo-terminal."""

    def __init__(self, *arguments: str, cwd: Path):
        self._side, child = pty.openpty()
        # Strict UTF-8, as in the usual locales.
        how = command(*arguments, TERM="dumb", PYTHONIOENCODING="utf-8:strict")
        how["args"] = [sys.executable, "-c", TAKE_TERMINAL, *how["args"][1:]]
        self.process = subprocess.Popen(
            **how, cwd=cwd, stdin=child, stdout=child, stderr=child, start_new_session=True
        )
        os.close(child)
        fcntl.fcntl(self._side, fcntl.F_SETFL, os.O_NONBLOCK)
        self.screen = ""

    def type(self, text: str | bytes) -> None:
        os.write(self._side, text if isinstance(text, bytes) else text.encode())

    def wait_for(self, pattern: str) -> str:
        """What appeared since the last call, up to and with `pattern`."""
        deadline = time.monotonic() + TIMEOUT
        is_open = True
        while not (match := re.search(pattern, self.screen)):
            found = f"waited for {pattern!r}, found {self.screen[-2000:]!r}"
            assert is_open and time.monotonic() < deadline, found
            is_open = self._read()
        seen = self.screen[: match.end()]
        self.screen = self.screen[match.end() :]
        return seen

    def wait_for_end(self) -> int:
        """The exit code."""
        while self._read():
            pass
        os.close(self._side)
        return self.process.wait(timeout=TIMEOUT)

    def _read(self) -> bool:
        """Add to the screen what has come; False when the program has closed its side."""
        if not select.select([self._side], [], [], 0.2)[0]:
            return self.process.poll() is None
        try:
            content = os.read(self._side, 65536)
        except OSError:
            return False
        self.screen += content.decode(errors="replace").replace("\r\n", "\n")
        return True


@pytest.fixture
def terminal(tmp_path: Path):
    run = make_chat_run(tmp_path / "chat")
    opened = Terminal(
        "--run", str(run), "--max-new-tokens", "16000", "--system", "Be brief.", cwd=tmp_path
    )
    yield opened
    if opened.process.poll() is None:
        opened.process.kill()
        opened.process.wait()


def test_a_conversation_from_the_first_line_to_ctrl_d(terminal: Terminal, tmp_path: Path):
    assert "Chat; /help lists the commands." in terminal.wait_for(PROMPT)

    terminal.type("/help\n")
    shown = terminal.wait_for(PROMPT)
    assert all(word in shown for word in ("/reset", "/save", "/quit", "Ctrl-C", "Ctrl-D"))

    # Ctrl-C stops an answer, which would have 16,000 words, but not the program.
    terminal.type("How is the weather?\n")
    terminal.wait_for(WORD + WORD)
    terminal.type("\x03")
    assert "[stopped]" in terminal.wait_for(PROMPT)
    assert terminal.process.poll() is None

    # A message over two lines.
    terminal.type("First line\\\n")
    terminal.wait_for("  ")
    terminal.type("second line\n")
    terminal.wait_for(WORD)
    terminal.type("\x03")
    terminal.wait_for(PROMPT)

    terminal.type("/save talk.txt\n")
    assert "Saved to talk.txt." in terminal.wait_for(PROMPT)
    check_saved((tmp_path / "talk.txt").read_text(encoding="utf-8"))

    terminal.type("/save /nowhere/talk.txt\n")
    assert "Could not be saved" in terminal.wait_for(PROMPT)

    terminal.type("/reset\n")
    assert "A new conversation begins." in terminal.wait_for(PROMPT)
    terminal.type("/save empty.txt\n")
    assert "nothing to save yet" in terminal.wait_for(PROMPT)
    assert not (tmp_path / "empty.txt").exists()

    # After an empty line, and after bytes that are not text, the conversation continues.
    terminal.type("\n")
    terminal.wait_for(PROMPT)
    terminal.type(b"\xff\xfe\n")
    assert "UTF-8" in terminal.wait_for(PROMPT)

    terminal.type("\x04")
    assert terminal.wait_for_end() == 0
    assert "Traceback" not in terminal.screen


def check_saved(text: str) -> None:
    """The conversation as it stands when it is saved."""
    system, question, answer, second_question, second_answer = text.strip().split("\n\n")
    assert system == "system: Be brief."
    assert question == "user: How is the weather?"
    assert second_question == "user: First line\nsecond line"
    for saved in (answer, second_answer):
        assert saved.startswith("assistant: ")
        assert set(saved.removeprefix("assistant: ").split()) <= set(WORDS)
