"""NanoChat's tensors are converted both ways without a changed bit; what is not ours is refused."""

import json
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from minigpt_jax import load_run
from minigpt_jax.architectures import make_model
from minigpt_jax.errors import InputError
from minigpt_jax.interop import import_hf
from minigpt_jax.interop.hugging_face import read_folder
from minigpt_jax.interop.nanochat import (
    from_nanochat,
    from_nanochat_config,
    to_nanochat,
    to_nanochat_config,
)
from minigpt_jax.interop.vocabulary import vocabulary
from minigpt_jax.loss import logits
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.tokenizer import TEXT_VOCAB
from tests.golden.layout import from_transformers
from tests.in_process import run_main
from tests.interop.models import (
    BASE,
    NANOCHAT,
    NANOCHAT_CHAT,
    nanochat_shapes,
    tensors,
    write_source,
)
from tests.parity import load_golden

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QUERIES = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("config", [NANOCHAT, NANOCHAT_CHAT])
def test_converting_there_and_back_changes_no_bit(config: GPTConfig):
    theirs = tensors(config)
    ours = from_nanochat(theirs, config)
    for table in ("wte", "lm_head"):
        assert ours[table].shape == (config.padded_vocab, config.embed)
        assert not ours[table][config.vocab_size :].any()
        # Rows beyond the vocabulary are not exported, whatever is in them.
        ours[table][config.vocab_size :] = 7.0
    back = to_nanochat(ours, config)
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert back[name].tobytes() == tensor.tobytes() and back[name].shape == tensor.shape, name
    assert from_nanochat_config(to_nanochat_config(config)) == config


def test_the_shapes_are_those_of_our_model():
    def init():
        tokens = jnp.zeros((1, 1), jnp.int32)
        return make_model(NANOCHAT_CHAT).init(jax.random.key(0), tokens)["params"]

    expected = jax.tree.map(lambda a: a.shape, nn.unbox(jax.eval_shape(init)))
    found = from_nanochat(tensors(NANOCHAT_CHAT), NANOCHAT_CHAT)
    assert jax.tree.map(lambda a: a.shape, found) == expected


def test_every_tensor_gets_the_place_that_parity_needs():
    """With this layout, written apart, parity.py finds the logits of transformers."""
    golden = load_golden("nanochat")
    sizes = {name: int(golden[name]) for name in ("context", "layers", "heads", "embed")}
    config = GPTConfig(vocab_size=int(golden["vocab"]), architecture="nanochat", **sizes)
    weights = {
        name: golden[f"before/{name}"].astype(np.float32) for name in nanochat_shapes(config)
    }
    found = from_nanochat(weights, config)
    expected = jax.tree.map(np.float32, from_transformers(golden, "before"))
    for table in ("wte", "lm_head"):
        found[table] = found[table][: config.vocab_size]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_names_without_prefix_and_rotary_buffers_are_accepted():
    theirs = {name.removeprefix("model."): tensor for name, tensor in tensors(NANOCHAT).items()}
    buffers = {
        "rotary_emb.inv_freq": np.ones(8, np.float32),
        "layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    found = from_nanochat(theirs | buffers, NANOCHAT)
    expected = from_nanochat(tensors(NANOCHAT), NANOCHAT)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({HEAD: None}, r"tensor lm_head\.weight: found none.*save the whole NanoChatForCausalLM"),
        ({EMBEDDING: None}, r"embed_tokens\.weight: found none, expected \(50257, 32\)"),
        ({QUERIES: None}, r"layers\.1\.self_attn\.q_proj\.weight: found none"),
        # One key for both heads.
        (
            {QUERIES.replace("q_proj", "k_proj"): np.zeros((16, 32), np.float32)},
            r"k_proj\.weight: found \(16, 32\), expected \(32, 32\)",
        ),
        (
            {QUERIES.replace("weight", "bias"): np.zeros(32, np.float32)},
            r"q_proj\.bias: found \(32,\), expected none",
        ),
        # A norm with weights is another architecture.
        ({"model.norm.weight": np.ones(32, np.float32)}, r"norm\.weight: found \(32,\)"),
        ({HEAD: np.full((50257, 32), np.inf, np.float32)}, r"lm_head\.weight: .* not finite"),
        ({"embed_tokens.weight": np.zeros((50257, 32), np.float32)}, "the same tensors twice"),
        ({HEAD: np.zeros((50304, 32), np.float32)}, r"lm_head\.weight: found \(50304, 32\)"),
    ],
)
def test_wrong_tensors_are_refused_by_name(change: dict, message: str):
    changed = {
        name: tensor for name, tensor in (tensors(NANOCHAT) | change).items() if tensor is not None
    }
    with pytest.raises(InputError, match=message):
        from_nanochat(changed, NANOCHAT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu', but our NanoChat has 'relu2'"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is None, .* has 15.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, .* num_attention_heads = 2"),
        ({"intermediate_size": 64}, r"intermediate_size is 64, .* 4 \* hidden_size = 128"),
        # transformers' default.
        ({"intermediate_size": ...}, "intermediate_size is 8192"),
        ({"head_dim": 32}, "head_dim is 32, .* hidden_size / num_attention_heads = 16"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_theta .* 1000000.0, .* has 10000.0"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type .* 'linear', .* has 'default'"),
        ({"rope_parameters": {"factor": 2.0}}, "factor of the rotary positions is 2.0, .* none"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor .* 0.5"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\], expected an object"),
        # Names of earlier versions.
        ({"rope_theta": 500_000}, "rope_theta .* 500000"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "type of the rotary .* 'dynamic'",
        ),
        ({"vocab_size": 32000}, "vocab_size is 32000, expected 50257"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a whole number"),
        ({"num_attention_heads": 3}, "multiple"),
        ({"num_attention_heads": 32}, "must be even for rotary positions"),
    ],
)
def test_another_architecture_is_refused(change: dict, message: str):
    """A change to ... leaves the field out."""
    fields = to_nanochat_config(NANOCHAT) | change
    fields = {name: value for name, value in fields.items() if value is not ...}
    with pytest.raises(InputError, match=message) as error:
        from_nanochat_config(fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": None},
        {"head_dim": 16},
        {"rope_parameters": None},
        {"rope_parameters": None, "rope_theta": 10000, "rope_scaling": None},
        {"rope_scaling": {"type": "default"}},
        # Of training alone, and of text generation.
        {"attention_dropout": 0.1, "pad_token_id": 1, "use_cache": False},
        {"dtype": "bfloat16"},
    ],
)
def test_other_words_for_the_same_model_are_accepted(change: dict):
    assert from_nanochat_config(to_nanochat_config(NANOCHAT) | change) == NANOCHAT


