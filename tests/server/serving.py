"""A server process on a small untrained run, and the plainest client there is."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import jax.numpy as jnp
import optax

from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.model import GPTConfig
from minigpt_jax.step import TrainState
from minigpt_jax.tokenizer import END, load_tokenizer
from tests.harness import ROOT
from tests.models import weights

DEADLINE = 60.0  # seconds, generous: what takes longer will never come
CONTEXT = 256
QUESTION = {"messages": [{"role": "user", "content": "The river reads"}]}


def make_run(folder: Path, vocab_size: int) -> Path:
    """A run whose weights are random but for the table's: letters and blanks are likely, so that every text is short and readable."""
    config = GPTConfig(vocab_size=vocab_size, context=CONTEXT, layers=2, heads=2, embed=16)
    params = weights(config)
    common = [
        token
        for letter in "abcdefghijklmnopqrstuvwxyz .,é"
        for token in load_tokenizer().encode(letter)
    ]
    live = [*common, END] if vocab_size > END else common
    table = params["wte"].at[:, 0].set(-30.0).at[jnp.array(live), 0].set(0.0)
    params = params | {
        "wte": table,
        "ln_f": {
            "scale": params["ln_f"]["scale"].at[0].set(0.0),
            "bias": params["ln_f"]["bias"].at[0].set(1.0),
        },
    }
    if vocab_size > END:  # an answer of random tokens ends by itself once in a while
        params["wte"] = params["wte"].at[END, 0].set(-1.0)
    checkpoints = Checkpoints(folder, keep=1)
    state = TrainState(jnp.int32(1), params, optax.sgd(0.1).init(params))
    checkpoints.save(
        state, 1, {"model": asdict(config), "config": {}, "data": "", "validation_loss": None}
    )
    checkpoints.close()
    return folder


@dataclass
class Running:
    """A server that runs."""

    process: subprocess.Popen
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: object = None, method: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request; `body`: bytes as they are, or what is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            given = {"content-type": "application/json"} | given
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, sent, given)
            answer = connection.getresponse()
            return (
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read(),
            )
        finally:
            connection.close()

    def error(
        self, path: str, body: object = None, method: str | None = None, **headers: str
    ) -> tuple[int, dict]:
        """Status and error of a request that is refused."""
        status, _, content = self.ask(path, body, method, **headers)
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return status, error

    def health(self) -> dict:
        return json.loads(self.ask("/health")[2])

    def files(self) -> int:
        """Open files of the process, sockets included."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory(self) -> int:
        """Bytes of memory that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # pyright: ignore[reportOptionalSubscript]

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def stream(self, **changes) -> socket.socket:
        """A connection on which something of an answer has arrived, beyond its opening: its request has left the queue."""
        body = json.dumps(
            QUESTION | {"stream": True, "max_tokens": 240, "temperature": 1.0} | changes
        ).encode()
        client = self.connect()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        came = b""
        while came.count(b"data: ") <= changes.get("n", 1):
            more = client.recv(4096)
            assert more and b"HTTP/1.1 200".startswith(came[:12]), came
            came += more
        return client


def until(
    done: Callable[[], bool], says: Callable[[], object] = lambda: "", deadline: float = DEADLINE
) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + deadline
    while not done():
        assert time.monotonic() < end, says()
        time.sleep(0.02)


@contextmanager
def serving(run: Path, log: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    """A server on `run`, which is killed at the end if it still runs. What it says goes to the file `log`."""
    command = [
        sys.executable,
        "-m",
        "minigpt_jax.server",
        "--run",
        str(run),
        "--port",
        "0",
        *arguments,
    ]
    # Compiled well: a draw looks at the whole vocabulary, and what is saved in compiling would be spent there.
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MINIGPT_API_KEY", "XLA_FLAGS")
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=own | {"JAX_PLATFORMS": "cpu"} | environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        until(
            lambda: "ready: " in log.read_text() or process.poll() is not None, log.read_text, 180
        )
        port = re.search(r"ready: http://\S+:(\d+)", log.read_text())
        assert port, log.read_text()
        yield Running(process, int(port[1]), log)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
