"""Weights of a run that begins with a model of the hub, and what is refused, by the real client."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.checkpoint import abstract_params
from minigpt_jax.errors import InputError
from minigpt_jax.interop.hub import download, is_hub_id
from minigpt_jax.interop.hugging_face import write_folder
from minigpt_jax.resume import initial_params_from, pinned
from minigpt_jax.sharding import make_mesh, replicated
from tests.interop.local_hub import LocalHub
from tests.interop.models import BASE, NANOCHAT_CHAT

ID = "someone/tiny"
# That of the exported run.
MODEL = replace(BASE, context=32)


def test_the_weights_are_those_of_a_local_import(hub, nanochat_run, tmp_path, monkeypatch):
    write_folder(tmp_path / "source", load_run(nanochat_run), "nanochat")
    hub.put(ID, tmp_path / "source")
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = abstract_params(NANOCHAT_CHAT, replicated(mesh))
    source = pinned(ID)
    found = initial_params_from(source, NANOCHAT_CHAT, abstract, mesh)
    expected = initial_params_from(str(nanochat_run), NANOCHAT_CHAT, abstract, mesh)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

    # Only what is read was fetched, and now it is in the cache.
    fetched = {path.rpartition("/")[2] for _, path, _ in hub.received if "/resolve/" in path}
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert fetched == files
    hub.close()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pinned(ID) == source
    assert {path.name for path in download(source).iterdir()} == files


def test_a_local_path_is_never_looked_up(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    local = (
        "",
        "/nowhere",
        "runs/pretrain",
        "here/missing",
        "here",
        "../a",
        "./a",
        "a/b/c",
        "gpt2",
    )
    assert not [name for name in local if is_hub_id(name)]
    assert [name for name in (ID, f"{ID}@main", f"{ID}@refs/pr/1") if is_hub_id(name)]
    (tmp_path / "someone").mkdir()
    assert not is_hub_id(ID)
    for name in local:
        assert pinned(name) == name
    assert not hub.received


def refusal(name: str = ID) -> str:
    """The one line with which a model of the hub is refused as a beginning."""
    with pytest.raises(InputError) as refused:
        initial_params_from(pinned(name), MODEL, {}, make_mesh())
    message = str(refused.value)
    assert "\n" not in message and name in message, message
    return message


def fail(status: int):
    return lambda method, path: status


def test_a_model_that_is_not_there_is_refused(hub: LocalHub):
    assert "the name may be wrong, or the token" in refusal()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_model_that_may_not_be_read_is_refused(hub: LocalHub, exported, status: int):
    hub.put(ID, exported)
    hub.fault = fail(status)
    assert "a gated model wants its terms accepted" in refusal()


def test_a_hub_that_is_not_there_is_one_line(hub: LocalHub):
    hub.close()
    assert "minigpt import makes a run of a local folder" in refusal()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("someone/ti--ny", "Cannot have -- or .."),
        (f"{ID}@v2", "Revision Not Found"),
        (".x/y", "cannot start or end"),
    ],
)
def test_a_wrong_name_or_revision_is_named(hub: LocalHub, exported, name: str, words: str):
    hub.put(ID, exported)
    assert words in refusal(name)


def test_another_architecture_is_refused_before_its_weights_are_fetched(hub, exported):
    repository = hub.put(ID, exported)
    repository.files["config.json"] = b'{"model_type": "llama"}'
    assert "model_type is 'llama'" in refusal()
    assert not hub.requests("model.safetensors")


def test_a_repository_without_safetensors_is_refused(hub, exported):
    repository = hub.put(ID, exported)
    repository.files["pytorch_model.bin"] = repository.files.pop("model.safetensors")
    assert "no model.safetensors" in refusal()
    assert not hub.requests("pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-4] + b"\0\0\0\1", "damaged, its SHA-256 is not the hub's"),
        (lambda content: content[:1000], "cannot be fetched from the hub"),
    ],
    ids=["other bytes", "cut"],
)
def test_a_damaged_download_is_refused(hub, exported, damage, words):
    hub.put(ID, exported)
    hub.damage = damage
    assert words in refusal()
