"""Who may ask, how much and for how long: a base run behind a key, with one slot and a short queue."""

import base64
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from minigpt_jax.server.app import policy
from tests.server.serving import QUESTION, ROOT, Running, serving, until

KEY = "clé secrète à"
BEARER = f"Bearer {KEY}".encode().decode(
    "latin-1"
)  # what a client sends that puts UTF-8 on the wire
PROMPT = {"prompt": "The river", "max_tokens": 3}


@pytest.fixture(scope="module")
def guarded(text_run, tmp_path_factory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(
        text_run,
        log,
        "--slots",
        "1",
        "--queue",
        "1",
        "--allowed-host",
        "Mine.Example",
        MINIGPT_API_KEY=KEY,
    ) as running:
        yield running
        assert running.process.poll() is None and "Traceback" not in log.read_text()


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


def test_every_route_but_health_wants_the_key(guarded):
    assert guarded.ask("/health")[0] == 200
    for path, body in (
        ("/", None),
        ("/v1/models", None),
        ("/openapi.json", None),
        ("/v1/completions", PROMPT),
        ("/nothing", None),
        ("/health/", None),
    ):
        for given in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": KEY.encode().decode("latin-1")},
            {"authorization": basic("wrong")},
        ):
            status, headers, content = guarded.ask(path, body, **given)
            assert status == 401 and json.loads(content)["error"]["code"] == "invalid_api_key"
            assert headers["www-authenticate"].startswith("Basic " if path == "/" else "Bearer")
    for given in (BEARER, basic(KEY)):
        assert guarded.ask("/v1/completions", PROMPT, authorization=given)[0] == 200
        assert guarded.ask("/", authorization=given)[0] == 200
    for odd in ("Basic !", "Basic", "Bearer", "Digest x", "Basic \xff", "bearer " + "x" * 9000):
        assert guarded.ask("/", authorization=odd)[0] == 401


def test_other_hosts_are_refused(guarded, server):
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.0.1",
        "",
        "localhost:80:80",
        "[::1",
        "mine.example@evil",
    ):
        for path in ("/", "/health", "/v1/models"):
            assert guarded.ask(path, host=host, authorization=BEARER)[0] in (400, 421), host
    for host in (
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1:8000",
        "[::1]:8000",
        "mine.example",
        "localhost.",
    ):
        assert guarded.ask("/v1/models", host=host, authorization=BEARER)[0] == 200, host
    assert server.ask("/v1/models", host="mine.example")[0] == 421


def test_other_sites_may_not_ask(server):
    own = f"http://localhost:{server.port}"
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": own, "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ):
        status, error = server.error(
            "/v1/chat/completions", QUESTION, host=f"localhost:{server.port}", **headers
        )
        assert (status, error["param"]) == (403, "Origin")
    mine = {"origin": own, "sec_fetch_site": "same-origin", "host": f"localhost:{server.port}"}
    status, headers, _ = server.ask("/v1/chat/completions", QUESTION | {"max_tokens": 1}, **mine)
    assert status == 200 and not any(name.startswith("access-control") for name in headers)
    assert server.ask("/v1/chat/completions", method="OPTIONS", origin=own)[0] == 405
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert server.error("/v1/chat/completions", QUESTION, content_type=kind)[0] == 415


