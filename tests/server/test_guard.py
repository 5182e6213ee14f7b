"""Access: keys, host names, origins and the page's policy; the queue and bodies are bounded."""

import base64
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from minigpt_jax.sampling import sampling_params
from minigpt_jax.server.connection import DEADLINES
from minigpt_jax.server.request import Request
from tests.server.serving import (
    KEY,
    QUESTION,
    TIMEOUT,
    TINY,
    InProcessServer,
    in_process_server,
    read_all,
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
        tiny_run(),
        DEADLINES,
        key=KEY,
        allowed_hosts=["Mine.Example", "localhost:8443", "tls.example:443"],
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
        ("/v1/models/", None),
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


@pytest.mark.parametrize("path", ["/health", "/health/"])
def test_health_needs_no_key(guarded, path):
    assert guarded.request(path).status == 200


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
        # IPv6 addresses have brackets there.
        "::1",
        "::ffff:127.0.0.1",
        "fe80::1%mine.example",
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


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://mine.example", 200),
        ("http://MINE.example:8080", 200),
        # What stands for a port that a browser leaves out.
        ("https://tls.example", 200),
        ("http://tls.example", 403),
        ("https://localhost:8443", 200),
        # Allowed with another port only: another program of this machine.
        ("http://localhost:8080", 403),
        ("http://localhost", 403),
        ("https://mine.example.evil.example", 403),
        ("https://evil.example/mine.example", 403),
        ("ftp://mine.example", 403),
        ("mine.example", 403),
        ("null", 403),
    ],
)
def test_behind_a_proxy_pages_of_an_allowed_name_may_ask(guarded, origin, status):
    """nginx, as it comes, sends its own address in Host."""
    headers = {"origin": origin, "host": "127.0.0.1:8000", "authorization": BEARER}
    reply = guarded.request("/v1/completions", PROMPT, sec_fetch_site="same-origin", **headers)
    assert reply.status == status
    if status == 403:
        message = json.loads(reply.body)["error"]["message"]
        assert origin in message and "127.0.0.1:8000" in message and "--allowed-host" in message
    # What the browser calls another site is refused, whatever its name.
    for site in ("cross-site", "same-site"):
        refused = guarded.request("/v1/completions", PROMPT, sec_fetch_site=site, **headers)
        assert refused.status == 403


def test_errors_repeat_little_of_what_a_client_sent(guarded):
    for header in ("host", "origin"):
        reply = guarded.request(
            "/v1/completions", PROMPT, authorization=BEARER, **{header: "x" * 9000}
        )
        assert reply.status in (403, 421) and len(reply.body) < 1000
    long = "x" * 400_000
    bodies = ({"max" + "-" * 400_000 + "token": 3}, {"logit_bias": {long: "a"}}, {"model": long})
    for body in bodies:
        reply = guarded.request("/v1/completions", PROMPT | body, authorization=BEARER)
        assert reply.status in (200, 400, 404) and len(reply.body) < 2000


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
