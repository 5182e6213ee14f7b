"""Eight bits must cost what rounding costs and no more; rows must not depend on each other."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import talk
from minigpt_jax.decoding import empty_cache, forward, next_logits, prepare_for_decoding
from minigpt_jax.errors import InputError
from minigpt_jax.generate import Generator
from minigpt_jax.layers import Linear
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.quantize import LARGEST, Int8, int8_linear_interceptor, to_int8
from minigpt_jax.runtime.program import exit_cleanly
from minigpt_jax.sampling import sampling_params
from minigpt_jax.tokenizer import END_OF_TEXT, TEXT_VOCAB, load_tokenizer
from tests.interop import models
from tests.models import weights

CONFIG = GPTConfig(vocab_size=TEXT_VOCAB, context=48, layers=2, heads=2, embed=32)
TOKENIZER = load_tokenizer()
PROMPT = [END_OF_TEXT, *TOKENIZER.encode("The river reads the stone.")]
# A bound on rounding errors is itself computed with rounding.
SLACK = 1.0001


@pytest.fixture(scope="module")
def params() -> dict:
    return weights(CONFIG)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def error_bound(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Largest error of `x` [B, K] times `w` [K, N] if each number is off by half a step at most."""
    x_step = abs(x).max(1, keepdims=True) / LARGEST
    w_step = abs(w).max(0, keepdims=True) / LARGEST
    error_of_w = abs(x).sum(1, keepdims=True) * w_step / 2
    error_of_x = x_step / 2 * abs(w).sum(0, keepdims=True)
    return error_of_w + error_of_x + len(w) * x_step * w_step / 4


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_matmul_is_off_by_what_rounding_costs(rows):
    # Rows and channels of very different sizes: one scale for all would not do.
    x = normal(rows, 96) * 10.0 ** jnp.arange(rows)[:, None]
    w = normal(96, 40, seed=1) * 10.0 ** (jnp.arange(40) % 5)[None]
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    error = np.abs(np.asarray(to_int8(w, 1).matmul(x)) - exact)
    bound = error_bound(np.asarray(x), np.asarray(w))
    assert (error <= bound * SLACK).all()
    assert error.max() > 0
    # The bound is the worst case; errors that are random are far smaller.
    assert (error.mean(0) < bound.mean(0) / 4).all()


def test_zeros_stay_zeros():
    w = normal(16, 4).at[:, 1].set(0)
    assert not to_int8(w, 1).matmul(jnp.zeros((2, 16))).any()
    assert not to_int8(w, 1).matmul(normal(2, 16))[:, 1].any()


@pytest.mark.parametrize(("shape", "inputs"), [((24, 3, 2, 8), 1), ((4, 6, 24), 2)])
def test_a_linear_in_eight_bits_is_the_float_one_within_the_bound(shape, inputs):
    layer = Linear(shape, (None,) * len(shape), inputs, 0.02, jnp.float32)
    kernel = normal(*shape)
    float_params = {"kernel": kernel, "bias": normal(*shape[inputs:], seed=2)}
    int8_params = float_params | {"kernel": to_int8(kernel, inputs)}
    x = normal(2, 3, *shape[:inputs], seed=1)
    exact = layer.apply({"params": float_params}, x)
    with nn.intercept_methods(int8_linear_interceptor):
        unchanged = layer.apply({"params": float_params}, x)
        found = layer.apply({"params": int8_params}, x)
    assert jnp.array_equal(unchanged, exact)
    assert found.shape == exact.shape
    assert found.dtype == exact.dtype
    bound = error_bound(np.asarray(x).reshape(6, -1), np.asarray(kernel).reshape(24, -1))
    assert (np.abs(found - exact) <= bound.reshape(exact.shape) * SLACK).all()
    assert not np.array_equal(found, exact)


