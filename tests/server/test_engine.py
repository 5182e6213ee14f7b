"""A request's text is its own: alone or in a full house, whatever the neighbours want, whoever leaves, and never a new shape."""

import queue
import threading
import time
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

from minigpt_jax import generate
from minigpt_jax.errors import InputError
from minigpt_jax.generate import Generator
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model import GPTConfig
from minigpt_jax.sampling import sampling_params
from minigpt_jax.server.engine import TOP, Busy, Closed, Engine, Job, Piece, _spans
from minigpt_jax.tokenizer import CHAT_VOCAB, END, USER, load_tokenizer
from tests.models import weights

CONFIG = GPTConfig(
    vocab_size=384, context=64, layers=2, heads=2, embed=16
)  # few tokens, because a draw looks at each of them
TOKENIZER = load_tokenizer()
SLOTS, QUEUE, DEADLINE = 4, 40, 60


@pytest.fixture(scope="module", autouse=True)
def three_spans() -> Iterator[None]:
    """A context of 64 is long: steps look at 16 slots, at 32, or at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minigpt_jax.server.engine.SPAN", 16)
        yield


@pytest.fixture(scope="module")
def params() -> dict:
    return weights(CONFIG)


@pytest.fixture(scope="module")
def engine(params) -> Iterator[Engine]:
    engine = Engine(LoadedRun(params, CONFIG, TOKENIZER), slots=SLOTS, queue=QUEUE)
    yield engine
    engine.close()


def job(text: str, tokens: int = 20, stop=(), logprobs: int | None = None, **how) -> Job:
    return Job(
        [1, *(byte for byte in text.encode())],
        sampling_params(1, CONFIG, **{"temperature": 0.0, **how}),
        tokens,
        stop,
        logprobs,
    )


def answers(engine: Engine, jobs: list[Job]) -> list[tuple[str, list[int], str | None]]:
    """Text, ids and reason of every job, asked at once."""
    pieces: queue.Queue[tuple[int, Piece]] = queue.Queue()
    engine.submit(jobs, lambda i, piece: pieces.put((i, piece)))
    found = [("", [], None) for _ in jobs]
    while not all(reason for _, _, reason in found):
        i, piece = pieces.get(timeout=DEADLINE)
        text, ids, reason = found[i]
        assert reason is None, "nothing comes after the end"
        found[i] = (text + piece.text, ids + [token.id for token in piece.tokens], piece.reason)
    return found


def idle(engine: Engine) -> None:
    """Wait until nothing is in a slot or before one."""
    end = time.monotonic() + DEADLINE
    while engine.health()["active"] or engine.health()["queued"]:
        assert time.monotonic() < end, engine.health()
        time.sleep(0.01)


TEXTS = [
    "The river",
    "A small dog sees the stone under the light",
    "model",
    "Slowly the token reads and writes",
    "",
]
HOUSE = [
    job(text, tokens, **how)
    for text in TEXTS
    for tokens, how in (
        (5, {}),
        (30, {}),
        (17, {"temperature": 1.0, "seed": 3}),
        (40, {"temperature": 0.7, "top_p": 0.9, "seed": 4}),
        (9, {"temperature": 1.2, "top_k": 5, "seed": 5}),
        (23, {"repetition_penalty": 1.5}),
        (16, {"temperature": 1.0, "min_p": 0.05, "seed": 6}),
    )
]


def test_a_text_is_the_same_alone_and_in_a_full_house(engine):
    alone = [answers(engine, [j])[0] for j in HOUSE]
    assert answers(engine, HOUSE) == alone
    assert answers(engine, HOUSE[::-1]) == alone[::-1]
    assert len({text for text, _, _ in alone}) > len(HOUSE) // 2


def test_it_writes_what_the_generator_writes(engine, params):
    writer = Generator(params, CONFIG, TOKENIZER)
    for one, (text, ids, reason) in zip(HOUSE, answers(engine, HOUSE), strict=True):
        for _ in writer.stream([one.prompt], one.sampling, max_new_tokens=one.max_tokens):
            pass
        assert (text, ids, reason) == (
            writer.completions[0].text,
            writer.completions[0].tokens,
            writer.completions[0].finish_reason,
        )


def test_a_step_looks_at_no_more_than_twice_of_what_is_there():
    assert (
        _spans(100, 0) == [16, 32, 64, 100]
        and _spans(64, 0) == [16, 32, 64]
        and _spans(10, 0) == [10]
    )
    assert _spans(100, TOP) == [100]


def test_nothing_is_compiled_after_the_start(engine):
    before = engine.health()["compilations"]
    answers(
        engine,
        [
            job(TEXTS[i % 5], i + 1, logprobs=i if i % 2 else None, temperature=i % 3 / 2, seed=i)
            for i in range(12)
        ],
    )
    for length in range(1, CONFIG.context):
        answers(engine, [Job([5] * length, sampling_params(1, CONFIG), 1)])
    answers(engine, [job("a", 7, logprobs=20), job("b", 3)])
    assert engine.health()["compilations"] == before
    assert before > 5  # the counter counts at all


def test_an_answer_ends_at_its_length_the_context_or_a_stop_string(engine):
    for length in (1, 15, 16, 17, 33):
        text, ids, reason = answers(engine, [job("The river", length)])[0]
        assert (len(ids), reason) == (length, "length")
    prompt = [7] * (CONFIG.context - 3)
    _, ids, reason = answers(engine, [Job(prompt, sampling_params(1, CONFIG), 1000)])[0]
    assert (len(ids), reason) == (3, "length")
    whole, ids, _ = answers(engine, [job("The river", 30)])[0]
    stop = whole[10:14]
    text, used, reason = answers(engine, [job("The river", 30, stop=[stop])])[0]
    assert (text, reason) == (whole[: whole.index(stop)], "stop")
    assert (
        used == ids[: len(used)]
        and stop in TOKENIZER.decode(used)
        and stop not in TOKENIZER.decode(used[:-1])
    )


def test_log_probabilities_come_with_their_tokens(engine):
    received = queue.Queue()
    engine.submit([job("The river", 20, logprobs=3)], lambda i, piece: received.put(piece))
    tokens = []
    while True:
        piece = received.get(timeout=DEADLINE)
        tokens += piece.tokens
        if piece.reason:
            break
    for token in tokens:  # greedy: the drawn one is the most likely
        assert token.top[0] == (token.id, token.logprob) and len(token.top) == 3
        assert [value for _, value in token.top] == sorted(
            (value for _, value in token.top), reverse=True
        )
    assert answers(engine, [job("The river", 20)])[0][1] == [token.id for token in tokens]


def test_role_markers_inside_an_answer_are_no_text_but_count():
    config = GPTConfig(vocab_size=CHAT_VOCAB, context=16, layers=1, heads=1, embed=8)
    params = weights(config)
    always = {
        "ln_f": {"scale": jnp.zeros(8), "bias": jnp.ones(8)},
        "wte": params["wte"].at[USER].set(10),
    }
    engine = Engine(LoadedRun(params | always, config, TOKENIZER), slots=1)
    assert answers(engine, [job("The", 5)]) == [("", [USER] * 5, "length")]
    engine.close()


def test_an_answer_that_ends_makes_room_before_its_neighbours_have_a_block_more(monkeypatch):
    monkeypatch.setattr(
        "minigpt_jax.server.engine.PACE", 60.0
    )  # blocks are as long as they may be, however slow this machine is
    config = GPTConfig(vocab_size=CHAT_VOCAB, context=128, layers=1, heads=1, embed=8)
    params = weights(config)
    ends = {
        "ln_f": {"scale": jnp.zeros(8), "bias": jnp.ones(8)},
        "wte": params["wte"].at[END].set(10),
    }
    engine = Engine(LoadedRun(params | ends, config, TOKENIZER), slots=2)
    heat = {"temperature": 100.0, "seed": 1}  # draws anything, where the others end at once
    answers(engine, [job("A", 60, **heat)])  # how long a token takes is known
    heard, over = [], threading.Event()

    def receive(i: int, piece: Piece) -> None:
        heard.append((i, len(piece.tokens)))
        if i == 5 and piece.reason:
            over.set()

    engine.submit([job("A", 100, **heat), *[job("A", 20)] * 5], receive)
    assert over.wait(DEADLINE)
    written = sum(tokens for i, tokens in heard if i == 0)
    assert [tokens for i, tokens in heard if i] == [0] * 5  # an end is no text
    assert written < 2 * generate.BLOCK
    engine.close()


def test_who_leaves_makes_room_and_disturbs_nobody(engine):
    calm = [job(text, 40) for text in TEXTS]
    expected = answers(engine, calm)
    heard: list[int] = []
    for _ in range(3):
        leaving = engine.submit(
            [job("A stone", 10_000, temperature=1.0) for _ in range(20)],
            lambda i, piece: heard.append(i),
        )
        departure = threading.Timer(0.05, engine.cancel, [leaving])
        departure.start()
        assert answers(engine, calm) == expected
        departure.join()
        idle(engine)
        count = len(heard)
        answers(engine, calm[:1])
        assert len(heard) == count  # and hears no more


def test_who_cannot_be_told_harms_nobody(engine):
    def gone(i, piece):
        raise RuntimeError("the loop is closed")

    engine.submit([job("A stone", 30)] * SLOTS, gone)
    assert answers(engine, [job("The river", 5)])[0][2] == "length"
    idle(engine)


def test_the_queue_is_bounded_and_takes_all_or_none(engine):
    idle(engine)
    long = [job("A stone", 60, temperature=1.0)] * (QUEUE + SLOTS)
    tickets = engine.submit(long, lambda i, piece: None)
    with pytest.raises(Busy):
        engine.submit(long[: SLOTS + 1], lambda i, piece: None)
    engine.cancel(tickets)
    assert engine.health()["queued"] == 0  # at once
    idle(engine)
    with pytest.raises(Busy):
        engine.submit([*long, long[0]], lambda i, piece: None)
    assert engine.health()["queued"] == 0


@pytest.mark.parametrize("length", [0, CONFIG.context, 1000])
def test_a_prompt_that_does_not_fit_is_refused(engine, length):
    with pytest.raises(InputError, match=f"has {length} tokens"):
        engine.submit([Job([5] * length, sampling_params(1, CONFIG), 1)], lambda i, piece: None)


def test_closing_ends_what_is_left(params):
    engine = Engine(LoadedRun(params, CONFIG, TOKENIZER), slots=SLOTS, queue=3)
    ends = queue.Queue()
    engine.submit(
        [job("A stone", 10_000, temperature=1.0)] * 7, lambda i, piece: ends.put(piece.reason)
    )
    engine.close()
    reasons = [
        reason
        for reason in iter(
            lambda: ends.get(timeout=1) if not ends.empty() else "none left", "none left"
        )
        if reason
    ]
    assert len(reasons) == 7 and "closed" in reasons
    with pytest.raises(Closed):
        engine.submit([job("A stone")], lambda i, piece: None)
    assert not engine.health()["alive"]


def test_a_failing_device_is_told_to_all_who_wait(params, capsys):
    engine = Engine(LoadedRun(params, CONFIG, TOKENIZER), slots=SLOTS)
    engine._params = {
        name: value for name, value in engine._params.items() if name != "ln_f"
    }  # weights that are gone
    ends = queue.Queue()
    engine.submit([job("A stone")] * 2, lambda i, piece: ends.put(piece.reason))
    assert [ends.get(timeout=DEADLINE) for _ in range(2)] == ["closed", "closed"]
    engine.close()
    assert not engine.health()["alive"] and "Traceback" in capsys.readouterr().err


def test_who_ended_just_before_a_failure_has_the_whole_answer(params, capsys):
    engine = Engine(LoadedRun(params, CONFIG, TOKENIZER), slots=SLOTS)
    dispatch, ends = engine._dispatch, queue.Queue()

    def fails_later(*given, **named):
        engine._dispatch = lambda *given, **named: 1 / 0
        return dispatch(*given, **named)

    engine._dispatch = fails_later
    engine.submit(
        [job("A stone", 1), job("A stone", 10_000, temperature=1.0)],
        lambda i, piece: piece.reason and ends.put((i, piece.reason)),
    )
    assert {ends.get(timeout=DEADLINE) for _ in range(2)} == {(0, "length"), (1, "closed")}
    engine.close()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_numbers_add_up(engine):
    idle(engine)
    before = engine.health()
    written = sum(len(ids) for _, ids, _ in answers(engine, HOUSE[:10]))
    after = engine.health()
    assert (
        after["answers"] - before["answers"] == 10 and after["tokens"] - before["tokens"] == written
    )
    assert (
        0 < after["time_to_first_token"]["p50"] <= after["time_to_first_token"]["p95"]
        and after["tokens_per_second"] > 0
    )
    assert np.isfinite(after["tokens_per_second"])
