"""Many clients at the same time, and clients that disconnect: no mixed answers, no leaks."""

import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.serving import QUESTION, ServerProcess, raw_request, wait_until

NUM_CLIENTS = 64
BODIES = [
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
    for i in range(NUM_CLIENTS)
]
MIB = 2**20
# Tokens of an answer that is still running when its client disconnects.
LONG = 240
# With this option (enabled, 0 seconds) closing a socket resets the connection.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def answer(server: ServerProcess, body: dict) -> tuple[str, str]:
    """Text and finish reason."""
    reply = server.request("/v1/chat/completions", body)
    assert reply.status == 200, reply.body
    choice = json.loads(reply.body)["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def is_idle(server: ServerProcess) -> bool:
    health = server.health()
    return health["active"] == health["queued"] == 0


def resources(server: ServerProcess) -> dict[str, int]:
    """What a request uses until it ends."""
    health = server.health()
    return {
        "active": health["active"],
        "queued": health["queued"],
        "tasks": health["tasks"],
        "files": server.open_files(),
    }


def test_concurrent_clients_get_the_same_answers_as_one_at_a_time(server):
    alone = [answer(server, body) for body in BODIES]
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        assert list(clients.map(lambda body: answer(server, body), BODIES)) == alone
    assert len(set(alone)) > NUM_CLIENTS // 2
    assert server.health()["compilations_since_warm_up"] == 0
    assert is_idle(server)


@pytest.mark.parametrize(("stream", "num_clients"), [(True, 200), (False, 60)])
def test_disconnected_clients_free_their_resources(server, stream, num_clients):
    answer(server, BODIES[0])
    wait_until(lambda: is_idle(server), server.health)
    before = resources(server)
    tokens_before = server.health()["tokens"]

    # Greedy answers of this model do not end before their limit.
    long = {"max_tokens": LONG, "temperature": 0.0}

    def disconnect(i: int) -> None:
        if stream:
            client = server.stream(**long)
        else:
            client = server.connect()
            client.sendall(raw_request("/v1/chat/completions", QUESTION | long))
        if i % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        client.close()

    with ThreadPoolExecutor(40) as clients:
        list(clients.map(disconnect, range(num_clients)))

    def nothing_is_left() -> bool:
        # Fewer is possible: a browser of an earlier test may have closed its connections meanwhile.
        after = resources(server)
        return all(after[name] <= count for name, count in before.items())

    wait_until(nothing_is_left, lambda: (before, resources(server)))
    # The answers were cancelled, and did not run to their end.
    assert server.health()["tokens"] - tokens_before < num_clients * LONG / 2
    assert server.health()["compilations_since_warm_up"] == 0
    answer(server, BODIES[1])


@pytest.mark.campaign
def test_two_thousand_requests_do_not_increase_memory(server):
    short = [body | {"max_tokens": 1 + i % 4} for i, body in enumerate(BODIES)]
    with ThreadPoolExecutor(16) as clients:
        # Until buffers and threads have their final sizes.
        for _ in range(8):
            list(clients.map(lambda body: answer(server, body), short))
        before = server.memory()
        for _ in range(32):
            list(clients.map(lambda body: answer(server, body), short))
    growth = server.memory() - before
    assert growth < 5 * MIB, f"{growth / MIB:.1f} MiB more after 2,048 requests"
