"""The size of the models, their causality, and their independence of how they are compiled."""

import math
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.pretrain import SIZES
from minigpt_jax import attention
from minigpt_jax.architectures import AnyModel, grow_vocab, make_model
from minigpt_jax.decoding import empty_cache, unstack
from minigpt_jax.errors import InputError
from minigpt_jax.hardware import Device, resolve_compute_dtype
from minigpt_jax.layers import Cache
from minigpt_jax.model_config import ARCHITECTURES, GPTConfig
from minigpt_jax.step import document_layout
from tests.models import weight_shapes, weights

SMALL = GPTConfig(vocab_size=300, context=16, layers=3, heads=4, embed=32)
ROWS = 2
# Causality is exact; without it, a change of one token moves every output by far more than this.
ROUNDING = 1e-6


@pytest.fixture(autouse=True, scope="module")
def blocks():
    """Attention in blocks of 5 positions: a row of 16 takes four blocks, the last one shorter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MIN_BLOCK", 5)
        yield


@pytest.fixture(scope="module", params=ARCHITECTURES)
def config(request) -> GPTConfig:
    return replace(SMALL, architecture=request.param)


@pytest.fixture(scope="module")
def params(config) -> dict:
    return weights(config)


def forward(config: GPTConfig, params: dict, *inputs, **how):
    """Hidden states, compiled: one program compiles faster than many single operations."""
    return jax.jit(lambda p: make_model(config, **how).apply({"params": p}, *inputs)[0])(params)


def tokens() -> jax.Array:
    """Random tokens [ROWS, context]."""
    return jnp.asarray(np.random.default_rng(9).integers(0, 300, (ROWS, SMALL.context)))


@pytest.fixture(scope="module")
def hidden(config, params) -> jax.Array:
    """Hidden states of `tokens`."""
    return forward(config, params, tokens())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("gpt2", 124.439808),
        ("gpt2-medium", 354.823168),
        ("gpt2-large", 774.030080),
        ("gpt2-xl", 1557.6112),
    ],
)
def test_presets_have_the_published_sizes(name, millions):
    assert GPTConfig(**SIZES[name]).parameters == round(millions * 1e6)


@pytest.mark.parametrize(
    ("architecture", "parameters"), [("gpt2", 124_439_808), ("nanochat", 162_129_408)]
)
def test_the_parameter_count_is_that_of_the_arrays(architecture, parameters):
    config = GPTConfig(architecture=architecture)
    count = sum(math.prod(a.shape) for a in jax.tree.leaves(weight_shapes(config)))
    padding = config.tables * (config.padded_vocab - config.vocab_size) * config.embed
    assert config.padded_vocab == 50304
    assert count - padding == config.parameters == parameters


def initial(config: GPTConfig) -> dict:
    """Fresh weights."""
    init = jax.jit(make_model(config).init)
    return nn.unbox(init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])


def test_initial_weights_have_the_standard_deviations_of_gpt2():
    config = GPTConfig(vocab_size=1000, context=64, layers=4, embed=128, heads=4)
    params = initial(config)
    layers = params["layers"]
    residual_std = 0.02 / math.sqrt(2 * config.layers)
    for array, std in (
        (params["wte"], 0.02),
        (params["wpe"], 0.02),
        (layers["attention"]["qkv"]["kernel"], 0.02),
        (layers["mlp"]["up"]["kernel"], 0.02),
        (layers["attention"]["out"]["kernel"], residual_std),
        (layers["mlp"]["down"]["kernel"], residual_std),
    ):
        assert float(array.std()) == pytest.approx(std, rel=0.03)
    up = layers["mlp"]["up"]["kernel"]
    assert not jnp.array_equal(up[0], up[1])


def test_nanochat_begins_with_zeros_in_its_head_and_where_it_adds_to_the_residual_stream():
    config = replace(SMALL, embed=128, architecture="nanochat")
    params = initial(config)
    layers = params["layers"]
    linear_std = 0.5 / math.sqrt(config.embed)
    for array, std in (
        (params["wte"], 1.0),
        (params["lm_head"], 0.0),
        (layers["attention"]["qkv"]["kernel"], linear_std),
        (layers["attention"]["out"]["kernel"], 0.0),
        (layers["mlp"]["up"]["kernel"], linear_std),
        (layers["mlp"]["down"]["kernel"], 0.0),
    ):
        assert float(array.std()) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "llama"}, "model.architecture 'llama': expected gpt2 or nanochat"),
        (
            {"architecture": "nanochat", "dropout": 0.1},
            "model.dropout 0.1: NanoChat has no dropout; set it to 0, or model.architecture=gpt2",
        ),
        (
            {"architecture": "nanochat", "embed": 12},
            "model.embed / model.heads = 3 must be even for rotary positions: try model.embed=24",
        ),
    ],
)
def test_a_model_that_does_not_exist_is_refused(changes, message):
    with pytest.raises(InputError) as refused:
        replace(SMALL, **changes)
    assert str(refused.value) == message


def test_no_position_depends_on_a_later_token(config, params):
    ids = tokens()[0]
    # Row i of `changed` differs from `ids` in token i alone.
    changed = jnp.where(jnp.eye(len(ids), dtype=bool), ids + 1, ids)
    found = forward(config, params, jnp.concatenate([ids[None], changed]))
    depends = np.abs(found[1:] - found[:1]).max(-1) > ROUNDING
    assert np.array_equal(depends, np.tri(len(ids), dtype=bool).T)


def loss_and_gradients(model: AnyModel, params: dict):
    def square_sum(p):
        return jnp.square(model.apply({"params": p}, tokens())[0]).sum()

    return jax.jit(jax.value_and_grad(square_sum))(params)


def bytes_kept_for_backward(model: AnyModel, params: dict) -> int:
    """Size of what the forward pass keeps for the backward pass."""

    def residuals(p):
        return jax.vjp(lambda p: model.apply({"params": p}, tokens())[0], p)[1]

    shapes = jax.tree.leaves(jax.eval_shape(residuals, params))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in shapes)


@pytest.fixture(scope="module")
def expected(config, params):
    """Loss and gradients without `remat` and `unroll`."""
    return loss_and_gradients(make_model(config), params)


BOTH = {"remat": "full", "unroll": 2}
ALONE = [{"unroll": 3}, {"remat": "full"}, {"remat": "dots"}]


@pytest.mark.parametrize(
    ("config", "how"),
    [("gpt2", BOTH), ("nanochat", BOTH)]
    + [pytest.param("gpt2", how, marks=pytest.mark.campaign) for how in ALONE]
    + [pytest.param("nanochat", ALONE[2], marks=pytest.mark.campaign)],
    indirect=["config"],
)
def test_remat_and_unroll_change_no_number(config, params, expected, how):
    found = loss_and_gradients(make_model(config, **how), params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4), found, expected
    )


def test_remat_keeps_less_for_the_backward_pass(config, params):
    nothing, matmuls, everything = (
        bytes_kept_for_backward(make_model(config, remat=remat), params)
        for remat in ("full", "dots", "none")
    )
    assert nothing < matmuls < everything


def test_documents_in_one_row_give_the_results_of_documents_alone(config, params):
    separator = 7
    documents = [
        [separator, 1, 2, 3, 4],
        [separator, 9],
        [separator, 5, 6, 8, 1, 2, 3, 4, 10],
    ]
    longest = max(map(len, documents))
    padded = jnp.array([d + [0] * (longest - len(d)) for d in documents])
    row = jnp.array([[token for document in documents for token in document]])
    model = make_model(config)
    apply = jax.jit(
        lambda positions, segments: model.apply({"params": params}, row, positions, segments)
    )
    packed = apply(*document_layout(row, separator))[0]
    alone = [
        states[: len(document)]
        for states, document in zip(forward(config, params, padded), documents, strict=True)
    ]
    np.testing.assert_allclose(packed[0], jnp.concatenate(alone), atol=1e-5)
    # As one document, the last token does depend on the others.
    together = apply(jnp.arange(row.size)[None], jnp.zeros_like(row))[0]
    assert float(jnp.abs(together[0, -1] - alone[-1][-1]).max()) > 1e-2


@pytest.fixture(scope="module")
def add_tokens(config, params):
    """A compiled function from cache, tokens and positions to hidden states and new cache."""
    single = unstack(params)
    model = make_model(config)
    return jax.jit(
        lambda cache, ids, positions: model.apply({"params": single}, ids, positions, cache=cache)
    )


def fresh_cache() -> Cache:
    return jax.tree.map(jnp.asarray, empty_cache(SMALL, ROWS, jnp.float32))


@pytest.mark.parametrize("prompt", [1, 5, 16])
def test_cached_decoding_equals_the_full_forward_at_every_length(hidden, add_tokens, prompt):
    ids = tokens()
    positions = jnp.broadcast_to(jnp.arange(16), ids.shape)
    states, cache = add_tokens(fresh_cache(), ids[:, :prompt], positions[:, :prompt])
    found = [states]
    for i in range(prompt, 16):
        states, cache = add_tokens(cache, ids[:, i : i + 1], positions[:, i : i + 1])
        found.append(states)
    np.testing.assert_allclose(jnp.concatenate(found, 1), hidden, atol=1e-5)


@pytest.mark.parametrize("count", [1, 16])
def test_a_write_beyond_the_cache_changes_nothing(add_tokens, count):
    ids = tokens()
    positions = jnp.broadcast_to(jnp.arange(16), ids.shape)
    _, cache = add_tokens(fresh_cache(), ids, positions)
    # Not the tokens in the last slots, so that a write to these would change them.
    other_ids = jnp.flip(ids, axis=1)[:, :count]
    _, after = add_tokens(cache, other_ids, positions[:, :count] + SMALL.context)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, cache, after))


def test_dropout_acts_in_training_only():
    config = replace(SMALL, dropout=0.5)
    params = weights(SMALL)
    hidden = forward(SMALL, params, tokens())
    apply = jax.jit(
        lambda key: make_model(config).apply(
            {"params": params}, tokens(), dropout_rows=jnp.arange(ROWS), rngs={"dropout": key}
        )[0]
    )
    first, again, other = (apply(jax.random.key(seed)) for seed in (0, 0, 1))
    assert jnp.array_equal(first, again)
    assert not jnp.array_equal(first, other)
    assert not jnp.array_equal(first, hidden)
    np.testing.assert_allclose(forward(config, params, tokens()), hidden, atol=1e-6)


def test_new_rows_of_every_table_start_as_the_mean_of_the_old(config, params):
    grown = grow_vocab(params, 300, replace(config, vocab_size=303))
    tables = [name for name in ("wte", "lm_head") if name in params]
    assert len(tables) == config.tables
    for name in tables:
        old_rows = params[name][:300]
        mean = jnp.broadcast_to(old_rows.mean(0), (3, SMALL.embed))
        assert grown[name].shape == (384, SMALL.embed)
        assert jnp.array_equal(grown[name][:300], old_rows)
        np.testing.assert_allclose(grown[name][300:303], mean, atol=1e-6)
        assert not grown[name][303:].any()


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (Device("cpu"), "float32"),
        (Device("gpu", "7.0"), "float32"),
        (Device("gpu", "7.5"), "float32"),
        (Device("gpu", "8.0"), "bfloat16"),
        (Device("gpu", "12.0"), "bfloat16"),
        (Device("gpu", "gfx942"), "bfloat16"),
        (Device("tpu"), "bfloat16"),
    ],
)
def test_auto_computes_in_bfloat16_where_the_device_has_it(device, dtype):
    assert resolve_compute_dtype("auto", device) == dtype
    assert resolve_compute_dtype("float32", device) == "float32"
    assert resolve_compute_dtype("bfloat16", device) == "bfloat16"
