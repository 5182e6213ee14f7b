"""Random runs on disk, written once for all tests. The tests only read them."""

from pathlib import Path

import pytest

from tests.interop.models import BASE, CHAT, NANOCHAT_CHAT, write_random_run


@pytest.fixture(scope="session")
def base_run(tmp_path_factory) -> Path:
    """A pretrained model's vocabulary."""
    return write_random_run(tmp_path_factory.mktemp("runs") / "base", BASE)


@pytest.fixture(scope="session")
def chat_run(tmp_path_factory) -> Path:
    """A finetuned model's vocabulary."""
    return write_random_run(tmp_path_factory.mktemp("runs") / "chat", CHAT)


@pytest.fixture(scope="session")
def nanochat_run(tmp_path_factory) -> Path:
    """A finetuned model's vocabulary, and the other architecture."""
    return write_random_run(tmp_path_factory.mktemp("runs") / "nanochat", NANOCHAT_CHAT)
