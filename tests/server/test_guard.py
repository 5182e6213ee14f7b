"""Access: keys, host names, origins and the page's policy; the queue and bodies are bounded."""

import base64
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from minigpt_jax.sampling import sampling_params
from minigpt_jax.server.app import MAX_BODY_BYTES
from minigpt_jax.server.connection import DEADLINES
from minigpt_jax.server.request import Request
from tests.server.serving import (
    KEY,
    QUESTION,
    TIMEOUT,
    TINY,
    Client,
    InProcessServer,
    Reply,
    in_process_server,
    read_all,
    request_head,
    tiny_run,
    wait_until,
)

# http.client sends str as Latin-1, so this puts the UTF-8 bytes of the key into the header.
RAW_KEY = KEY.encode().decode("latin-1")
BEARER = f"Bearer {RAW_KEY}"
PROMPT = {"prompt": [1, 2, 3], "max_tokens": 3}
MIB = 2**20


@pytest.fixture(scope="module")
def guarded() -> Iterator[InProcessServer]:
    """A base model behind a key, with one slot and room for one waiting request."""
    with in_process_server(
        tiny_run(), DEADLINES, key=KEY, allowed_hosts=["Mine.Example"]
    ) as server:
        yield server


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


# ---- Keys ----


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", None),
        ("/page/main.js", None),
        ("/v1/models", None),
        ("/openapi.json", None),
        ("/v1/completions", PROMPT),
        ("/nothing", None),
        ("/health/", None),
    ],
)
@pytest.mark.parametrize("wrong", [None, "Bearer wrong", RAW_KEY, basic("wrong")])
def test_every_route_needs_the_key(guarded, path, body, wrong):
    headers = {} if wrong is None else {"authorization": wrong}
    reply = guarded.request(path, body, **headers)
    assert reply.status == 401
    assert json.loads(reply.body)["error"]["code"] == "invalid_api_key"
    scheme = "Basic " if path in ("/", "/page/main.js") else "Bearer"
    assert reply.headers["www-authenticate"].startswith(scheme)


def test_health_needs_no_key(guarded):
    assert guarded.request("/health").status == 200


@pytest.mark.parametrize("authorization", [BEARER, basic(KEY)])
def test_the_key_may_be_a_bearer_token_or_a_password(guarded, authorization):
    assert guarded.request("/v1/completions", PROMPT, authorization=authorization).status == 200
    assert guarded.request("/", authorization=authorization).status == 200


@pytest.mark.parametrize(
    "authorization",
    ["Basic !", "Basic", "Bearer", "Digest x", "Basic \xff", "bearer " + "x" * 9000],
)
def test_malformed_keys_are_wrong_keys(guarded, authorization):
    assert guarded.request("/", authorization=authorization).status == 401


def test_key_and_host_names_of_the_command_line_are_used(text_server):
    assert text_server.request("/v1/models").status == 401
    for host, status in (("mine.example", 200), ("other.example", 421)):
        reply = text_server.request("/v1/models", host=host, authorization=BEARER)
        assert reply.status == status


# ---- Hosts and origins ----


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.0.1",
        "",
        "localhost:80:80",
        "[::1",
        "mine.example@evil",
    ],
)
def test_requests_for_other_hosts_are_refused(guarded, host):
    for path in ("/", "/health", "/v1/models"):
        assert guarded.request(path, host=host, authorization=BEARER).status in (400, 421)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "mine.example", "localhost."],
)
def test_requests_for_own_host_names_are_allowed(guarded, host):
    assert guarded.request("/v1/models", host=host, authorization=BEARER).status == 200


def test_a_host_name_that_was_not_allowed_is_refused(server):
    assert server.request("/v1/models", host="mine.example").status == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://localhost", "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_requests_from_other_sites_are_refused(server, headers):
    status, error = server.error("/v1/chat/completions", QUESTION, host="localhost", **headers)
    assert (status, error["param"]) == (403, "Origin")


def test_requests_from_the_own_page_are_allowed(server):
    host = f"localhost:{server.port}"
    headers = {"origin": f"http://{host}", "sec_fetch_site": "same-origin", "host": host}
    reply = server.request("/v1/chat/completions", QUESTION | {"max_tokens": 1}, **headers)
    assert reply.status == 200
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_preflight_requests_and_form_bodies_are_refused(server):
    """What a browser sends for another site's page without asking first."""
    preflight = server.request("/v1/chat/completions", method="OPTIONS", origin="http://localhost")
    assert preflight.status == 405
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        error = server.error("/v1/chat/completions", QUESTION, content_type=content_type)
        assert error[0] == 415


