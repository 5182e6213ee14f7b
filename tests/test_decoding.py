"""A block of the decode loop: where it ends, and the log-probabilities that come with it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import attention, decoding, hardware
from minigpt_jax.architectures import AnyModel, make_model, output_head
from minigpt_jax.decoding import (
    BLOCK,
    DecodeState,
    decode,
    empty_cache,
    prefill,
    prepare_for_decoding,
    prompt_logprobs,
)
from minigpt_jax.errors import InputError
from minigpt_jax.loss import logits
from minigpt_jax.model_config import ARCHITECTURES, GPTConfig
from minigpt_jax.sampling import Occurrences, SamplingParams, sampling_params
from tests.models import weights

SMALL = GPTConfig(vocab_size=300, context=48, layers=1, heads=2, embed=16)
PROMPT = [299, 7, 41, 180, 7, 256]
PROMPTS = np.array([PROMPT, PROMPT[::-1]], np.int32)
NUM_LOGPROBS = 5
NO_STOP_TOKEN = -1


@pytest.fixture(scope="module", params=ARCHITECTURES)
def config(request) -> GPTConfig:
    return replace(SMALL, architecture=request.param)


@pytest.fixture(scope="module")
def params(config) -> dict:
    """With a head so large that the cap of NanoChat's logits counts."""
    params = weights(config)
    return params if config.is_gpt2 else params | {"lm_head": params["lm_head"] * 20}


@pytest.fixture(scope="module")
def decode_block(config, params):
    """Decode up to 8 tokens after PROMPTS. One compiled program serves all tests."""

    def run(settings: SamplingParams, stop: int = NO_STOP_TOKEN, stop_after_rows: int = 2):
        model, prepared = prepare_for_decoding(params, config)
        _, tokens, logprobs = decode(
            model,
            prepared,
            prefilled(model, prepared, PROMPTS),
            settings,
            stop_tokens=np.array([stop]),
            count=8,
            stop_after_rows=stop_after_rows,
            num_logprobs=NUM_LOGPROBS,
        )
        return np.asarray(tokens), logprobs

    return run


@pytest.fixture(scope="module")
def scored(config, params):
    """Log-probabilities of the first tokens of 48."""
    model, prepared = prepare_for_decoding(params, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_SCORED_AT_ONCE", 20)
        run = jax.jit(prompt_logprobs.__wrapped__, static_argnums=(0, 4))
        compiled = run.lower(model, prepared, np.zeros(48, np.int32), 1, NUM_LOGPROBS).compile()
    return lambda ids, length: compiled(prepared, ids, length)


def prefilled(model: AnyModel, prepared: dict, prompts: np.ndarray) -> DecodeState:
    """The state of a decode loop that begins after `prompts`."""
    rows, length = prompts.shape
    cache = empty_cache(model.config, rows, jnp.float32)
    return DecodeState(
        cache=prefill(model, prepared, cache, prompts[:, :-1], np.zeros(rows, np.int32)),
        last=prompts[:, -1],
        length=np.full(rows, length - 1, np.int32),
        occurrences=Occurrences.none(rows, SMALL),
        done=np.zeros(rows, bool),
    )


def test_log_probabilities_are_those_of_the_logits_before_the_filters(config, params, decode_block):
    settings = sampling_params(2, SMALL, temperature=3.0, top_p=0.5, seed=3)
    tokens, logprobs = decode_block(settings)
    hidden, _ = jax.jit(make_model(config).apply)({"params": params}, PROMPTS)
    scores = logits(hidden[:, -1], output_head(params), config.vocab_size, config.logit_cap)
    if not config.is_gpt2:
        assert 10 < float(scores.max()) < 15
    for row, expected in enumerate(np.asarray(jax.nn.log_softmax(scores))):
        ranked = np.argsort(-expected, kind="stable")[:NUM_LOGPROBS]
        assert list(logprobs.ids[row, 0]) == list(ranked)
        assert np.allclose(logprobs.values[row, 0], expected[ranked], atol=1e-5)
        assert np.allclose(logprobs.chosen[row, 0], expected[tokens[row, 0]], atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 20, 21, 41, 48])
def test_a_prompt_is_scored_in_parts_as_the_model_scores_it_whole(config, params, scored, length):
    """The last part, of 20 tokens, begins inside the one before it."""
    ids = np.random.default_rng(length).integers(0, config.vocab_size, 48).astype(np.int32)
    found = scored(ids, length)
    hidden, _ = jax.jit(make_model(config).apply)({"params": params}, ids[None])
    scores = logits(hidden[0], output_head(params), config.vocab_size, config.logit_cap)
    expected = np.asarray(jax.nn.log_softmax(scores))
    for i in range(1, length):
        assert np.allclose(found.chosen[i], expected[i - 1, ids[i]], atol=1e-5)
        ranked = np.argsort(-expected[i - 1], kind="stable")[:NUM_LOGPROBS]
        assert list(found.ids[i]) == list(ranked)
        assert np.allclose(found.values[i], expected[i - 1, ranked], atol=1e-5)


def test_the_loop_ends_when_enough_rows_are_done(decode_block):
    settings = sampling_params(2, SMALL, seed=7)
    whole, _ = decode_block(settings)
    # A token that ends the first row after three tokens, and never the second.
    stop = int(whole[0, 2])
    assert stop not in whole[0, :2] and stop not in whole[1]
    nothing = [-1] * BLOCK
    first = [*whole[0, :3], *nothing[3:]]
    both, _ = decode_block(settings, stop, stop_after_rows=2)
    assert both.tolist() == [first, [*whole[1, :8], *nothing[8:]]]
    one, _ = decode_block(settings, stop, stop_after_rows=1)
    assert one.tolist() == [first, [*whole[1, :3], *nothing[3:]]]


def test_the_operations_for_a_gpu_give_the_same_tokens(config, params, decode_block, monkeypatch):
    settings = sampling_params(2, SMALL, temperature=2.0, top_k=40, top_p=0.9, seed=2)
    expected, expected_logprobs = decode_block(settings)
    monkeypatch.setattr(hardware, "this_device", lambda: hardware.Device("gpu", "9.0"))
    # A CPU cannot run the kernels in Pallas, which tests/test_triton_kernels.py has.
    monkeypatch.setenv("MINIGPT_TRITON", "0")
    # Every cache counts as a large one.
    monkeypatch.setattr(attention, "LARGE_CACHE", 0)
    model, prepared = prepare_for_decoding(params, config, jnp.float32)
    # A jitted function of its own: `decode` may have been compiled for the CPU already.
    run = jax.jit(decode.__wrapped__, static_argnums=(0, 7))
    stop = np.array([int(expected[0, 5])])
    _, tokens, logprobs = run(
        model,
        prepared,
        prefilled(model, prepared, PROMPTS[:1]),
        jax.tree.map(lambda a: a[:1], settings),
        stop,
        8,
        1,
        NUM_LOGPROBS,
    )
    # The row ends with its sixth token.
    assert tokens.tolist() == [[*expected[0, :6], *[-1] * (BLOCK - 6)]]
    assert np.array_equal(logprobs.ids[:, :6], expected_logprobs.ids[:1, :6])


def test_another_quantization_than_int8_is_refused():
    with pytest.raises(InputError, match="quantize int4: expected int8"):
        prepare_for_decoding({}, SMALL, quantize="int4")
