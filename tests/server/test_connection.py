"""Clients that send or read slowly lose their connection and do not delay others."""

import json
import select
import socket
import time
from collections.abc import Iterator

import pytest

from minigpt_jax.server.connection import DEADLINES, Deadlines
from tests.server.serving import (
    TIMEOUT,
    InProcessServer,
    in_process_server,
    read_all,
    request_head,
    tiny_run,
    wait_until,
)

# Short, so that the tests need not wait long, and far more than a normal request needs.
IMPATIENT = Deadlines(receive=3.0, send=1.0)
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD = request_head("/v1/completions", "Content-Length: 500")


@pytest.fixture(scope="module")
def impatient() -> Iterator[InProcessServer]:
    with in_process_server(tiny_run(), IMPATIENT) as server:
        yield server


def test_the_deadlines_are_those_of_the_documentation():
    assert Deadlines(receive=10, send=60) == DEADLINES


def test_slow_senders_are_disconnected_and_delay_nobody(impatient):
    beginnings = (
        b"",
        b"POST /v1/compl",
        HEAD,
        HEAD + b"\r\n",
        HEAD + b"\r\n" + b'{"prompt": [',
    )
    started = time.monotonic()
    clients = []
    for i in range(50):
        client = impatient.connect()
        client.sendall(beginnings[i % len(beginnings)])
        clients.append(client)
    for _ in range(5):
        body = {"prompt": [1, 2, 3], "max_tokens": 5}
        assert impatient.request("/v1/completions", body).status == 200
    # One byte at a time does not extend the deadline.
    dripping = clients[1::5] + clients[4::5]
    drip_until_answered(dripping, end=started + TIMEOUT)
    for i, client in enumerate(clients):
        try:
            response = read_all(client)
        except ConnectionResetError:
            # The server closed the connection while a byte was on its way.
            assert client in dripping
            continue
        if beginnings[i % len(beginnings)]:
            assert response.startswith(b"HTTP/1.1 408")
            assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["message"]
        else:
            assert response == b""
    assert time.monotonic() - started > 0.9 * IMPATIENT.receive


def drip_until_answered(clients: list[socket.socket], end: float) -> None:
    """Send one byte at a time over all `clients` until each has got an answer."""
    unanswered = clients
    while unanswered:
        assert time.monotonic() < end
        answered = select.select(unanswered, [], [], 0.1)[0]
        unanswered = [client for client in unanswered if client not in answered]
        for client in unanswered:
            client.sendall(b" ")


def test_the_deadline_begins_again_with_each_request_of_a_connection(impatient):
    with impatient.connect() as client:
        for _ in range(3):
            client.sendall(HEALTH)
            response = b""
            while not response.endswith(b"}"):
                response += client.recv(65536)
            assert response.startswith(b"HTTP/1.1 200")
        client.sendall(HEALTH[:30])
        assert read_all(client).startswith(b"HTTP/1.1 408")


def test_a_client_that_stops_reading_is_disconnected(impatient):
    # Together more than the buffers of both sockets.
    num_requests = 1000
    get_page = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    page = impatient.request("/openapi.json").body
    idle_tasks = impatient.health()["tasks"]
    with impatient.connect() as client:
        client.sendall(get_page * num_requests)
        # A task of the server waits until it can send more, and ends when it is disconnected.
        wait_until(lambda: impatient.health()["tasks"] > idle_tasks)
        wait_until(lambda: impatient.health()["tasks"] == idle_tasks)
        try:
            received = len(read_all(client))
        except ConnectionResetError:
            return
    assert received < num_requests * len(page)


@pytest.mark.parametrize(
    ("head", "filling", "status"),
    [
        # Longer than a socket's buffers: a reset would take the error from the client.
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"x" * 2**20, 431),
        (b"POST / HTTP/9.9 what\r\n\r\n", b"y" * 2**20, 400),
    ],
)
def test_a_client_that_sends_on_after_an_error_gets_it(impatient, head, filling, status):
    with impatient.connect() as client:
        client.sendall(head + filling)
        response = read_all(client)
    assert response.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in response.lower()
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_a_client_that_never_stops_sending_is_disconnected(impatient):
    sent = 0
    with impatient.connect() as client, pytest.raises(OSError):
        while sent < 10**9:
            sent += client.send(b"x" * 2**16)
    assert sent < 10**8


def test_a_body_of_two_lengths_is_refused(impatient):
    """A proxy may believe the other one: the rest would be the next request of another client."""
    body = b"0\r\n\r\n"
    head = request_head("/v1/completions", "Transfer-Encoding: chunked", "Content-Length: 9")
    with impatient.connect() as client:
        client.sendall(head + b"\r\n" + body + HEALTH)
        response = read_all(client)
    assert response.startswith(b"HTTP/1.1 400") and response.count(b"HTTP/1.1") == 1


def test_a_websocket_client_gets_a_response_and_the_terminal_no_advice(server):
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    with server.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 200")
    with server.connect() as client:
        client.sendall(b"what\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 400")
    *_, last_line = server.log.read_text().splitlines()
    assert last_line.startswith("ready: ")
