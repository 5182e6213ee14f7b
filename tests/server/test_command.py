"""The command: it starts quickly, refuses unsafe flags, and a signal lets answers finish."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.runtime.ctrl_c import SAME_REQUEST_SECONDS
from minigpt_jax.server.command import parse_options
from tests.server.serving import (
    QUESTION,
    ROOT,
    TIMEOUT,
    raw_request,
    read_all,
    server_process,
    wait_until,
)

COMMAND = [sys.executable, "-m", "minigpt_jax.server"]


def run_command(
    arguments: Sequence[str], folder: Path, command: Sequence[str] = COMMAND
) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name != "MINIGPT_API_KEY"}
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=inherited | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "without a key"),
        (["--host", "::"], "without a key"),
        (["--host", "example.com"], "without a key"),
        (["--api-key", ""], "the key is empty"),
        (["--port", "70000"], "out of range"),
        (["--slots", "0"], "out of range"),
        (["--grace", "nan"], "out of range"),
        (["--runs", "nothing-here"], "no trained run"),
        (["--run", "any", "--run", "./any"], "expected it once"),
        (["--run", "any", "--host", "203.0.113.7", "--api-key", "k"], "cannot listen"),
    ],
)
def test_unsafe_or_impossible_flags_end_with_one_line(arguments, message, tmp_path):
    done = run_command(["--port", "0", *arguments], tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        "http://a.example",
        "a.example/",
        "*.example",
        "a,b",
        "a b",
        "me@a",
        "",
        ".",
        "a:70000",
        "[::1",
    ],
)
def test_a_name_that_no_browser_sends_cannot_be_allowed(name):
    with pytest.raises(InputError, match="expected a name, or NAME:PORT"):
        parse_options(["--allowed-host", name])


def test_allowed_names_are_as_browsers_send_them():
    names = ["Chat.example:443", "münchen.example", "::1", "my_host"]
    arguments = [part for name in names for part in ("--allowed-host", name)]
    sent = ["Chat.example:443", "xn--mnchen-3ya.example", "::1", "my_host"]
    assert parse_options(arguments).allowed_host == sent


def test_a_port_that_is_in_use_ends_with_one_line(server, chat_run):
    done = run_command(["--run", str(chat_run), "--port", str(server.port)], ROOT)
    assert done.returncode == 2
    assert str(server.port) in done.stderr and done.stderr.count("\n") == 1


def test_sigterm_lets_running_answers_finish(chat_run, tmp_path):
    with server_process(chat_run, tmp_path / "log", "--grace", "600") as server:
        # Long enough that it is still running when the next request arrives.
        stream = server.stream(seed=1, max_tokens=250, n=16)
        # make and `uv run` send a second one right after the first: it is the same request.
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: "finishing" in server.log.read_text())
        short = QUESTION | {"max_tokens": 1}
        wait_until(lambda: server.request("/v1/chat/completions", short).status == 503)
        assert server.health()["status"] == "draining"
        status, error = server.error("/v1/chat/completions", QUESTION)
        assert status == 503 and error["type"] == "server_error"
        response = read_all(stream)
        assert b"data: [DONE]" in response and b'"finish_reason":"' in response
        assert server.process.wait(TIMEOUT) == 0


@pytest.mark.campaign
def test_the_end_of_the_grace_period_ends_running_answers(chat_run, tmp_path):
    with server_process(chat_run, tmp_path / "log", "--grace", "0.2") as server:
        streams = [server.stream(seed=i, max_tokens=250, n=16) for i in range(2)]
        server.process.send_signal(signal.SIGINT)
        responses = [read_all(stream) for stream in streams]
        # Two times sixteen answers for four slots: at least one of them cannot be complete.
        assert any(b"stopped before the answer was complete" in r for r in responses)
        assert server.process.wait(TIMEOUT) == 0


@pytest.mark.campaign
def test_a_later_signal_ends_the_process_immediately(chat_run, tmp_path):
    flags = ("--grace", "600", "--queue", "1000")
    with server_process(chat_run, tmp_path / "log", *flags) as server, ExitStack() as connections:
        # Many times what it can answer before the later signal.
        many = raw_request("/v1/chat/completions", QUESTION | {"n": 16, "max_tokens": 250})
        for _ in range(40):
            connections.enter_context(server.connect()).sendall(many)
        wait_until(lambda: server.health()["queued"] > 500)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: "finishing" in server.log.read_text())
        time.sleep(SAME_REQUEST_SECONDS)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIMEOUT) == 128 + signal.SIGTERM
