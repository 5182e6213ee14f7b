"""Many clients at once, and clients that leave: every answer is its own, and nothing stays behind."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.serving import Running, until

ASKED = [
    {
        "messages": [
            {"role": "user", "content": "The river reads a stone. " * (i % 7) + f"Light {i % 11}"}
        ],
        "max_tokens": 1 + (7 * i) % 31,
        "temperature": 0.0 if i % 3 else 1.0,
        "seed": i,
        "top_p": 1.0 if i % 2 else 0.9,
        "logprobs": i % 5 == 0,
    }
    for i in range(64)
]


def answer(server: Running, body: dict) -> tuple[str, str]:
    status, _, content = server.ask("/v1/chat/completions", body)
    assert status == 200, content
    choice = json.loads(content)["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def test_sixty_four_clients_get_what_they_would_get_alone(server):
    alone = [answer(server, body) for body in ASKED]
    with ThreadPoolExecutor(len(ASKED)) as clients:
        assert list(clients.map(lambda body: answer(server, body), ASKED)) == alone
    assert len(set(alone)) > len(ASKED) // 2
    health = server.health()
    assert health["compilations_since_warm_up"] == 0 and health["active"] == health["queued"] == 0


def baseline(server: Running) -> dict[str, int]:
    """What must come back: slots, the queue, tasks and open files. Connections close a moment after their clients."""
    health = server.health()
    return {
        "active": health["active"],
        "queued": health["queued"],
        "tasks": health["tasks"],
        "files": server.files(),
    }


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_leave_nothing_behind(server, stream):
    answer(server, ASKED[0])
    until(lambda: server.health()["active"] == 0)
    before = baseline(server)

    def leave(i: int) -> None:
        if stream:
            client = server.stream(seed=i)
        else:
            body = json.dumps(ASKED[0] | {"max_tokens": 240, "temperature": 1.0}).encode()
            client = server.connect()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            time.sleep(0.02)
        if i % 2:  # half of them say goodbye, half are torn away
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()

    with ThreadPoolExecutor(40) as clients:
        list(clients.map(leave, range(200 if stream else 60)))
    until(
        lambda: baseline(server) == before,
        lambda: (before, baseline(server)),
        deadline=5.0 if stream else 15.0,
    )
    assert server.health()["compilations_since_warm_up"] == 0
    answer(server, ASKED[1])


@pytest.mark.campaign
def test_two_thousand_requests_leave_memory_as_it_was(server):
    short = [body | {"max_tokens": 1 + i % 4} for i, body in enumerate(ASKED)]
    with ThreadPoolExecutor(16) as clients:
        for _ in range(8):  # buffers and threads find their sizes
            list(clients.map(lambda body: answer(server, body), short))
        before = server.memory()
        for _ in range(32):
            list(clients.map(lambda body: answer(server, body), short))
    grown = server.memory() - before
    assert grown < 5 * 2**20, f"{grown / 2**20:.1f} MiB more after 2,048 requests"
