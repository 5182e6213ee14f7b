"""Two runs with random weights and a server of each, shared by all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB
from tests.server.nginx import NGINX, nginx_process
from tests.server.serving import KEY, Client, ServerProcess, make_run, server_process


@pytest.fixture(scope="session")
def chat_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small-chat", CHAT_VOCAB)


@pytest.fixture(scope="package")
def server(chat_run, tmp_path_factory) -> Iterator[ServerProcess]:
    """A server of a chat model. Whatever the tests send, it must not fail."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with server_process(chat_run, log, "--allowed-host", "chat.example") as server:
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="package")
def nginx(server, tmp_path_factory) -> Iterator[Client]:
    """nginx in front of `server`, which has the name chat.example."""
    if NGINX is None:
        pytest.skip("no nginx on this machine")
    with nginx_process(server, tmp_path_factory.mktemp("nginx")) as client:
        yield client


@pytest.fixture(scope="package")
def text_server(tmp_path_factory) -> Iterator[ServerProcess]:
    """A server of a base model, which completes texts and cannot chat; it needs a key."""
    run = make_run(tmp_path_factory.mktemp("runs") / "small-text", TEXT_VOCAB)
    log = tmp_path_factory.mktemp("log") / "server.log"
    flags = ("--allowed-host", "Mine.Example")
    with server_process(run, log, *flags, MINIGPT_API_KEY=KEY) as server:
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()
