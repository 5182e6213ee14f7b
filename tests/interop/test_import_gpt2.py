"""Weights from outside become a run that everything else here can use; what cannot be used is refused in one line."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from minigpt_jax import load_run
from minigpt_jax.errors import InputError
from minigpt_jax.interop import export_hf, import_gpt2
from minigpt_jax.interop.gpt2 import from_gpt2, to_config
from minigpt_jax.runtime.files import read_jsonl
from tests.harness import ENVIRONMENT, ROOT, train, write_corpus
from tests.interop.models import BASE, tensors


def write_folder(folder: Path, weights: dict, pieces: int = 1) -> Path:
    """What transformers writes, in one file or several."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_config(BASE)))
    names = [sorted(weights)[i::pieces] for i in range(pieces)]
    files = (
        ["model.safetensors"]
        if pieces == 1
        else [f"model-{i + 1:05}-of-{pieces:05}.safetensors" for i in range(pieces)]
    )
    for file, part in zip(files, names, strict=True):
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    if pieces > 1:
        index = {
            "weight_map": {
                name: file for file, part in zip(files, names, strict=True) for name in part
            }
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def run_import(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "minigpt_jax.interop.import_gpt2", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_an_imported_run_is_talked_to_finetuned_and_exported_with_its_story(tmp_path: Path):
    source = write_folder(tmp_path / "source", tensors(BASE), pieces=3)
    out = tmp_path / "runs" / "gpt2"
    done = run_import("--source", str(source), "--out", str(out))
    assert done.returncode == 0 and f"{BASE.parameters:,} parameters" in done.stdout, done.stderr
    run = load_run(out)
    assert run.config == BASE
    jax.tree.map(np.testing.assert_array_equal, run.params, from_gpt2(tensors(BASE), BASE))
    said = subprocess.run(
        [
            sys.executable,
            "sample.py",
            "--run",
            str(out),
            "--prompt",
            "Hello",
            "--max-new-tokens",
            "4",
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0 and len(said.stdout) > len("Hello"), said.stderr

    shape = {
        "model__vocab_size": 50261,
        "model__context": 64,
        "model__layers": 2,
        "model__heads": 2,
        "model__embed": 32,
    }
    corpus = write_corpus(tmp_path / "corpus")
    said = train(
        runs=tmp_path / "runs",
        name="tuned",
        data__folder=corpus,
        init_from=out,
        horizon__steps=2,
        schedule__warmup=0,
        **shape,
    )
    assert (
        "begins with the weights of" in said
        and len(read_jsonl(tmp_path / "runs" / "tuned" / "metrics.jsonl")) == 2
    )
    export_hf.export(tmp_path / "runs" / "tuned", tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    for fact in (
        "run `tuned`",
        "| steps | 2 of 4 x 64 tokens |",
        "| data | corpus |",
        "| began with | gpt2 |",
        "| validation loss |",
    ):
        assert fact in card, card
    assert str(tmp_path) not in card

    again = run_import("--source", str(source), "--out", str(out))
    assert (again.returncode, again.stdout) == (2, "") and again.stderr.splitlines() == [
        f"error: {out}: holds a run already; choose another folder"
    ]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype):
    narrow = {name: tensor.astype(dtype) for name, tensor in tensors(BASE).items()}
    _, params = import_gpt2.read_gpt2(write_folder(tmp_path / "source", narrow))
    jax.tree.map(np.testing.assert_array_equal, params, from_gpt2(narrow, BASE))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_integers_are_no_weights(tmp_path: Path):
    with pytest.raises(InputError, match=r"tensor transformer\.ln_f\.bias is I64, expected F32"):
        import_gpt2.read_gpt2(
            write_folder(
                tmp_path / "source",
                tensors(BASE) | {"transformer.ln_f.bias": np.zeros(32, np.int64)},
            )
        )


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path):
    source = write_folder(tmp_path / "source", tensors(BASE))
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        import_gpt2.read_gpt2(source)
    weights.unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"no model\.safetensors; pytorch_model\.bin can run code"):
        import_gpt2.read_gpt2(source)
    for index in (
        {},
        [],
        {"weight_map": {"wte.weight": "../elsewhere.safetensors"}},
        {"weight_map": {"wte.weight": 3}},
    ):
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=r"expected a weight_map|expected an object"):
            import_gpt2.read_gpt2(source)
    (source / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: no JSON"):
        import_gpt2.read_gpt2(source)
    (source / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: missing"):
        import_gpt2.read_gpt2(source)


def test_without_a_hub_the_line_says_what_would_do(tmp_path: Path):
    unreachable = ENVIRONMENT | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    for name in ("openai-community/gpt2", "no such name"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "minigpt_jax.interop.import_gpt2",
                "--source",
                name,
                "--out",
                str(tmp_path / "run"),
            ],
            cwd=ROOT,
            env=unreachable,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (
            done.returncode == 2
            and "a local folder with config.json and model.safetensors will do"
            in done.stderr.lower()
        ), done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_weights_that_transformers_wrote_give_its_logits(tmp_path: Path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from transformers import GPT2Config, GPT2LMHeadModel

    from minigpt_jax.loss import logits
    from minigpt_jax.model import GPT

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=32, n_layer=3, n_head=4)).eval()
    theirs.save_pretrained(tmp_path / "source")
    config, params = import_gpt2.read_gpt2(tmp_path / "source")
    ids = np.random.default_rng(0).integers(0, 50257, (2, 64))
    hidden, _ = GPT(config).apply({"params": params}, ids)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(
        logits(hidden, params["wte"], 50257)[..., :50257], expected, atol=2e-5
    )