def test_the_page_runs_its_own_script_only(server):
    status, headers, content = server.ask("/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    rules = dict(
        part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";")
    )
    for name, value in {
        "default-src": "'none'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }.items():
        assert rules[name] == value
    assert (
        "unsafe" not in headers["content-security-policy"]
        and "*" not in headers["content-security-policy"]
    )
    assert (
        headers["x-content-type-options"] == "nosniff"
        and headers["cache-control"] == "no-store"
        and headers["referrer-policy"] == "no-referrer"
    )
    assert headers["content-security-policy"] == policy(content.decode())


def test_the_policy_names_the_hashes_of_script_and_style():
    # Hashes of "alert(1)" and "b {}\n", as a browser prints them.
    given = policy("<style>b {}\n</style><p><script>alert(1)</script>")
    assert "script-src 'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='" in given
    assert re.search(
        r"style-src 'sha256-[A-Za-z0-9+/]{43}='", given
    ) and "style-src 'none'" in policy("<p>")


def test_a_base_run_does_not_chat(guarded):
    status, error = guarded.error("/v1/chat/completions", QUESTION, authorization=BEARER)
    assert (
        status == 400
        and "not finetuned" in error["message"]
        and "/v1/completions" in error["message"]
    )
    assert (
        json.loads(guarded.ask("/v1/models", authorization=BEARER)[2])["data"][0]["chat"] is False
    )


def test_a_full_queue_says_when_to_come_back(guarded):
    long = {"prompt": "The river", "max_tokens": 250, "stream": True, "n": 1}
    with ThreadPoolExecutor(6) as clients:
        answers = list(
            clients.map(
                lambda _: guarded.ask("/v1/completions", long, authorization=BEARER), range(6)
            )
        )
    assert {status for status, _, _ in answers} == {200, 429} and sum(
        status == 200 for status, _, _ in answers
    ) >= 2
    for status, headers, content in answers:
        if status == 429:
            assert (
                int(headers["retry-after"]) > 0
                and json.loads(content)["error"]["type"] == "rate_limit_error"
            )
        else:
            assert content.endswith(b"data: [DONE]\n\n")
    status, error = guarded.error("/v1/completions", PROMPT | {"n": 3}, authorization=BEARER)
    assert (status, error["param"]) == (
        400,
        "n",
    )  # could never be taken whole, however often it is tried


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_bounded(server, chunked):
    memory = server.memory()
    for size in (10**6 + 1, 8 * 10**6):
        content = b'{"messages": [' + b" " * (size - 16) + b"]}"
        sent = iter([content[i : i + 65536] for i in range(0, size, 65536)]) if chunked else content
        status, _, answer = send(server, sent, size)
        assert status == 413 and json.loads(answer)["error"]["message"]
    assert server.memory() - memory < 100 * 2**20
    padded = json.dumps(QUESTION | {"max_tokens": 1}).encode()
    assert server.ask("/v1/chat/completions", padded + b" " * (10**6 - len(padded)))[0] == 200


def send(server: Running, content: bytes | Iterator[bytes], size: int) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"content-type": "application/json"} | (
        {} if not isinstance(content, bytes) else {"content-length": str(size)}
    )
    connection.request(
        "POST",
        "/v1/chat/completions",
        content,
        headers,
        encode_chunked=not isinstance(content, bytes),
    )
    answer = connection.getresponse()
    try:
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_a_body_without_end_is_cut_off(server):
    client = server.connect()
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    sent, piece = 0, b"10000\r\n" + b" " * 65536 + b"\r\n"
    with pytest.raises(OSError):
        while sent < 10**9:
            client.sendall(piece)
            sent += len(piece)
    assert sent < 10**8
    client.close()


HEADERS = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 500\r\n"


def test_slow_senders_hold_nobody_up_and_are_sent_away(server):
    openings = (
        b"",
        b"POST /v1/chat",
        HEADERS,
        HEADERS + b"\r\n",
        HEADERS + b"\r\n" + b'{"messages": [',
    )
    slow = [server.connect() for _ in range(50)]
    began = time.monotonic()
    for i, client in enumerate(slow):
        client.sendall(openings[i % len(openings)])
    for _ in range(5):  # meanwhile
        assert server.ask("/v1/chat/completions", QUESTION | {"max_tokens": 5})[0] == 200
    eager = dripping = slow[1::5] + slow[4::5]
    while dripping:  # one letter at a time buys no time
        assert time.monotonic() - began < 40
        answered = select.select(dripping, [], [], 0.2)[0]
        dripping = [client for client in dripping if client not in answered]
        for client in dripping:
            client.sendall(b" ")
    for i, client in enumerate(slow):
        try:
            said = everything(client)
        except ConnectionResetError:  # a letter crossed the answer
            assert client in eager
            continue
        assert said.startswith(b"HTTP/1.1 408") if i % len(openings) else said == b""
        if said:
            assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert 9 < time.monotonic() - began < 60