# ---- The page ----


def test_the_page_may_run_only_its_own_script(server):
    reply = server.request("/")
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/html")
    policy = reply.headers["content-security-policy"]
    rules = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    expected = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert rules.items() >= expected.items()
    assert "unsafe" not in policy and "*" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["referrer-policy"] == "no-referrer"


# ---- What a server can hold ----


def test_a_base_model_does_not_chat(guarded):
    status, error = guarded.error("/v1/chat/completions", QUESTION, authorization=BEARER)
    assert status == 400
    assert "not finetuned" in error["message"] and "/v1/completions" in error["message"]
    models = guarded.request("/v1/models", authorization=BEARER)
    assert json.loads(models.body)["data"][0]["chat"] is False


def test_a_full_queue_tells_when_to_try_again(guarded):
    release = threading.Event()
    sampling = sampling_params(1, TINY, temperature=0.0)
    # The engine waits in `receive`, so the slot and the queue stay full.
    occupying = [Request([1, 2, 3], sampling, max_tokens=50)] * 2
    guarded.engine.submit(occupying, lambda i, delta: release.wait(TIMEOUT))
    try:
        full = guarded.request("/v1/completions", PROMPT, authorization=BEARER)
    finally:
        release.set()
    wait_until(lambda: guarded.health()["active"] == guarded.health()["queued"] == 0)
    assert full.status == 429 and int(full.headers["retry-after"]) > 0
    assert json.loads(full.body)["error"]["type"] == "rate_limit_error"


def test_concurrent_requests_are_complete_or_refused(guarded):
    body = PROMPT | {"max_tokens": 50, "stream": True}
    with ThreadPoolExecutor(6) as clients:
        pending = [
            clients.submit(guarded.request, "/v1/completions", body, authorization=BEARER)
            for _ in range(6)
        ]
        replies = [reply.result() for reply in pending]
    complete = [reply for reply in replies if reply.status == 200]
    assert len(complete) >= 2
    assert all(reply.body.endswith(b"data: [DONE]\n\n") for reply in complete)
    assert {reply.status for reply in replies} <= {200, 429}


def test_more_answers_than_the_server_can_hold_are_refused(guarded):
    status, error = guarded.error("/v1/completions", PROMPT | {"n": 3}, authorization=BEARER)
    assert (status, error["param"]) == (400, "n")


@pytest.mark.parametrize("chunked", [False, True])
def test_long_bodies_are_refused(server, chunked):
    memory = server.memory()
    for size in (MAX_BODY_BYTES + 1, 8 * MAX_BODY_BYTES):
        content = b'{"messages": [' + b" " * (size - 16) + b"]}"
        reply = send_body(server, content, chunked)
        assert reply.status == 413 and json.loads(reply.body)["error"]["message"]
    assert server.memory() - memory < 100 * MIB


def send_body(server: Client, content: bytes, chunked: bool) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)
    headers = {"content-type": "application/json"}
    body = content
    if chunked:
        body = iter([content[i : i + 65536] for i in range(0, len(content), 65536)])
    else:
        headers["content-length"] = str(len(content))
    connection.request("POST", "/v1/chat/completions", body, headers, encode_chunked=chunked)
    response = connection.getresponse()
    try:
        return Reply(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def test_a_body_of_the_maximum_length_is_accepted(server):
    body = json.dumps(QUESTION | {"max_tokens": 1}).encode()
    padded = body + b" " * (MAX_BODY_BYTES - len(body))
    assert server.request("/v1/chat/completions", padded).status == 200


def test_an_endless_body_is_cut_off(server):
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent = 0
    with server.connect() as client:
        client.sendall(request_head("/v1/completions", "Transfer-Encoding: chunked") + b"\r\n")
        with pytest.raises(OSError):
            while sent < 1000 * MAX_BODY_BYTES:
                client.sendall(chunk)
                sent += len(chunk)
    assert sent < 100 * MAX_BODY_BYTES


# ---- What responses contain ----


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /%00%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/models/RUNS HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST /v1/completions HTTP/1.0\r\n\r\n",
    ],
)
def test_responses_contain_no_internals(server, chat_run, request_bytes):
    runs = str(chat_run.parent).encode()
    with server.connect() as client:
        client.sendall(request_bytes.replace(b"RUNS", runs))
        client.shutdown(socket.SHUT_WR)
        response = read_all(client)
    assert not re.match(rb"HTTP/1.1 5", response), response
    content = response.lower().replace(b"minigpt-jax", b"")
    for internal in (runs, b"traceback", b"python", b"uvicorn", b"site-packages"):
        assert internal not in content
