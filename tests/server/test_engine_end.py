"""How the engine ends, by `close` or because the device fails, and how an answer ends in it."""

import queue
import threading

import pytest

from minigpt_jax.generate import BLOCK
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.server.engine import Engine
from minigpt_jax.server.request import Delta, EngineClosed
from minigpt_jax.tokenizer import CHAT_VOCAB, END
from tests.server.serving import TIMEOUT, tiny_run
from tests.server.test_engine import UNLIMITED, biased, generate, make_engine, request


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    return tiny_run()


def test_close_finishes_all_requests(run):
    engine = make_engine(run, queue_size=3)
    reasons: queue.Queue[str | None] = queue.Queue()
    long = [request("A stone", UNLIMITED, temperature=1.0)] * 7
    engine.submit(long, lambda i, delta: reasons.put(delta.finish_reason))
    engine.close()
    # The thread has ended, so everything has been received.
    finished = [reason for reason in reasons.queue if reason]
    assert len(finished) == 7 and "closed" in finished
    with pytest.raises(EngineClosed):
        engine.submit([request("A stone")], lambda i, delta: None)
    assert not engine.health()["alive"]


def test_a_failing_device_closes_all_requests(run, capsys):
    engine = make_engine(run)
    # Weights are missing, so the next program cannot run.
    engine._batch.params = {k: v for k, v in engine._batch.params.items() if k != "ln_f"}
    reasons: queue.Queue[str | None] = queue.Queue()
    engine.submit([request("A stone")] * 2, lambda i, delta: reasons.put(delta.finish_reason))
    assert [reasons.get(timeout=TIMEOUT) for _ in range(2)] == ["closed", "closed"]
    engine.close()
    assert not engine.health()["alive"]
    assert "Traceback" in capsys.readouterr().err


def test_an_answer_that_ended_before_a_failure_is_complete(run, capsys):
    engine = make_engine(run)
    reasons: queue.Queue[tuple[int, str]] = queue.Queue()
    decode = engine._batch.decode

    def decode_once(*args, **kwargs):
        engine._batch.decode = lambda *args, **kwargs: 1 / 0
        return decode(*args, **kwargs)

    engine._batch.decode = decode_once

    def receive(i: int, delta: Delta) -> None:
        if delta.finish_reason:
            reasons.put((i, delta.finish_reason))

    long = request("A stone", UNLIMITED, temperature=1.0)
    engine.submit([request("A stone", 1), long], receive)
    assert {reasons.get(timeout=TIMEOUT) for _ in range(2)} == {(0, "length"), (1, "closed")}
    engine.close()
    assert "ZeroDivisionError" in capsys.readouterr().err


class FailingEngine(Engine):
    """Its device fails while the third block is computed."""

    blocks = 0

    def _collect(self, block):
        self.blocks += 1
        if self.blocks == 3:
            raise RuntimeError("the device is out of memory")
        return super()._collect(block)


def test_a_failure_of_the_device_closes_requests_and_sends_no_token_twice(run):
    # Drawn tokens, because greedy ones may repeat and would hide a second copy.
    long = request("A stone", 50, temperature=1.0)
    whole = make_engine(run, num_slots=1)
    _, expected, _ = generate(whole, [long])[0]
    whole.close()
    failing = FailingEngine(run, num_slots=1, queue_size=1)
    deltas: queue.Queue[Delta] = queue.Queue()
    failing.submit([long], lambda i, delta: deltas.put(delta))
    received: list[int] = []
    reason = None
    while reason is None:
        _, tokens, reason, _ = deltas.get(timeout=TIMEOUT)
        received += [token.id for token in tokens]
    assert reason == "closed"
    assert received and received == expected[: len(received)]
    assert not failing.health()["alive"]


@pytest.mark.campaign
def test_a_finished_answer_makes_room_before_others_get_another_block():
    config = GPTConfig(vocab_size=CHAT_VOCAB, context=64, layers=1, heads=1, embed=8)
    # Blocks are as long as they can be, however slow this machine is.
    engine = make_engine(
        biased(config, END),
        num_slots=2,
        min_cache_length=config.context,
        target_block_seconds=TIMEOUT,
    )
    # Draws any token; greedy requests draw END immediately.
    long = request("A", 60, temperature=100.0, seed=1)
    # After the second block the engine knows how long a token takes.
    generate(engine, [request("A", 2, temperature=100.0)])
    received = []
    all_short_finished = threading.Event()

    def receive(i: int, delta: Delta) -> None:
        received.append((i, len(delta.tokens)))
        if i == 5 and delta.finish_reason:
            all_short_finished.set()

    engine.submit([long, *[request("A", 20)] * 5], receive)
    assert all_short_finished.wait(TIMEOUT)
    # The end token is not part of an answer.
    assert [tokens for i, tokens in received if i > 0] == [0] * 5
    assert sum(tokens for i, tokens in received if i == 0) < 2 * BLOCK
    engine.close()
