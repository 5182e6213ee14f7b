"""A GGUF file has llama.cpp's names, shapes, types, vocabulary and template.

Where llama.cpp is installed, it generates the same texts.
"""

from pathlib import Path

import gguf
import numpy as np
import pytest

from minigpt_jax.interop import export_gguf, vocabulary
from minigpt_jax.interop.gguf_file import write_file
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.tokenizer import TEXT_VOCAB
from tests.in_process import run_main
from tests.interop.models import BASE, CHAT, random_run, tensors
from tests.interop.peers import compare_with_llama_cpp

NORMAL, CONTROL = 1, 3


def read(path: Path):
    """Metadata fields and tensors of a file, by gguf's own reader."""
    reader = gguf.GGUFReader(path)
    return reader.fields, {tensor.name: tensor for tensor in reader.tensors}


@pytest.fixture(scope="module")
def exported(chat_run, tmp_path_factory):
    """What the command writes, in f32: {name: value} of the metadata, and the tensors."""
    folder = tmp_path_factory.mktemp("exported")
    out = folder / "model.gguf"
    done = run_main(export_gguf.main, "--run", chat_run, "--out", out, "--type", "f32")
    assert done.returncode == 0, done.stderr
    # Nothing unfinished is left.
    assert list(folder.iterdir()) == [out]
    again = run_main(export_gguf.main, "--run", chat_run, "--out", out)
    assert again.returncode == 2 and "exists; choose another name" in again.stderr
    fields, tensors = read(out)
    return {name: field.contents() for name, field in fields.items()}, tensors


def test_a_nanochat_is_refused_before_anything_is_written(nanochat_run, tmp_path):
    out = tmp_path / "new" / "model.gguf"
    done = run_main(export_gguf.main, "--run", nanochat_run, "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the run is a NanoChat, an architecture that llama.cpp and GGUF do not have: use "
        "minigpt export hf (transformers loads that), or train a GPT-2 "
        "(model.architecture=gpt2)\n"
    )
    assert not out.parent.exists()


def test_metadata_describes_the_model(exported):
    metadata, _ = exported
    assert metadata["general.architecture"] == "gpt2"
    assert metadata["general.name"] == "chat"
    expected = {
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 128,
        "block_count": 2,
        "attention.head_count": 2,
    }
    assert {key: metadata[f"gpt2.{key}"] for key in expected} == expected
    assert metadata["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def test_the_vocabulary_is_ours(exported):
    metadata = {n.removeprefix("tokenizer.ggml."): value for n, value in exported[0].items()}
    tokens, types = metadata["tokens"], metadata["token_type"]
    assert (metadata["model"], metadata["pre"], len(tokens)) == ("gpt2", "gpt-2", 50261)
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    assert tokens[50256:] == special
    assert tokens[15496] == "Hello"
    assert types == [NORMAL] * 50256 + [CONTROL] * 5
    assert metadata["merges"][:2] == ["Ġ t", "Ġ a"]
    assert (metadata["bos_token_id"], metadata["eos_token_id"]) == (50256, 50260)
    assert metadata["add_bos_token"] is False
    assert metadata["tokenizer.chat_template"] == vocabulary.CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("hf_name", "name", "transposed"),
    [
        ("wte.weight", "token_embd.weight", False),
        ("wpe.weight", "position_embd.weight", False),
        ("ln_f.bias", "output_norm.bias", False),
        ("h.1.attn.c_attn.weight", "blk.1.attn_qkv.weight", True),
        ("h.0.attn.c_proj.weight", "blk.0.attn_output.weight", True),
        ("h.1.mlp.c_fc.weight", "blk.1.ffn_up.weight", True),
        ("h.0.mlp.c_proj.weight", "blk.0.ffn_down.weight", True),
        ("h.0.mlp.c_fc.bias", "blk.0.ffn_up.bias", False),
        ("h.1.ln_2.weight", "blk.1.ffn_norm.weight", False),
    ],
)
def test_every_tensor_has_llama_cpps_name_and_layout(exported, hf_name, name, transposed):
    _, found = exported
    expected = tensors(CHAT)
    assert len(found) == len(expected)
    assert all(t.tensor_type == gguf.GGMLQuantizationType.F32 for t in found.values())
    tensor = expected[f"transformer.{hf_name}"]
    np.testing.assert_array_equal(found[name].data, tensor.T if transposed else tensor)


@pytest.mark.parametrize(
    ("embed", "narrow_type"), [(32, "Q8_0"), pytest.param(48, "F16", marks=pytest.mark.campaign)]
)
def test_q8_quantizes_the_matrices_whose_rows_have_whole_blocks(tmp_path, embed, narrow_type):
    config = GPTConfig(vocab_size=TEXT_VOCAB, context=16, layers=1, heads=2, embed=embed)
    write_file(tmp_path / "m", random_run(config), name="m", dtype="q8_0")
    fields, found = read(tmp_path / "m")
    types = {name: tensor.tensor_type.name for name, tensor in found.items()}
    for name in ("position_embd.weight", "blk.0.ffn_up.bias", "output_norm.weight"):
        assert types[name] == "F32"
    for name in ("token_embd.weight", "blk.0.attn_qkv.weight"):
        assert types[name] == narrow_type
    # Its rows have 4 * embed numbers.
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert "tokenizer.chat_template" not in fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    dequantized = gguf.quants.dequantize(
        found["blk.0.ffn_down.weight"].data, gguf.GGMLQuantizationType.Q8_0
    )
    expected = tensors(config)["transformer.h.0.mlp.c_proj.weight"].T
    np.testing.assert_allclose(dequantized, expected, atol=0.01)


@pytest.mark.campaign
def test_half_precision_rounds_matrices_only(tmp_path):
    write_file(tmp_path / "m", random_run(BASE), name="m", dtype="f16")
    _, found = read(tmp_path / "m")
    assert {t.tensor_type.name for t in found.values() if t.name.endswith("bias")} == {"F32"}
    expected = tensors(BASE)["transformer.h.0.mlp.c_fc.weight"].T.astype(np.float16)
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"].data, expected)


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_llama_cpp_generates_the_same(tmp_path, dtype):
    pytest.importorskip("llama_cpp")
    run = random_run(CHAT)
    write_file(tmp_path / dtype, run, name=dtype, dtype=dtype)
    assert compare_with_llama_cpp(run, tmp_path / dtype, 4, exact=dtype == "f32") == []
