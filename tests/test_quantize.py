"""Eight bits must cost what rounding costs and no more, and must not let rows of a batch feel each other."""

import subprocess
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.decoding import forward, next_logits, prepare_for_decoding
from minigpt_jax.errors import InputError
from minigpt_jax.generate import Generator
from minigpt_jax.model import GPTConfig, Linear, empty_cache
from minigpt_jax.quantize import Int8, int8_linear_interceptor, to_int8
from minigpt_jax.sampling import sampling_params
from minigpt_jax.tokenizer import END_OF_TEXT, TEXT_VOCAB, load_tokenizer
from tests.test_model import weights
from tests.test_sample import command, make_run

CONFIG = GPTConfig(vocab_size=TEXT_VOCAB, context=48, layers=2, heads=2, embed=32)
TOKENIZER = load_tokenizer()
PROMPT = [END_OF_TEXT, *TOKENIZER.encode("The river reads the stone.")]


@pytest.fixture(scope="module")
def params() -> dict:
    return weights(CONFIG)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def bound(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """How far the product of `x` [B, K] and `w` [K, N] can be off when each number is off by half a step at most."""
    x_step, w_step = abs(x).max(1, keepdims=True) / 127, abs(w).max(0, keepdims=True) / 127
    return (
        abs(x).sum(1, keepdims=True) * w_step / 2
        + x_step / 2 * abs(w).sum(0, keepdims=True)
        + len(w) * x_step * w_step / 4
    )


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_product_is_off_by_what_rounding_costs(rows):
    # Rows and channels of very different sizes: one scale for all of them would not do.
    x, w = (
        normal(rows, 96) * 10.0 ** jnp.arange(rows)[:, None],
        normal(96, 40, seed=1) * 10.0 ** (jnp.arange(40) % 5)[None],
    )
    off = np.abs(
        np.asarray(to_int8(w, 1).product(x)) - np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    )
    limit = bound(np.asarray(x), np.asarray(w))
    assert (off <= limit * 1.0001).all() and off.max() > 0
    assert (
        off.mean(0) < limit.mean(0) / 4
    ).all()  # the bound is the worst case, chance is much kinder


def test_zeros_stay_zeros():
    w = normal(16, 4).at[:, 1].set(0)
    assert not to_int8(w, 1).product(jnp.zeros((2, 16))).any()
    assert not to_int8(w, 1).product(normal(2, 16))[:, 1].any()


@pytest.mark.parametrize(("shape", "inputs"), [((24, 3, 2, 8), 1), ((4, 6, 24), 2)])
def test_a_linear_in_eight_bits_is_the_float_one_within_the_bound(shape, inputs):
    layer = Linear(shape, (None,) * len(shape), inputs, 0.02, jnp.float32)
    given = {"kernel": normal(*shape), "bias": normal(*shape[inputs:], seed=2)}
    x = normal(2, 3, *shape[:inputs], seed=1)
    exact = layer.apply({"params": given}, x)
    with nn.intercept_methods(int8_linear_interceptor):
        same = layer.apply({"params": given}, x)
        eight = layer.apply({"params": given | {"kernel": to_int8(given["kernel"], inputs)}}, x)
    assert jnp.array_equal(same, exact)
    assert eight.shape == exact.shape and eight.dtype == exact.dtype
    limit = bound(
        np.asarray(x).reshape(6, -1), np.asarray(given["kernel"]).reshape(24, -1)
    ).reshape(exact.shape)
    assert (np.abs(eight - exact) <= limit * 1.0001).all() and not np.array_equal(eight, exact)


def test_every_matrix_and_nothing_else_is_in_eight_bits(params):
    eight = prepare_for_decoding(params, CONFIG, quantize="int8")[1]
    for part, count in {"head": 1, **{f"layer_{i}": 4 for i in range(CONFIG.layers)}}.items():
        found = [
            node
            for node in jax.tree.leaves(eight[part], is_leaf=lambda n: isinstance(n, Int8))
            if isinstance(node, Int8)
        ]
        assert len(found) == count and all(n.values.dtype == jnp.int8 for n in found)
    assert jnp.array_equal(eight["wpe"], params["wpe"]) and jnp.array_equal(
        eight["wte"], params["wte"]
    )


def loss_of(params: dict, ids: jax.Array, quantize: str | None) -> float:
    """Mean loss of rows `ids` [B, T+1]."""
    model, held = prepare_for_decoding(params, CONFIG, quantize=quantize)
    rows, length = ids.shape[0], ids.shape[1] - 1

    @jax.jit
    def run(p):
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        hidden, _ = forward(
            model, p, ids[:, :-1], positions, empty_cache(CONFIG, rows, jnp.float32)
        )
        scores = next_logits(hidden, p, TEXT_VOCAB)
        return (
            jax.nn.logsumexp(scores, -1) - jnp.take_along_axis(scores, ids[:, 1:, None], -1)[..., 0]
        ).mean()

    return float(run(held))


def test_the_loss_rises_by_less_than_a_hundredth(params):
    """On text that the float model finds likely, where there is something to lose."""
    writer = Generator(params, CONFIG, TOKENIZER, rows=4)
    list(
        writer.stream(
            [[END_OF_TEXT, first] for first in (11, 22, 33, 44)],
            sampling_params(4, CONFIG, temperature=0.0),
            max_new_tokens=47,
        )
    )
    ids = jnp.asarray(
        [
            [END_OF_TEXT, first, *answer.tokens][:48]
            for first, answer in zip((11, 22, 33, 44), writer.completions, strict=True)
        ]
    )
    float_loss, eight = (loss_of(params, ids, quantize) for quantize in (None, "int8"))
    assert float_loss < np.log(TEXT_VOCAB) - 0.3  # it knows something
    assert eight != float_loss and abs(eight / float_loss - 1) < 0.01


def test_greedy_text_is_the_same_alone_and_in_a_batch(params):
    def write(*prompts):
        writer = Generator(params, CONFIG, TOKENIZER, rows=len(prompts), quantize="int8")
        list(
            writer.stream(
                prompts, sampling_params(len(prompts), CONFIG, temperature=0.0), max_new_tokens=30
            )
        )
        return [answer.tokens for answer in writer.completions]

    others = [[END_OF_TEXT], PROMPT, [END_OF_TEXT, *TOKENIZER.encode("A light token")]]
    alone = write(PROMPT)[0]
    assert len(alone) > 20 and write(*others)[1] == alone
    plain = Generator(params, CONFIG, TOKENIZER)
    list(plain.stream([PROMPT], sampling_params(1, CONFIG, temperature=0.0), max_new_tokens=3))
    assert plain.completions[0].tokens[:1] == alone[:1]  # the same model


def test_what_cannot_be_is_refused(params):
    with pytest.raises(InputError, match="quantize int4: expected int8"):
        Generator(params, CONFIG, TOKENIZER, quantize="int4")


def test_sample_answers_in_eight_bits(tmp_path: Path):
    run = make_run(tmp_path / "text", TEXT_VOCAB, ["龘"], context=64)
    how = command(
        "--run", str(run), "--prompt", "Once", "--max-new-tokens", "6", "--quantize", "int8"
    )
    done = subprocess.run(
        **how, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("Once") and len(done.stdout) > 5, (
        done.stderr
    )
    bad = subprocess.run(
        **command("--quantize", "int4"),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert bad.returncode == 2 and "int4" in bad.stderr and "int8" in bad.stderr
