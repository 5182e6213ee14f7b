"""Imported weights become a run that all commands can use; what cannot be used is refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from minigpt_jax import load_run, talk
from minigpt_jax.errors import InputError
from minigpt_jax.interop import import_hf
from minigpt_jax.interop.gpt2 import from_gpt2, to_gpt2_config
from minigpt_jax.interop.hugging_face import from_tensors, read_folder, write_folder
from minigpt_jax.loss import logits
from minigpt_jax.model import GPT
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.tokenizer import CHAT_VOCAB
from tests.harness import train
from tests.in_process import run_main
from tests.interop.models import BASE, NANOCHAT, tensors, write_source

# A port on which nothing listens.
UNREACHABLE_HUB = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """A run that the command made from a folder with three weight files."""
    folder = tmp_path_factory.mktemp("imported")
    source = write_source(folder / "source", BASE, tensors(BASE), pieces=3)
    out = folder / "runs" / "gpt2"
    done = run_main(import_hf.main, "--source", source, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"{BASE.parameters:,} parameters" in done.stdout
    return out


def test_an_imported_run_has_the_weights_of_its_source(imported):
    run = load_run(imported)
    assert run.config == BASE
    jax.tree.map(np.testing.assert_array_equal, run.params, from_gpt2(tensors(BASE), BASE))


def test_an_imported_run_is_sampled(imported):
    done = run_main(talk.main, *("--run", imported, "--prompt", "Hello", "--max-new-tokens", "4"))
    assert done.returncode == 0 and len(done.stdout) > len("Hello"), done.stderr


@pytest.mark.campaign
def test_an_imported_run_is_finetuned_and_exported_with_its_history(imported, corpus, tmp_path):
    shape = {f"model__{name}": getattr(BASE, name) for name in ("context", "layers", "heads")}
    shape |= {"model__embed": BASE.embed, "model__vocab_size": CHAT_VOCAB}
    output = train(
        tmp_path,
        name="tuned",
        data__folder=corpus,
        init_from=imported,
        horizon__steps=2,
        schedule__warmup=0,
        **shape,
    )
    assert "starts with the weights of" in output
    assert len(read_jsonl(tmp_path / "tuned" / "metrics.jsonl")) == 2

    write_folder(tmp_path / "exported", load_run(tmp_path / "tuned"), "tuned")
    card = (tmp_path / "exported" / "README.md").read_text()
    for fact in (
        "run `tuned`",
        "| steps | 2 of 4 x 64 tokens |",
        "| data | tokens |",
        "| began with | gpt2 |",
        "| validation loss |",
    ):
        assert fact in card, card
    # No path of this machine is published.
    assert str(tmp_path) not in card and str(imported.parent) not in card


def test_a_folder_that_holds_a_run_is_not_overwritten(imported):
    source = imported.parents[1] / "source"
    done = run_main(import_hf.main, "--source", source, "--out", imported)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {imported}: already holds a run; choose another folder\n"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("model", [BASE, NANOCHAT], ids=lambda model: model.name)
def test_half_precision_is_converted_exactly(tmp_path, model, dtype):
    half = {name: tensor.astype(dtype) for name, tensor in tensors(model).items()}
    _, params = read_folder(write_source(tmp_path / "source", model, half))
    jax.tree.map(np.testing.assert_array_equal, params, from_tensors(half, model))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_integer_weights_are_refused(tmp_path):
    weights = tensors(BASE) | {"transformer.ln_f.bias": np.zeros(32, np.int64)}
    source = write_source(tmp_path / "source", BASE, weights)
    with pytest.raises(InputError, match=r"tensor transformer\.ln_f\.bias is I64, expected F32"):
        read_folder(source)


def test_a_damaged_weight_file_is_refused(tmp_path):
    source = write_source(tmp_path / "source", BASE, tensors(BASE))
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        read_folder(source)


@pytest.fixture
def no_weights(tmp_path) -> Path:
    """A folder with a config and without weights."""
    (tmp_path / "config.json").write_text(json.dumps(to_gpt2_config(BASE)))
    return tmp_path


def test_a_pickle_is_not_read(no_weights):
    (no_weights / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"no model\.safetensors \(pytorch_model\.bin is a pickle"):
        read_folder(no_weights)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "expected a weight_map"),
        ([], "expected an object"),
        ({"weight_map": {"wte.weight": "../elsewhere.safetensors"}}, "expected a weight_map"),
        ({"weight_map": {"wte.weight": 3}}, "expected a weight_map"),
    ],
)
def test_a_malformed_index_is_refused(no_weights, index, message):
    (no_weights / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        read_folder(no_weights)


def test_one_file_and_an_index_must_hold_the_same_weights(tmp_path):
    weights = tensors(BASE)
    folder = write_source(tmp_path / "both", BASE, weights, pieces=2)
    whole = folder / "model.safetensors"
    save_file(weights, whole, metadata={"format": "pt"})
    read_folder(folder)
    name = "transformer.h.0.ln_1.bias"
    assert name in weights
    for other in (
        weights | {name: weights[name] + np.float32(1e-3)},
        {n: w for n, w in weights.items() if n != name},
        {n: w.astype(np.float16) for n, w in weights.items()},
    ):
        save_file(other, whole, metadata={"format": "pt"})
        with pytest.raises(InputError, match="hold different weights"):
            read_folder(folder)


def test_a_folder_needs_a_config(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: missing"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: is not JSON"):
        read_folder(tmp_path)


def test_without_a_hub_the_message_names_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", UNREACHABLE_HUB)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("openai-community/gpt2", "no such name"):
        done = run_main(import_hf.main, "--source", name, "--out", tmp_path / "run")
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "minigpt import makes a run of a local folder" in done.stderr
        assert not (tmp_path / "run").exists()


def test_the_former_name_of_the_command_is_the_same_command():
    from minigpt_jax.interop import import_gpt2

    assert import_gpt2.main is import_hf.main


def test_weights_that_transformers_wrote_give_its_logits(tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=32, n_layer=3, n_head=4)).eval()
    theirs.save_pretrained(tmp_path / "source")
    config, params = read_folder(tmp_path / "source")
    params = jax.tree.map(jnp.asarray, params)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 64))
    hidden, _ = GPT(config).apply({"params": params}, ids)
    ours = logits(hidden, params["wte"], config.vocab_size)[..., : config.vocab_size]
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-5)
