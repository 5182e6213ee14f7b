"""The model must be GPT-2: its size, its causality, and its independence of how it is compiled."""

import math
from dataclasses import replace
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.pretrain import SIZES
from minigpt_jax import attention
from minigpt_jax.loss import logits
from minigpt_jax.model import (
    GPT,
    GPTConfig,
    attention_kernel,
    empty_cache,
    grow_vocab,
    resolve_compute_dtype,
    unstack,
)
from minigpt_jax.step import document_layout

SMALL = GPTConfig(vocab_size=300, context=16, layers=3, heads=4, embed=32)


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """Queries in blocks of 5, so that 16 of them make four, the last uneven."""
    monkeypatch.setattr(attention, "MIN_BLOCK", 5)


def weights(config: GPTConfig, seed: int = 0) -> dict:
    """Random weights, biases and scales included: zeros and ones would hide mistakes."""
    shapes = nn.unbox(
        jax.eval_shape(
            lambda: GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        )
    )
    draw = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.asarray(
            draw.normal(size=a.shape) * 0.1 + (path[-1].key == "scale"), jnp.float32
        ),
        shapes,
    )


def forward(config: GPTConfig, params: dict, *inputs, **how):
    """Hidden states, compiled: one program a call is far cheaper than one an operation."""
    return jax.jit(lambda p: GPT(config, **how).apply({"params": p}, *inputs)[0])(params)


def tokens(rows: int = 2, length: int = 16, vocab: int = 300) -> jax.Array:
    return jnp.asarray(np.random.default_rng(9).integers(0, vocab, (rows, length)))


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


def test_the_parameter_count_is_that_of_the_arrays():
    shapes = nn.unbox(
        jax.eval_shape(
            lambda: GPT(GPTConfig()).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        )
    )
    padding = (50304 - 50257) * 768
    assert (
        sum(math.prod(a.shape) for a in jax.tree.leaves(shapes)) - padding
        == GPTConfig().parameters
        == 124_439_808
    )


def test_initial_weights_have_gpt2_spread():
    params = nn.unbox(
        GPT(GPTConfig(vocab_size=2000, context=64, layers=8, embed=128, heads=4)).init(
            jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
        )["params"]
    )
    layers = params["layers"]
    for array, std in (
        (params["wte"], 0.02),
        (params["wpe"], 0.02),
        (layers["attention"]["qkv"]["kernel"], 0.02),
        (layers["mlp"]["up"]["kernel"], 0.02),
        (layers["attention"]["out"]["kernel"], 0.02 / math.sqrt(16)),
        (layers["mlp"]["down"]["kernel"], 0.02 / math.sqrt(16)),
    ):
        assert float(array.std()) == pytest.approx(std, rel=0.03)
    assert not jnp.array_equal(layers["mlp"]["up"]["kernel"][0], layers["mlp"]["up"]["kernel"][1])


def test_no_position_sees_what_comes_after_it():
    params = weights(SMALL)
    ids = jnp.arange(16)[
        None
    ]  # every position has a row of the table to itself, so the gradient tells them apart

    def outputs(table):
        return GPT(SMALL).apply({"params": params | {"wte": table}}, ids)[0][0].sum(-1)

    reached = (
        np.abs(jax.jit(jax.jacrev(outputs))(params["wte"])).sum(-1)[:, :16] > 0
    )  # [output position, input position]
    assert np.array_equal(reached, np.tri(16, dtype=bool))


@pytest.mark.parametrize(
    "how", [{"unroll": 3}, {"remat": "full"}, {"remat": "dots"}, {"remat": "full", "unroll": 2}]
)
def test_how_it_is_compiled_changes_no_number(how):
    params, ids = weights(SMALL), tokens()

    def run(gpt):
        def value(p):
            return jnp.square(gpt.apply({"params": p}, ids)[0]).sum()

        return jax.jit(jax.value_and_grad(value))(params)

    def kept(gpt):  # bytes from the forward to the backward pass
        return sum(
            a.nbytes
            for a in jax.tree.leaves(jax.vjp(lambda p: gpt.apply({"params": p}, ids)[0], params)[1])
        )

    expected, found = run(GPT(SMALL)), run(GPT(SMALL, **how))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4), found, expected
    )
    if "remat" in how:  # it must be on, or this test says nothing
        assert kept(GPT(SMALL, **how)) < kept(GPT(SMALL))


def test_packed_documents_see_what_each_sees_alone():
    separator, params = 7, weights(SMALL)
    documents = [
        jnp.array([separator, 1, 2, 3, 4]),
        jnp.array([separator, 9]),
        jnp.array([separator, 5, 6, 8, 1, 2, 3, 4, 10]),
    ]
    row = jnp.concatenate(documents)[None]
    positions, segments = document_layout(row, separator)
    packed = forward(SMALL, params, row, positions, segments)
    alone = jnp.concatenate([forward(SMALL, params, d[None])[0] for d in documents])
    np.testing.assert_allclose(packed[0], alone, atol=1e-5)
    together = forward(SMALL, params, row)
    assert (
        float(jnp.abs(together[0, -1] - alone[-1]).max()) > 1e-2
    )  # without isolation they do see each other


