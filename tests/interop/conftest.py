"""Random runs on disk, written once for all tests, which only read them; and a local hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt_jax import load_run
from minigpt_jax.interop.hugging_face import write_folder
from tests.harness import made_once
from tests.interop.local_hub import LocalHub
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


@pytest.fixture(scope="session")
def exported(shared, trained_run) -> Path:
    """The shared trained run in Hugging Face's format."""

    def make(folder: Path) -> None:
        write_folder(folder / "model", load_run(trained_run), trained_run.name)

    return made_once(shared / "exported", make) / "model"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LocalHub]:
    """A local hub, which the client uses in this process and in those that it starts."""
    hub = LocalHub()
    home = tmp_path / "hub_home"
    # The client reads its environment when it is imported.
    for name, value in {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    hub.environment = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_test",
    }
    for name, value in hub.environment.items():
        monkeypatch.setenv(name, value)
    yield hub
    hub.close()
