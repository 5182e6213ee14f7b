"""An exported run is complete, round-trips bit by bit, is the same in transformers, and uploads."""

import json
import logging
import warnings
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from minigpt_jax import load_run
from minigpt_jax.interop import export_hf
from minigpt_jax.interop.hugging_face import read_folder, write_folder
from minigpt_jax.interop.imported_run import write_run
from tests.in_process import run_main
from tests.interop.models import CHAT, NANOCHAT_CHAT, random_run, tensors
from tests.interop.peers import compare_with_transformers

# What the client does with large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
FILES = [
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(scope="module")
def exported(chat_run, tmp_path_factory) -> Path:
    """The folder that the command writes for a finetuned run."""
    out = tmp_path_factory.mktemp("exported") / "out"
    done = run_main(export_hf.main, "--run", chat_run, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_all_files_are_there_and_nothing_unfinished(exported):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    assert list(exported.parent.iterdir()) == [exported]


def test_configs_have_the_stop_tokens_and_the_chat_template(exported):
    found = {name: json.loads((exported / name).read_text()) for name in FILES if "json" in name}
    assert found["config.json"]["vocab_size"] == 50261
    assert found["config.json"]["eos_token_id"] == 50260
    assert found["generation_config.json"]["eos_token_id"] == [50260, 50256]
    # transformers warns at generate(max_new_tokens=...) where there is one.
    assert "max_length" not in found["generation_config.json"]
    # It warns where the shorter texts of a batch are padded on the right.
    assert found["tokenizer_config.json"]["padding_side"] == "left"
    assert found["tokenizer_config.json"]["eos_token"] == "<|end|>"
    assert "<|assistant|>" in found["tokenizer_config.json"]["chat_template"]


def test_the_model_card_has_the_facts_of_the_run(exported):
    card = (exported / "README.md").read_text()
    assert f"{CHAT.parameters:,}" in card
    assert "Untrusted text" in card
    assert "imported from random numbers, not trained further" in card
    # There is room for these tokens.
    assert "max_new_tokens=32" in card and "the context of 64 tokens" in card


def test_weights_are_the_same_bits_without_padded_vocabulary(exported):
    weights = load_file(exported / "model.safetensors")
    assert weights["transformer.wte.weight"].shape == (50261, 32)
    assert len(weights) == len(tensors(CHAT))
    for name, tensor in tensors(CHAT).items():
        assert weights[name].tobytes() == tensor.tobytes(), name


@pytest.fixture(scope="module")
def nanochat_exported(nanochat_run, tmp_path_factory) -> Path:
    """The folder that the command writes for a NanoChat."""
    out = tmp_path_factory.mktemp("exported") / "out"
    done = run_main(export_hf.main, "--run", nanochat_run, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_a_nanochat_has_the_same_files_and_its_own_card(nanochat_exported):
    assert sorted(path.name for path in nanochat_exported.iterdir()) == FILES
    weights = load_file(nanochat_exported / "model.safetensors")
    assert weights.keys() == tensors(NANOCHAT_CHAT).keys()
    for name, tensor in tensors(NANOCHAT_CHAT).items():
        assert weights[name].tobytes() == tensor.tobytes(), name
    card = (nanochat_exported / "README.md").read_text()
    assert "tags: [nanochat, minigpt-jax]" in card and "| NanoChat: 2 layers" in card
    assert f"{NANOCHAT_CHAT.parameters:,}" in card and "needs transformers 5" in card
    assert "GPT-2" not in card and "it fails" not in card


def test_a_folder_with_files_and_a_file_are_refused(exported, chat_run, tmp_path):
    done = run_main(export_hf.main, "--run", chat_run, "--out", exported)
    assert done.returncode == 2 and "is not empty" in done.stderr
    (tmp_path / "file").touch()
    done = run_main(export_hf.main, "--run", chat_run, "--out", tmp_path / "file")
    assert done.returncode == 2 and "is a file" in done.stderr


@pytest.mark.parametrize("run", ["base_run", "nanochat_run"])
def test_import_and_export_give_the_same_file_back(run, request, tmp_path):
    write_folder(tmp_path / "first", load_run(request.getfixturevalue(run)), "first")
    write_run(tmp_path / "back", *read_folder(tmp_path / "first"), "the first")
    write_folder(tmp_path / "second", load_run(tmp_path / "back"), "second")
    for name in FILES:
        if name != "README.md":
            first, second = (
                (tmp_path / folder / name).read_bytes() for folder in ("first", "second")
            )
            assert first == second, name


def test_a_base_model_has_no_chat_template(base_run, tmp_path):
    write_folder(tmp_path / "out", load_run(base_run), "base")
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|endoftext|>" and "chat_template" not in settings


@pytest.mark.parametrize("model", [CHAT, NANOCHAT_CHAT], ids=lambda model: model.name)
def test_transformers_computes_the_same(model, tmp_path):
    pytest.importorskip("torch", exc_type=ImportError)
    pytest.importorskip("transformers", minversion=None if model.is_gpt2 else "5")
    run = random_run(model)
    write_folder(tmp_path / "out", run, "chat")
    assert compare_with_transformers(run, tmp_path / "out", 4) == []


def code_of(card: str) -> str:
    """The program in a model card."""
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("model", ["chat_run", "base_run", "nanochat_run"])
def test_transformers_generates_without_a_warning(model, request, tmp_path, caplog, monkeypatch):
    pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", minversion="5")
    folder = tmp_path / "out"
    write_folder(folder, load_run(request.getfixturevalue(model)), "tiny")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    texts = ["<|endoftext|>one two three", "<|endoftext|>one"]
    one = tokenizer(texts[0], return_tensors="pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for settings in ({}, {"do_sample": False}, {"num_beams": 2}, {"max_new_tokens": 9}):
            ids = model.generate(**one, **{"max_new_tokens": 5, **settings})
            assert 4 <= ids.shape[1] <= 4 + settings.get("max_new_tokens", 5)
        model.generate(one["input_ids"], max_new_tokens=5)
        model.generate(**one, max_length=20)
        model.generate(**tokenizer(texts, return_tensors="pt", padding=True), max_new_tokens=5)
        exec(code_of((folder / "README.md").read_text()), {"folder": folder})
    assert caplog.messages == []


@pytest.fixture
def push(hub, base_run, tmp_path):
    """Export to a folder of this name and push it to the local hub."""

    def call(name: str, *options: str):
        out = tmp_path / name
        arguments = ("--run", base_run, "--out", out, "--push", "someone/tiny", *options)
        return run_main(export_hf.main, *arguments)

    return call


def test_push_uploads_every_file(push, hub, tmp_path):
    done = push("out")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["someone/tiny"]
    assert f"uploaded: {hub.address}/someone/tiny/commit/{repository.commit}" in done.stdout
    assert repository.files == {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    tokens = {token for method, _, token in hub.received if method == "POST"}
    assert tokens == {"Bearer hf_test"}


def test_a_push_without_lfs_is_the_same(push, hub, tmp_path, monkeypatch):
    """The client then takes another path through its own code."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.upload_mode = "regular"
    done = push("out")
    assert done.returncode == 0, done.stderr
    sent = hub.repositories["someone/tiny"].files
    assert sent == {name: (tmp_path / "out" / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(("options", "visibility"), [([], "private"), (["--public"], "public")])
def test_a_new_repository_is_private_unless_it_should_be_public(push, hub, options, visibility):
    # Nothing more is needed here.
    hub.fault = lambda method, path: 403 if "preupload" in path else None
    assert push("out", *options).returncode == 2
    assert hub.repositories["someone/tiny"].visibility == visibility


def test_the_visibility_of_a_repository_that_exists_stays(push, hub, tmp_path):
    hub.put("someone/tiny", tmp_path).visibility = "public"
    done = push("out", "--private")
    assert done.returncode == 0, done.stderr
    assert hub.repositories["someone/tiny"].visibility == "public"
    assert not [method for method, _, _ in hub.received if method not in ("GET", "POST", "PUT")]


def test_a_failed_push_is_one_line_and_keeps_the_folder(push, hub, tmp_path):
    hub.close()
    done = push("out")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1 and "the upload to the hub failed" in done.stderr
    assert f"hf upload someone/tiny {tmp_path / 'out'} --private" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--push", "tiny"], "'tiny' is no name of a repository (it has no owner): expected owner"),
        (["--push", "some one/tiny"], "expected owner/name"),
        (["--push", "a/b/c"], "expected owner/name"),
        (["--push", "someone/tiny"], "no token for the hub was found: hf auth login"),
        (["--public"], "--public: is for a repository, so it needs --push"),
    ],
)
def test_a_push_that_cannot_work_is_refused_before_anything_is_written(
    hub, base_run, tmp_path, monkeypatch, options: list[str], words: str
):
    monkeypatch.delenv("HF_TOKEN")
    out = tmp_path / "out"
    done = run_main(export_hf.main, "--run", base_run, "--out", out, *options)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not out.exists() and not hub.received