def test_cached_decoding_equals_the_full_forward_at_every_length():
    params, ids, model = weights(SMALL), tokens(), GPT(SMALL)
    full = logits(forward(SMALL, params, ids), params["wte"], 300)
    step = jax.jit(lambda cache, t, p: model.apply({"params": unstack(params)}, t, p, cache=cache))
    for prompt in (1, 5, 16):
        cache = jax.tree.map(jnp.asarray, empty_cache(SMALL, 2, jnp.float32))
        positions = jnp.broadcast_to(jnp.arange(prompt), (2, prompt))
        hidden, cache = step(cache, ids[:, :prompt], positions)
        scores = [logits(hidden, params["wte"], 300)]
        for i in range(prompt, 16):
            hidden, cache = step(cache, ids[:, i : i + 1], jnp.full((2, 1), i))
            scores.append(logits(hidden, params["wte"], 300))
        np.testing.assert_allclose(
            jnp.concatenate(scores, 1)[..., :300], full[..., :300], atol=1e-4
        )


def test_a_write_beyond_the_cache_changes_nothing():
    params, model = weights(SMALL), GPT(SMALL)
    cache = jax.tree.map(jnp.asarray, empty_cache(SMALL, 1, jnp.float32))
    add = jax.jit(
        lambda cache, ids, positions: model.apply(
            {"params": unstack(params)}, ids, positions, cache=cache
        )[1]
    )
    cache = add(cache, tokens(1), jnp.arange(16)[None])
    after = add(cache, jnp.array([[5]]), jnp.array([[16]]))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, cache, after))


def test_dropout_acts_in_training_only():
    config = replace(SMALL, dropout=0.5)
    params, ids = weights(config), tokens()
    quiet = forward(config, params, ids)
    apply = jax.jit(
        lambda key: GPT(config).apply(
            {"params": params}, ids, deterministic=False, rngs={"dropout": key}
        )[0]
    )
    noisy = [apply(jax.random.key(k)) for k in (0, 0, 1)]
    assert (
        jnp.array_equal(noisy[0], noisy[1])
        and not jnp.array_equal(noisy[0], noisy[2])
        and not jnp.array_equal(noisy[0], quiet)
    )


def test_new_vocabulary_starts_as_the_mean_of_the_old():
    params, grown = weights(SMALL), replace(SMALL, vocab_size=303)
    table = grow_vocab(params, 300, grown)["wte"]
    assert table.shape == (384, 32) and jnp.array_equal(table[:300], params["wte"][:300])
    np.testing.assert_allclose(
        table[300:303], jnp.broadcast_to(params["wte"][:300].mean(0), (3, 32)), atol=1e-6
    )
    assert not table[303:].any()


@pytest.mark.parametrize(
    ("asked", "dtype", "platform", "capability", "kernel"),
    [
        ("auto", "bfloat16", "gpu", "9.0", "cudnn"),
        ("auto", jnp.bfloat16, "gpu", "9.0", "cudnn"),
        ("auto", "float32", "gpu", "9.0", "xla"),
        ("auto", "bfloat16", "gpu", "7.5", "xla"),  # a T4
        ("auto", "bfloat16", "gpu", "gfx90a", "xla"),  # not NVIDIA's
        ("auto", "bfloat16", "tpu", "", "xla"),
        ("auto", "bfloat16", "cpu", "", "cpu"),
        ("auto", "float32", "cpu", "", "cpu"),
        ("xla", "bfloat16", "gpu", "9.0", "xla"),
        ("xla", "float32", "cpu", "", "xla"),
        ("cudnn", "bfloat16", "cpu", "", "cudnn"),
    ],
)
def test_attention_takes_the_kernel_that_fits_the_device(
    monkeypatch, asked, dtype, platform, capability, kernel
):
    monkeypatch.setattr(
        jax, "devices", lambda: [SimpleNamespace(platform=platform, compute_capability=capability)]
    )
    assert attention_kernel(asked, dtype, devices=1) == kernel
    assert attention_kernel(asked, dtype, devices=2) == (kernel if kernel != "cpu" else "xla")


@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_products_are_in_float32_on_a_cpu_alone(monkeypatch, backend, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert (
        resolve_compute_dtype() == dtype
        and resolve_compute_dtype("float32") == "float32"
        and resolve_compute_dtype("bfloat16") == "bfloat16"
    )


@pytest.mark.parametrize("length", [3, 17])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_head_at_a_time_is_the_same_attention(length, documents, dtype):
    draw = np.random.default_rng(length)
    q, k, v, g = (jnp.asarray(draw.normal(size=(2, length, 3, 8)), dtype) for _ in range(4))
    segments = np.sort(draw.integers(0, 3, (2, length)))
    visible = jnp.asarray(segments[:, :, None] == segments[:, None]) if documents else None

    def run(attend):
        y, pull = jax.vjp(attend, q, k, v)
        return y, *pull(g)

    ours = run(lambda q, k, v: attention.attend_by_head(5, q, k, v, visible))
    plain = run(lambda q, k, v: attention.attend(q, k, v, visible))
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.dtype == theirs.dtype == dtype
        np.testing.assert_allclose(
            *(np.asarray(a, np.float32) for a in (mine, theirs)),
            atol=2e-6 if dtype == jnp.float32 else 5e-2,
        )
