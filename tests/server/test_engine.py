"""The engine: answers do not depend on other requests, nothing compiles late, all requests end."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax.errors import InputError
from minigpt_jax.generate import Generator
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sampling import sampling_params
from minigpt_jax.server.device_batch import cache_lengths
from minigpt_jax.server.engine import Engine
from minigpt_jax.server.pace import Pace
from minigpt_jax.server.request import Delta, QueueFull, Request
from minigpt_jax.tokenizer import CHAT_VOCAB, USER, load_tokenizer
from tests.models import weights
from tests.server.serving import TIMEOUT, TINY, tiny_run, wait_until

NUM_SLOTS = 4
QUEUE_SIZE = 50
# With a context of 64 tokens, blocks read 16, 32 or 64 tokens of the cache.
MIN_CACHE_LENGTH = 16
UNLIMITED = 10_000


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    return tiny_run()


def make_engine(run: LoadedRun, **settings) -> Engine:
    defaults = {"num_slots": NUM_SLOTS, "min_cache_length": MIN_CACHE_LENGTH}
    return Engine(run, **defaults | settings)


@pytest.fixture(scope="module")
def engine(run) -> Iterator[Engine]:
    engine = make_engine(run, queue_size=QUEUE_SIZE)
    yield engine
    engine.close()


def request(
    text: str, max_tokens: int = 20, stop=(), num_logprobs: int | None = None, **sampling
) -> Request:
    """Greedy by default; the prompt is the bytes of `text`."""
    settings = sampling_params(1, TINY, **{"temperature": 0.0, **sampling})
    return Request([1, *text.encode()], settings, max_tokens, stop, num_logprobs)


def generate(engine: Engine, requests: list[Request]) -> list[tuple[str, list[int], str | None]]:
    """Text, ids and finish reason of every request, all submitted together."""
    deltas: queue.Queue[tuple[int, Delta]] = queue.Queue()
    engine.submit(requests, lambda i, delta: deltas.put((i, delta)))
    results: list[tuple[str, list[int], str | None]] = [("", [], None) for _ in requests]
    while not all(reason for _, _, reason in results):
        i, delta = deltas.get(timeout=TIMEOUT)
        text, ids, reason = results[i]
        assert reason is None, "a delta arrived after the last one"
        new_ids = [token.id for token in delta.tokens]
        results[i] = (text + delta.text, ids + new_ids, delta.finish_reason)
    return results


def wait_until_idle(engine: Engine) -> None:
    wait_until(lambda: not (engine.health()["active"] or engine.health()["queued"]), engine.health)


TEXTS = [
    "The river",
    "A small dog sees the stone under the light",
    "model",
    "Slowly the token reads and writes",
    "",
]
VARIANTS = [
    (5, {}),
    (30, {}),
    (17, {"temperature": 1.0, "seed": 3}),
    (40, {"temperature": 0.7, "top_p": 0.9, "seed": 4}),
    (9, {"temperature": 1.2, "top_k": 5, "seed": 5}),
    (23, {"repetition_penalty": 1.5}),
    (16, {"temperature": 1.0, "min_p": 0.05, "seed": 6}),
    (35, {"frequency_penalty": 1.5, "presence_penalty": -0.5}),
    (20, {"temperature": 1.0, "logit_bias": {65: 3, 66: -100}, "seed": 7}),
]
MIXED = [request(text, tokens, **sampling) for text in TEXTS for tokens, sampling in VARIANTS]


# ---- Answers ----


def test_an_answer_does_not_depend_on_other_requests(engine):
    alone = [generate(engine, [one])[0] for one in MIXED]
    assert generate(engine, MIXED) == alone
    assert generate(engine, MIXED[::-1]) == alone[::-1]
    assert len({text for text, _, _ in alone}) > len(MIXED) // 2


def test_numbers_that_overflow_in_one_slot_change_no_other_answer(engine, run):
    """Neither that of a neighbour, nor beside the slot when it is idle, nor later in the slot.

    The logits of a text that reaches position 50 are NaN.
    """
    params = run.params | {"wpe": run.params["wpe"].at[50].set(jnp.nan)}
    overflowing = make_engine(replace(run, params=params))
    long = Request([7] * 52, sampling_params(1, TINY), 5)
    # Their padding ends before it.
    short = [request(text, 10) for text in ("The river", "model", "")]
    expected = generate(engine, short)
    assert generate(overflowing, [*short, long])[:3] == expected
    # Every slot gets one.
    generate(overflowing, [long] * NUM_SLOTS)
    assert [generate(overflowing, [one])[0] for one in short] == expected
    overflowing.close()


def test_the_engine_and_the_generator_give_the_same_answers(engine, run):
    generator = Generator(run.params, run.config, run.tokenizer)
    for one, result in zip(MIXED, generate(engine, MIXED), strict=True):
        (completion,) = generator.complete(
            [one.prompt], one.sampling, max_new_tokens=one.max_tokens
        )
        assert result == (completion.text, completion.tokens, completion.finish_reason)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
def test_an_answer_ends_at_its_length_limit(engine, length):
    _, ids, reason = generate(engine, [request("The river", length)])[0]
    assert (len(ids), reason) == (length, "length")


def test_an_answer_ends_with_the_context(engine):
    prompt = [7] * (TINY.context - 3)
    _, ids, reason = generate(engine, [Request(prompt, sampling_params(1, TINY), UNLIMITED)])[0]
    assert (len(ids), reason) == (3, "length")


def test_an_answer_ends_before_a_stop_string(engine):
    complete, ids, _ = generate(engine, [request("The river", 30)])[0]
    stop = complete[10:14]
    text, used, reason = generate(engine, [request("The river", 30, stop=[stop])])[0]
    assert (text, reason) == (complete[: complete.index(stop)], "stop")
    assert used == ids[: len(used)]
    # The last token is the one that completes the stop string.
    tokenizer = load_tokenizer()
    assert stop in tokenizer.decode(used) and stop not in tokenizer.decode(used[:-1])


def test_log_probabilities_come_with_their_tokens(engine):
    deltas: queue.Queue[Delta] = queue.Queue()
    with_logprobs = request("The river", 20, num_logprobs=3)
    engine.submit([with_logprobs], lambda i, delta: deltas.put(delta))
    tokens = []
    reason = None
    while reason is None:
        delta = deltas.get(timeout=TIMEOUT)
        tokens += delta.tokens
        reason = delta.finish_reason
    for token in tokens:
        # Greedy, so the drawn token is the most likely one.
        assert token.top[0] == (token.id, token.logprob) and len(token.top) == 3
        logprobs = [logprob for _, logprob in token.top]
        assert logprobs == sorted(logprobs, reverse=True)
    without = generate(engine, [request("The river", 20)])[0]
    assert without[1] == [token.id for token in tokens]


def biased(config: GPTConfig, token: int) -> LoadedRun:
    """A run that finds `token` far more likely than all others."""
    params = weights(config)
    final_norm = {"scale": jnp.zeros(config.embed), "bias": jnp.ones(config.embed)}
    params = params | {"ln_f": final_norm, "wte": params["wte"].at[token].set(10)}
    return LoadedRun(params, config, load_tokenizer())


def test_role_markers_in_an_answer_are_tokens_but_not_text():
    run = biased(GPTConfig(vocab_size=CHAT_VOCAB, context=16, layers=1, heads=1, embed=8), USER)
    engine = make_engine(run, num_slots=1)
    assert generate(engine, [request("The", 5)]) == [("", [USER] * 5, "length")]
    engine.close()


# ---- Slots, the queue and shapes ----


def test_blocks_read_at_most_twice_the_cache_that_they_need():
    assert cache_lengths(100, 16, with_logprobs=False) == [16, 32, 64, 100]
    assert cache_lengths(64, 16, with_logprobs=False) == [16, 32, 64]
    assert cache_lengths(10, 16, with_logprobs=False) == [10]
    assert cache_lengths(100, 16, with_logprobs=True) == [100]


def test_nothing_compiles_after_the_start(engine):
    before = engine.health()["compilations"]
    mixed = [
        request(
            TEXTS[i % len(TEXTS)],
            i + 1,
            num_logprobs=i if i % 2 else None,
            temperature=i % 3 / 2,
            seed=i,
        )
        for i in range(12)
    ]
    generate(engine, mixed)
    for length in range(1, TINY.context):
        generate(engine, [Request([5] * length, sampling_params(1, TINY), 1)])
    generate(engine, [request("a", 7, num_logprobs=20), request("b", 3)])
    penalized = request("a", 7, presence_penalty=1.0, frequency_penalty=1.0, logit_bias={5: 1})
    generate(engine, [penalized, request("b", 3)])
    for length in (1, 63, TINY.context):
        for max_tokens in (0, min(3, TINY.context - length)):
            prompt = [5] * length
            settings = sampling_params(1, TINY)
            for num_logprobs in (None, 0, 5):
                echoed = Request(prompt, settings, max_tokens, (), num_logprobs, echo_from=0)
                generate(engine, [echoed])
    assert engine.health()["compilations"] == before
    # The counter works.
    assert before > 5


def test_a_scored_prompt_waits_for_no_answer_and_changes_none(engine, monkeypatch):
    # A block has one token, so the answer cannot be complete before the prompts come.
    monkeypatch.setattr(Pace, "block_length", lambda self, needed: 1)
    long = request("The river", 40)
    (alone,) = generate(engine, [long])
    prompt = request("A stone", 0, num_logprobs=1)
    scored = replace(prompt, echo_from=0)
    ended: list[str] = []
    text = ""
    all_ended = threading.Event()

    def receive_scored(i: int, delta: Delta) -> None:
        assert delta.finish_reason == "length" and len(delta.tokens) == len(prompt.prompt)
        ended.append("prompt")

    def receive_long(i: int, delta: Delta) -> None:
        nonlocal text
        if not text:
            engine.submit([scored] * 3, receive_scored)
        text += delta.text
        if delta.finish_reason:
            ended.append("answer")
            all_ended.set()

    engine.submit([long], receive_long)
    assert all_ended.wait(TIMEOUT)
    assert ended == ["prompt"] * 3 + ["answer"] and text == alone[0]


def test_another_request_gets_the_slots_that_become_free(engine):
    wait_until_idle(engine)
    order: list[str] = []
    release = threading.Event()
    all_begun = threading.Event()

    def receiver(name: str):
        def receive(i: int, delta: Delta) -> None:
            # The engine waits here until all have been submitted.
            release.wait(TIMEOUT)
            order.append(f"{name}{i}")
            if len(set(order)) == 8:
                all_begun.set()

        return receive

    # One slot after the other becomes free.
    engine.submit([request("A stone", 20 * n) for n in (1, 2, 3, 3, 1, 1)], receiver("a"))
    wait_until(lambda: engine.health()["active"] == NUM_SLOTS)
    engine.submit([request("The river", 60)] * 2, receiver("b"))
    release.set()
    assert all_begun.wait(TIMEOUT)
    assert list(dict.fromkeys(order))[4:] == ["b0", "b1", "a4", "a5"]


def test_cancelled_requests_free_their_slots_and_receive_nothing_more(engine):
    requests = [request(text, 40) for text in TEXTS]
    expected = generate(engine, requests)
    received: list[int] = []
    for _ in range(3):
        first = threading.Event()

        def receive(i: int, delta: Delta, first: threading.Event = first) -> None:
            received.append(i)
            first.set()

        long = [request("A stone", UNLIMITED, temperature=1.0) for _ in range(20)]
        cancelled = engine.submit(long, receive)
        assert first.wait(TIMEOUT)
        # Cancelled while the others wait or run.
        cancelling = threading.Thread(target=engine.cancel, args=[cancelled])
        cancelling.start()
        assert generate(engine, requests) == expected
        cancelling.join()
        wait_until_idle(engine)
        count = len(received)
        generate(engine, requests[:1])
        assert len(received) == count


def test_a_receiver_that_fails_does_not_affect_others(engine):
    def fail(i: int, delta: Delta) -> None:
        raise RuntimeError("the event loop is closed")

    engine.submit([request("A stone", 30)] * NUM_SLOTS, fail)
    assert generate(engine, [request("The river", 5)])[0][2] == "length"
    wait_until_idle(engine)


def test_a_full_queue_accepts_all_requests_or_none(engine):
    wait_until_idle(engine)
    long = [request("A stone", 60, temperature=1.0)] * (QUEUE_SIZE + NUM_SLOTS)
    release = threading.Event()
    # The engine waits in `receive`, so the requests stay where they are.
    accepted = engine.submit(long, lambda i, delta: release.wait(TIMEOUT))
    with pytest.raises(QueueFull):
        engine.submit(long[: NUM_SLOTS + 1], lambda i, delta: None)
    engine.cancel(accepted)
    assert engine.health()["queued"] == 0
    release.set()
    wait_until_idle(engine)
    with pytest.raises(QueueFull):
        engine.submit([*long, long[0]], lambda i, delta: None)
    assert engine.health()["queued"] == 0


@pytest.mark.parametrize("length", [0, TINY.context, 1000])
def test_a_prompt_that_does_not_fit_is_an_error(engine, length):
    with pytest.raises(InputError, match=f"has {length} tokens"):
        engine.submit([Request([5] * length, sampling_params(1, TINY), 1)], lambda i, delta: None)


def test_health_counts_answers_and_tokens(engine):
    wait_until_idle(engine)
    before = engine.health()
    generated = sum(len(ids) for _, ids, _ in generate(engine, MIXED[:10]))
    after = engine.health()
    assert after["answers"] - before["answers"] == 10
    assert after["tokens"] - before["tokens"] == generated
    first_token = after["time_to_first_token"]
    assert 0 < first_token["p50"] <= first_token["p95"]
    assert after["tokens_per_second"] > 0 and np.isfinite(after["tokens_per_second"])
