"""Two untrained runs and a server on the first, made once for all tests of a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB
from tests.server.serving import Running, make_run, serving


@pytest.fixture(scope="session")
def chat_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small-chat", CHAT_VOCAB)


@pytest.fixture(scope="session")
def text_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small-text", TEXT_VOCAB)


@pytest.fixture(scope="module")
def server(chat_run, tmp_path_factory) -> Iterator[Running]:
    """No traceback may be in what it said, whatever the tests did to it."""
    with serving(chat_run, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running
        assert running.process.poll() is None
        assert "Traceback" not in running.log.read_text()
