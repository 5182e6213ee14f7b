"""Servers for the tests, as a process or inside the test process, and a plain HTTP client."""

import asyncio
import fcntl
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import optax

from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sampling import sampling_params
from minigpt_jax.server.app import App
from minigpt_jax.server.command import open_listener
from minigpt_jax.server.connection import Deadlines, make_server
from minigpt_jax.server.engine import Engine
from minigpt_jax.server.guard import Guard
from minigpt_jax.server.models import ServedModel
from minigpt_jax.server.request import Delta, Request
from minigpt_jax.step import TrainState
from minigpt_jax.tokenizer import END, load_tokenizer
from tests.harness import ROOT
from tests.models import weights

# Seconds after which a test fails; far more than anything takes on a slow machine.
TIMEOUT = 120.0
POLL_SECONDS = 0.02
CONTEXT = 256
QUESTION = {"messages": [{"role": "user", "content": "The river reads"}]}
# Not only ASCII: clients and browsers send it as UTF-8.
KEY = "clé secrète à"
# Without a chat template and with few tokens, so that it compiles and draws quickly.
TINY = GPTConfig(vocab_size=384, context=64, layers=2, heads=2, embed=16)
# Fewer than the default of 8: every slot costs time in every block.
SLOTS = 4


def make_run(folder: Path, vocab_size: int) -> Path:
    """A run with random weights that generates short, readable text.

    The first dimension of the last layer is constant, so the first column of the embedding table is
    a bias of the logits: it makes characters likely and everything else very unlikely.
    """
    config = GPTConfig(vocab_size=vocab_size, context=CONTEXT, layers=2, heads=2, embed=16)
    params = weights(config)
    tokenizer = load_tokenizer()
    characters = [id for c in "abcdefghijklmnopqrstuvwxyz .,é" for id in tokenizer.encode(c)]
    table = params["wte"].at[:, 0].set(-30.0).at[jnp.array(characters), 0].set(0.0)
    if vocab_size > END:
        # Likely enough that some answers end before their length limit.
        table = table.at[END, 0].set(-1.0)
    final_norm = {
        "scale": params["ln_f"]["scale"].at[0].set(0.0),
        "bias": params["ln_f"]["bias"].at[0].set(1.0),
    }
    params = params | {"wte": table, "ln_f": final_norm}
    checkpoints = Checkpoints(folder, keep=1)
    state = TrainState(jnp.int32(1), params, optax.sgd(0.1).init(params))
    meta = {"model": asdict(config), "config": {}, "data": "", "validation_loss": None}
    checkpoints.save(state, 1, meta)
    checkpoints.close()
    return folder


def tiny_run() -> LoadedRun:
    """An untrained base model."""
    return LoadedRun(weights(TINY), TINY, load_tokenizer())


class Reply(NamedTuple):
    """A response; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def request_head(path: str, *headers: str) -> bytes:
    """The head of a POST request with JSON, without the empty line that ends it."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers)
    return "".join(f"{line}\r\n" for line in lines).encode()


def raw_request(path: str, body: object) -> bytes:
    """A complete POST request of `body` as JSON."""
    content = json.dumps(body).encode()
    return request_head(path, f"Content-Length: {len(content)}") + b"\r\n" + content


