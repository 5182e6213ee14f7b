"""Tensors are converted both ways without a changed bit, and other architectures are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.interop.gpt2 import from_gpt2, from_gpt2_config, to_gpt2, to_gpt2_config
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from tests.interop.models import BASE, CHAT, tensors


@pytest.mark.parametrize("config", [BASE, CHAT])
def test_converting_there_and_back_changes_no_bit(config: GPTConfig):
    theirs = tensors(config)
    ours = from_gpt2(theirs, config)
    assert ours["wte"].shape == (config.padded_vocab, config.embed)
    assert not ours["wte"][config.vocab_size :].any()
    # Rows beyond the vocabulary are not exported, whatever is in them.
    ours["wte"][config.vocab_size :] = 7.0
    back = to_gpt2(ours, config)
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert back[name].tobytes() == tensor.tobytes() and back[name].shape == tensor.shape, name
    assert from_gpt2_config(to_gpt2_config(config)) == config


def test_the_shapes_are_those_of_our_model():
    def init():
        return GPT(CHAT).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    expected = jax.tree.map(lambda a: a.shape, nn.unbox(jax.eval_shape(init)))
    assert jax.tree.map(lambda a: a.shape, from_gpt2(tensors(CHAT), CHAT)) == expected


def test_names_without_prefix_mask_buffers_and_a_tied_head_are_accepted():
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in tensors(BASE).items()}
    buffers = {
        "h.0.attn.bias": np.tril(np.ones((1, 1, 64, 64), np.float32)),
        "h.1.attn.masked_bias": np.float32(-1e4),
    }
    found = from_gpt2(theirs | buffers | {"lm_head.weight": theirs["wte.weight"]}, BASE)
    jax.tree.map(np.testing.assert_array_equal, found, from_gpt2(tensors(BASE), BASE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.h.1.ln_2.bias": None}, r"h\.1\.ln_2\.bias: found none, expected \(32,\)"),
        (
            {"transformer.h.0.mlp.c_fc.weight": np.zeros((128, 32), np.float32)},
            r"c_fc\.weight: found \(128, 32\), expected \(32, 128\)",
        ),
        (
            {"transformer.h.2.ln_1.bias": np.zeros(32, np.float32)},
            r"h\.2\.ln_1\.bias: found \(32,\), expected none",
        ),
        (
            {"transformer.wpe.weight": np.full((64, 32), np.nan, np.float32)},
            r"wpe\.weight: found values that are not finite",
        ),
        ({"wpe.weight": np.zeros((64, 32), np.float32)}, "found the same tensors twice"),
        (
            {"lm_head.weight": np.zeros((50257, 32), np.float32)},
            "lm_head.weight: differs from wte.weight",
        ),
        (
            {
                "transformer.wte.weight": None,
                "lm_head.weight": np.zeros((50257, 32), np.float32),
            },
            r"wte\.weight: found none, expected \(50257, 32\)",
        ),
    ],
)
def test_wrong_tensors_are_refused_by_name(change: dict, message: str):
    changed = {
        name: tensor for name, tensor in (tensors(BASE) | change).items() if tensor is not None
    }
    with pytest.raises(InputError, match=message):
        from_gpt2(changed, BASE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"activation_function": "gelu"}, "activation_function"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"n_inner": 100}, r"n_inner is 100, but GPT-2 has 4 \* n_embd = 128"),
        ({"vocab_size": 32000}, "vocab_size is 32000, expected 50257"),
        ({"n_layer": None}, "n_layer is missing"),
        ({"n_head": 3}, "multiple"),
        ({"n_layer": "2"}, "n_layer is '2', expected a whole number"),
        ({"n_head": 0}, "n_head is 0"),
        ({"n_embd": 32.0}, "n_embd is 32.0"),
        ({"n_layer": 10**9}, "n_layer is 1000000000"),
        ({"resid_pdrop": 5}, "resid_pdrop is 5"),
    ],
)
def test_another_architecture_is_refused(change: dict, message: str):
    changed = {
        name: value
        for name, value in (to_gpt2_config(BASE) | change).items()
        if value is not None or name == "n_inner"
    }
    with pytest.raises(InputError, match=message):
        from_gpt2_config(changed)