def everything(client: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    parts = b""
    with client:
        while part := client.recv(65536):
            parts += part
    return parts


def test_a_connection_serves_many_requests_and_slow_ones_count_from_their_beginning(server):
    with server.connect() as client:
        for _ in range(3):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            said = b""
            while not said.endswith(b"}"):
                said += client.recv(65536)
            assert said.startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /health HTTP/1.1\r\nHost:")
        assert everything(client).startswith(b"HTTP/1.1 408")


def test_no_answer_gives_anything_away(server, chat_run):
    oddities = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /%00%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/models/"
        + str(chat_run).encode()
        + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST /v1/completions HTTP/1.0\r\n\r\n",
    ]
    for sent in oddities:
        with server.connect() as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            said = everything(client)
        assert not re.match(rb"HTTP/1.1 5", said), said
        for secret in (
            str(chat_run.parent).encode(),
            b"Traceback",
            b"python",
            b"uvicorn",
            b"site-packages",
        ):
            assert secret not in said.lower().replace(b"minigpt-jax", b"")


def test_sigterm_lets_running_answers_finish(chat_run, tmp_path):
    with serving(chat_run, tmp_path / "log", "--grace", "60") as running:
        stream = running.stream(seed=1, max_tokens=250)
        running.process.send_signal(signal.SIGTERM)
        until(lambda: "finishing" in running.log.read_text())
        status, error = running.error("/v1/chat/completions", QUESTION)
        assert status == 503 and error["type"] == "server_error"
        said = everything(stream)
        assert b"data: [DONE]" in said and b'"finish_reason":"' in said
        assert running.process.wait(60) == 0


@pytest.mark.parametrize("how", ["deadline", "second signal"])
def test_nothing_holds_the_end_up(chat_run, tmp_path, how):
    with serving(
        chat_run, tmp_path / "log", "--grace", "0.2" if how == "deadline" else "600"
    ) as running:
        streams = [running.stream(seed=i, max_tokens=250, n=16, stop=None) for i in range(2)]
        running.process.send_signal(signal.SIGINT)
        until(lambda: "finishing" in running.log.read_text())
        if how == "deadline":
            assert any(
                b"stopped before the answer was complete" in everything(stream)
                for stream in streams
            )
            assert running.process.wait(60) == 0
        else:
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(10) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "without a key"),
        (["--host", "::"], "without a key"),
        (["--host", "example.com"], "without a key"),
        (["--api-key", ""], "the key is empty"),
        (["--port", "70000"], "out of range"),
        (["--slots", "0"], "out of range"),
        (["--grace", "nan"], "out of range"),
        (["--runs", "nothing-here"], "no trained run"),
        (["--run", "any", "--host", "203.0.113.7", "--api-key", "k"], "cannot listen"),
    ],
)
def test_what_is_unsafe_or_cannot_be_ends_in_one_line(arguments, says, tmp_path):
    own = {name: value for name, value in os.environ.items() if name != "MINIGPT_API_KEY"} | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "minigpt_jax.server", "--port", "0", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=120
    )
    assert (
        done.returncode == 2
        and says in done.stderr
        and done.stderr.count("\n") == 1
        and done.stderr.startswith("error: ")
    )


def test_a_taken_port_is_named(server, chat_run):
    command = [
        sys.executable,
        "-m",
        "minigpt_jax.server",
        "--run",
        str(chat_run),
        "--port",
        str(server.port),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and str(server.port) in done.stderr and done.stderr.count("\n") == 1