@dataclass
class Client:
    """Requests to a server on this machine."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, path: str, body: object = None, method: str | None = None, **headers: str
    ) -> Reply:
        """One request over a connection of its own; `body`: bytes, or an object to send as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent = {"content-type": "application/json"} | sent
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, content, sent)
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, received, response.read())
        finally:
            connection.close()

    def error(
        self, path: str, body: object = None, method: str | None = None, **headers: str
    ) -> tuple[int, dict]:
        """Status and error of a request that fails."""
        reply = self.request(path, body, method, **headers)
        error = json.loads(reply.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return reply.status, error

    def health(self) -> dict:
        return json.loads(self.request("/health").body)

    def connect(self) -> socket.socket:
        """A connection on which nothing has been sent."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)

    def stream(self, **changes) -> socket.socket:
        """A connection on which the first text of a chat has arrived."""
        body = QUESTION | {"stream": True, "max_tokens": 240, "temperature": 1.0} | changes
        client = self.connect()
        client.sendall(raw_request("/v1/chat/completions", body))
        received = b""
        # Each choice begins with an event without text.
        while received.count(b"data: ") <= changes.get("n", 1):
            part = client.recv(4096)
            assert part and b"HTTP/1.1 200".startswith(received[:12]), received
            received += part
        return client


@dataclass
class ServerProcess(Client):
    """A server that runs as a process; its output is in the file `log`."""

    process: subprocess.Popen
    log: Path

    def open_files(self) -> int:
        """Open files of the process, sockets included."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory(self) -> int:
        """Bytes of memory that it uses."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@contextmanager
def server_process(
    run: Path, log: Path, *flags: str, **environment: str
) -> Iterator[ServerProcess]:
    """A server process of `run`, which is killed at the end if it still runs."""
    command = [sys.executable, "-m", "minigpt_jax.server", "--run", str(run), "--port", "0"]
    command += ["--slots", str(SLOTS), *flags]
    # Without the XLA flags of the tests: a draw reads the whole vocabulary, and code that is
    # compiled quickly and badly would lose more time there than it saves.
    removed = ("MINIGPT_API_KEY", "XLA_FLAGS")
    inherited = {name: value for name, value in os.environ.items() if name not in removed}
    environment = inherited | {"JAX_PLATFORMS": "cpu"} | environment
    lock = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "server.lock"
    with lock.open("w") as starting, log.open("w") as out:
        # One starts at a time: a second of the same shape finds its programs compiled.
        fcntl.flock(starting, fcntl.LOCK_EX)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            wait_until(
                lambda: "ready: " in log.read_text() or process.poll() is not None, log.read_text
            )
            starting.close()
            port = re.search(r"ready: http://\S+:(\d+)", log.read_text())
            assert port, log.read_text()
            yield ServerProcess(int(port[1]), process, log)
        finally:
            process.kill()
            process.wait()


@dataclass
class InProcessServer(Client):
    """A server in a thread of the test process, whose engine the test can reach."""

    # Those of the first model.
    engine: Engine
    run: LoadedRun
    guard: Guard


@contextmanager
def in_process_server(
    run: LoadedRun,
    deadlines: Deadlines,
    *,
    key: str | None = None,
    allowed_hosts: Sequence[str] = (),
    queue_size: int = 1,
    others: Mapping[str, LoadedRun] | None = None,
) -> Iterator[InProcessServer]:
    """A server with one slot: the model "tiny", and `others` by their names."""
    models = [
        ServedModel(name, run, one_slot_engine(run, queue_size))
        for name, run in {"tiny": run, **(others or {})}.items()
    ]
    guard = Guard(App(models).routes(), host="127.0.0.1", key=key, allowed_hosts=allowed_hosts)
    server = make_server(guard, deadlines)
    with open_listener("127.0.0.1", 0) as listener:
        serving = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        serving.start()
        try:
            wait_until(lambda: server.started)
            yield InProcessServer(listener.getsockname()[1], models[0].engine, run, guard)
            assert all(model.engine.health()["alive"] for model in models)
        finally:
            for model in models:
                model.engine.close()
            server.should_exit = True
            serving.join()


def one_slot_engine(run: LoadedRun, queue_size: int = 1) -> Engine:
    """An engine that compiles quickly."""
    return Engine(run, num_slots=1, queue_size=queue_size, min_cache_length=run.config.context)


def long_request(config: GPTConfig) -> Request:
    """One that does not end soon."""
    return Request([1, 2, 3], sampling_params(1, config, temperature=0.0), max_tokens=50)


@contextmanager
def occupied(server: InProcessServer, waiting: int = 0) -> Iterator[threading.Event]:
    """While the slot is occupied, by a client of its own, and as many of its answers wait.

    The event ends that too.
    """
    release = threading.Event()
    began = threading.Event()

    def receive(i: int, delta: Delta) -> None:
        began.set()
        # In the engine's thread, which therefore does nothing else.
        release.wait(TIMEOUT)

    requests = [long_request(server.run.config)] * (1 + waiting)
    accepted = server.engine.submit(requests, receive, "crowd")
    assert began.wait(TIMEOUT)
    try:
        yield release
    finally:
        release.set()
        server.engine.cancel(accepted)
        wait_until(lambda: server.health()["active"] == server.health()["queued"] == 0)


def wait_until(condition: Callable[[], object], describe: Callable[[], object] = str) -> None:
    """Wait until `condition()` is true; after TIMEOUT fail with what `describe()` returns."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, describe()
        time.sleep(POLL_SECONDS)


def read_all(client: socket.socket) -> bytes:
    """All that arrives until the server closes the connection."""
    received = b""
    with client:
        while part := client.recv(65536):
            received += part
    return received
