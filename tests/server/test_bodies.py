"""Bodies are bounded, however they are sent."""

import http.client
import json

import pytest

from minigpt_jax.server.app import MAX_BODY_BYTES
from tests.server.serving import QUESTION, TIMEOUT, Client, Reply, request_head

MIB = 2**20


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