def padded(above_embedding: np.ndarray, above_head: np.ndarray) -> tuple[GPTConfig, dict]:
    """A model with these rows above GPT-2's vocabulary."""
    weights = tensors(NANOCHAT)
    for name, above in ((EMBEDDING, above_embedding), (HEAD, above_head)):
        weights[name] = np.concatenate([weights[name], above.astype(np.float32)])
    return replace(NANOCHAT, vocab_size=len(weights[HEAD])), weights


LIVE = np.random.default_rng(1).normal(size=(47, 32)) * 0.2
DEAD = np.zeros((47, 32))


def test_padding_of_both_tables_is_left_out(tmp_path):
    config, params = read_folder(write_source(tmp_path / "dead", *padded(DEAD, DEAD)))
    assert config == NANOCHAT
    expected = from_nanochat(tensors(NANOCHAT), NANOCHAT)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(("above_embedding", "above_head"), [(LIVE, DEAD), (DEAD, LIVE)])
def test_rows_that_are_alive_in_one_table_need_a_tokenizer(tmp_path, above_embedding, above_head):
    source = write_source(tmp_path / "live", *padded(above_embedding, above_head))
    with pytest.raises(InputError, match=r"has 50,304 rows.*resize_token_embeddings\(50257\)"):
        read_folder(source)
    (source / "vocab.json").write_text(json.dumps(vocabulary() | {"<|endoftext|>": 50256}))
    assert read_folder(source)[0] == NANOCHAT


def test_the_command_imports_a_bfloat16_model_in_pieces(tmp_path):
    half = {name: t.astype(ml_dtypes.bfloat16) for name, t in tensors(NANOCHAT).items()}
    source = write_source(tmp_path / "source", NANOCHAT, half, pieces=3)
    done = run_main(import_hf.main, "--source", source, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert f"NanoChat with {NANOCHAT.parameters:,} parameters" in done.stdout
    run = load_run(tmp_path / "run")
    assert run.config == NANOCHAT
    expected = from_nanochat(half, NANOCHAT)
    jax.tree.map(np.testing.assert_array_equal, run.params, expected)


@pytest.mark.parametrize(("config", "weights"), [(NANOCHAT, BASE), (BASE, NANOCHAT)])
def test_the_config_of_one_model_with_the_weights_of_the_other_is_refused(
    tmp_path, config: GPTConfig, weights: GPTConfig
):
    source = write_source(tmp_path / "source", config, tensors(weights))
    with pytest.raises(InputError, match=r"source: tensor .*: found"):
        read_folder(source)


def test_weights_that_transformers_wrote_give_its_logits(tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    theirs = transformers.NanoChatForCausalLM(
        transformers.NanoChatConfig(
            vocab_size=TEXT_VOCAB,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
    ).eval()
    theirs.save_pretrained(tmp_path / "source")
    config, params = read_folder(tmp_path / "source")
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 64))
    params = jax.tree.map(jnp.asarray, params)
    hidden, _ = make_model(config).apply({"params": params}, ids)
    ours = logits(hidden, params["lm_head"], config.vocab_size, config.logit_cap)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(ours[..., : config.vocab_size], expected, atol=2e-5)