def test_all_matrices_and_nothing_else_are_in_eight_bits(params):
    quantized = prepare_for_decoding(params, CONFIG, quantize="int8")[1]
    counts = {"head": 1} | {f"layer_{i}": 4 for i in range(CONFIG.layers)}
    for part, count in counts.items():
        leaves = jax.tree.leaves(quantized[part], is_leaf=lambda leaf: isinstance(leaf, Int8))
        matrices = [leaf for leaf in leaves if isinstance(leaf, Int8)]
        assert len(matrices) == count
        assert all(matrix.values.dtype == jnp.int8 for matrix in matrices)
    assert jnp.array_equal(quantized["wpe"], params["wpe"])
    assert jnp.array_equal(quantized["wte"], params["wte"])


def generate(params: dict, prompts: list[list[int]], *, quantize: str | None = None) -> list:
    """The most likely tokens after each prompt, up to the end of the context."""
    generator = Generator(params, CONFIG, TOKENIZER, rows=len(prompts), quantize=quantize)
    settings = sampling_params(len(prompts), CONFIG, temperature=0.0)
    completions = generator.complete(prompts, settings, max_new_tokens=CONFIG.context)
    return [completion.tokens for completion in completions]


@pytest.fixture(scope="module")
def likely_texts(params) -> list[list[int]]:
    """Four texts that the float model finds likely, the last one with PROMPT as its beginning."""
    prompts = [[END_OF_TEXT, first] for first in (11, 22, 33)] + [PROMPT]
    texts = generate(params, prompts)
    return [prompt + text for prompt, text in zip(prompts, texts, strict=True)]


def mean_loss(params: dict, ids: jax.Array, quantize: str | None) -> float:
    """Mean loss of rows `ids` [B, T+1]."""
    model, prepared = prepare_for_decoding(params, CONFIG, quantize=quantize)
    rows = ids.shape[0]
    length = ids.shape[1] - 1

    @jax.jit
    def run(p):
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        cache = empty_cache(CONFIG, rows, jnp.float32)
        hidden, _ = forward(model, p, ids[:, :-1], positions, cache)
        log_probabilities = jax.nn.log_softmax(next_logits(hidden, p, CONFIG))
        return -jnp.take_along_axis(log_probabilities, ids[:, 1:, None], -1).mean()

    return float(run(prepared))


def test_the_loss_rises_by_less_than_a_hundredth(params, likely_texts):
    """On texts that the float model finds likely: on others there is nothing to lose."""
    length = min(map(len, likely_texts))
    assert length > 40
    ids = jnp.asarray([text[:length] for text in likely_texts])
    float_loss = mean_loss(params, ids, None)
    int8_loss = mean_loss(params, ids, "int8")
    assert float_loss < np.log(TEXT_VOCAB) - 0.3
    assert int8_loss != float_loss
    assert abs(int8_loss / float_loss - 1) < 0.01


@pytest.mark.campaign
def test_greedy_text_is_the_same_alone_and_in_a_batch(params, likely_texts):
    others = [[END_OF_TEXT], [END_OF_TEXT, *TOKENIZER.encode("A light token")]]
    alone = generate(params, [PROMPT], quantize="int8")[0]
    in_batch = generate(params, [others[0], PROMPT, others[1]], quantize="int8")[1]
    assert len(alone) > 20
    assert in_batch == alone
    # It is the same model as in f32.
    assert alone[0] == likely_texts[-1][len(PROMPT)]


def test_an_unknown_format_is_refused(params):
    with pytest.raises(InputError, match="quantize int4: expected int8"):
        Generator(params, CONFIG, TOKENIZER, quantize="int4")


@pytest.fixture
def call_sample(monkeypatch, capsys):
    """sample.py in this process: arguments to exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
        with pytest.raises(SystemExit) as end:
            exit_cleanly(talk.main)
        return (end.value.code, *capsys.readouterr())

    return call


def test_sample_answers_in_eight_bits(tmp_path, call_sample):
    run = models.write_random_run(tmp_path / "text", models.BASE)
    settings = ("--prompt", "Once", "--max-new-tokens", "6", "--quantize", "int8")
    code, answer, errors = call_sample("--run", str(run), *settings)
    assert code == 0, errors
    assert answer.startswith("Once")
    assert len(answer) > len("Once\n")


def test_sample_refuses_an_unknown_format(call_sample):
    code, _, errors = call_sample("--quantize", "int4")
    assert code == 2
    assert "int4" in errors
    assert "int8" in errors
