"""A GGUF file holds llama.cpp's names, shapes, types, vocabulary and template; where llama.cpp is installed, it says the same."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.interop import export_gguf, gpt2, vocabulary
from minigpt_jax.model import GPTConfig
from tests.harness import ENVIRONMENT, ROOT
from tests.interop.models import BASE, CHAT, make_run, tensors
from tests.interop.peers import beside_llama

gguf = pytest.importorskip("gguf")


def read(path: Path):
    """Metadata and tensors of a file, by gguf's own reader."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {
        tensor.name: tensor for tensor in reader.tensors
    }


def test_the_command_writes_what_llama_cpp_reads(tmp_path: Path):
    run, out = make_run(tmp_path / "chat", CHAT), tmp_path / "model.gguf"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "minigpt_jax.interop.export_gguf",
            "--run",
            str(run),
            "--out",
            str(out),
            "--type",
            "f32",
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and sorted(p.name for p in tmp_path.iterdir()) == [
        "chat",
        "model.gguf",
    ], done.stderr
    said, found = read(out)
    assert said["general.architecture"] == "gpt2"
    keys = (
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "block_count",
        "attention.head_count",
    )
    assert [said[f"gpt2.{key}"] for key in keys] == [64, 32, 128, 2, 2]
    assert said["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"], len(tokens)) == (
        "gpt2",
        "gpt-2",
        50261,
    )
    assert (
        tokens[50256:] == ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
        and tokens[15496] == "Hello"
    )
    assert types == [1] * 50256 + [3] * 5 and said["tokenizer.ggml.merges"][:2] == ["Ġ t", "Ġ a"]
    assert (
        said["tokenizer.ggml.bos_token_id"],
        said["tokenizer.ggml.eos_token_id"],
        said["tokenizer.ggml.add_bos_token"],
    ) == (50256, 50260, False)
    assert said["tokenizer.chat_template"] == vocabulary.CHAT_TEMPLATE
    theirs = tensors(CHAT)
    assert len(found) == len(theirs) and all(
        t.tensor_type == gguf.GGMLQuantizationType.F32 for t in found.values()
    )
    for ours, name, turned in (
        ("wte.weight", "token_embd.weight", False),
        ("wpe.weight", "position_embd.weight", False),
        ("ln_f.bias", "output_norm.bias", False),
        ("h.1.attn.c_attn.weight", "blk.1.attn_qkv.weight", True),
        ("h.0.attn.c_proj.weight", "blk.0.attn_output.weight", True),
        ("h.1.mlp.c_fc.weight", "blk.1.ffn_up.weight", True),
        ("h.0.mlp.c_proj.weight", "blk.0.ffn_down.weight", True),
        ("h.0.mlp.c_fc.bias", "blk.0.ffn_up.bias", False),
        ("h.1.ln_2.weight", "blk.1.ffn_norm.weight", False),
    ):
        expected = theirs[f"transformer.{ours}"]
        np.testing.assert_array_equal(found[name].data, expected.T if turned else expected)


@pytest.mark.parametrize("embed", [32, 48])
def test_q8_packs_the_matrices_that_it_can(tmp_path: Path, embed: int):
    config = GPTConfig(vocab_size=50257, context=16, layers=1, heads=2, embed=embed)
    export_gguf.write(
        tmp_path / "m",
        "m",
        config,
        gpt2.to_gpt2(gpt2.from_gpt2(tensors(config), config), config),
        "q8_0",
    )
    said, found = read(tmp_path / "m")
    types = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert (
        types["position_embd.weight"]
        == types["blk.0.ffn_up.bias"]
        == types["output_norm.weight"]
        == "F32"
    )
    assert (
        types["token_embd.weight"]
        == types["blk.0.attn_qkv.weight"]
        == ("Q8_0" if embed == 32 else "F16")
    )
    assert types["blk.0.ffn_down.weight"] == "Q8_0"  # 4 D numbers a row
    assert "tokenizer.chat_template" not in said and said["tokenizer.ggml.add_bos_token"] is True
    wide = gguf.quants.dequantize(
        found["blk.0.ffn_down.weight"].data, gguf.GGMLQuantizationType.Q8_0
    )
    np.testing.assert_allclose(
        wide, tensors(config)["transformer.h.0.mlp.c_proj.weight"].T, atol=0.01
    )


def test_half_precision_rounds_matrices_only(tmp_path: Path):
    export_gguf.write(
        tmp_path / "m", "m", BASE, gpt2.to_gpt2(gpt2.from_gpt2(tensors(BASE), BASE), BASE), "f16"
    )
    _, found = read(tmp_path / "m")
    assert {t.tensor_type.name for t in found.values() if t.name.endswith("bias")} == {"F32"}
    np.testing.assert_array_equal(
        found["blk.0.ffn_up.weight"].data,
        tensors(BASE)["transformer.h.0.mlp.c_fc.weight"].T.astype(np.float16),
    )


def test_llama_cpp_says_the_same(tmp_path: Path):
    pytest.importorskip("llama_cpp")
    run = load_run(make_run(tmp_path / "chat", CHAT))
    for kind in ("f32", "q8_0"):
        export_gguf.write(
            tmp_path / kind, kind, run.config, gpt2.to_gpt2(run.params, run.config), kind
        )
        assert beside_llama(run, tmp_path / kind, 4, exact=kind == "f32") == []
