"""A server process and a client that times it, for the benchmarks of the server."""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

MIB = 2**20


class ServerProcess(NamedTuple):
    """A server that is ready."""

    port: int
    process: subprocess.Popen

    def memory(self) -> float | None:
        """MiB of memory that it uses; None where the system does not tell."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / MIB


class Answer(NamedTuple):
    """The answer to one request."""

    text: str
    tokens: int
    # Seconds until the first text, and until the end.
    first: float
    total: float
    # What went wrong, "" if the answer is complete.
    error: str


@contextmanager
def server(options: argparse.Namespace, slots: int) -> Iterator[ServerProcess]:
    """A server process with the settings in `options`."""
    command = [sys.executable, "-m", "minigpt_jax.server", "--port", "0"]
    command += ["--run", options.run, "--slots", str(slots), "--queue", str(options.queue)]
    command += ["--grace", "600"]
    if options.quantize:
        command += ["--quantize", options.quantize]
    # All servers share the memory of a GPU.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield ServerProcess(_ready_port(process.stderr), process)
    finally:
        process.terminate()
        process.wait()


def _ready_port(lines: Iterable[str]) -> int:
    """The port that a server prints when it is ready."""
    for line in lines:
        if found := re.search(r"ready: http://\S+:(\d+)", line):
            return int(found[1])
    raise RuntimeError("the server did not start")


async def send_all(port: int, bodies: Sequence[dict], clients: int) -> list[Answer]:
    """All answers, in the order of `bodies`; `clients` requests are open at a time."""

    async def client(number: int) -> list[Answer]:
        return [await send(port, body, f"client {number}") for body in bodies[number::clients]]

    own = await asyncio.gather(*(client(number) for number in range(clients)))
    return [own[i % clients][i // clients] for i in range(len(bodies))]


async def send(port: int, body: dict, program: str = "benchmark") -> Answer:
    """The answer to `body`, a completion, over a connection of its own; always as a stream.

    `program`: the User-Agent, by which the server tells clients apart.
    """
    began = time.perf_counter()
    first = None
    text = ""
    tokens = 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(_request(body, program))
        line = await reader.readline()
        error = "" if b" 200 " in line else line.decode().strip() or "no response"
        while not error and (line := await reader.readline()) != b"data: [DONE]\n":
            if not line:
                error = "the server closed the connection"
            if line.startswith(b"data: "):
                chunk = json.loads(line.removeprefix(b"data: "))
                error = chunk.get("error", {}).get("message", "")
                first = first or time.perf_counter() - began
                text += "".join(choice["text"] for choice in chunk.get("choices", ()))
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    except OSError as failure:
        error = str(failure)
    finally:
        writer.close()
    total = time.perf_counter() - began
    return Answer(text, tokens, first or total, total, error)


def _request(body: dict, program: str) -> bytes:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(body | streamed).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {program}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def health(port: int) -> dict:
    """The numbers of /health."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    try:
        return json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    finally:
        writer.close()
