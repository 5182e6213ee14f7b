"""How a server behaves under load: fairness, answers in a full house, and at the end."""

import asyncio
import signal
from collections.abc import Sequence
from statistics import median

from benchmarks.serving_client import Answer, ServerProcess, health, send, send_all

# The longest length of one client's answers that hold the others up.
_CROWD_TOKENS = 240
_ANSWERS_PER_REQUEST = 16
# Between the requests of that client where they have many answers: a later one finds a free slot.
_SECONDS_BETWEEN = 0.3
_SHORT_TOKENS = 3
_TRIES = 5
# Answers of which the texts are compared, and answers that a signal finds.
_COMPARED = 20
NUM_SIGNALLED = 48
_SIGNALLED_TOKENS = 30


def crowd_answers(slots: int) -> int:
    """How many answers of one client hold the others up: several times more than there are slots.

    For 8 slots, 64.
    """
    return _ANSWERS_PER_REQUEST * max(4, slots // 2)


def changed_texts(port: int, bodies: Sequence[dict], crowded: Sequence[str]) -> str:
    """How many of the first texts in `crowded` are others where each request is alone."""
    count = min(_COMPARED, len(bodies))
    alone = asyncio.run(send_all(port, bodies[:count], clients=1))
    changed = sum(a.text != text for a, text in zip(alone, crowded[:count], strict=True))
    return f"{changed} of {count}"


def waits_beside_a_crowd(port: int, prompt: Sequence[int], slots: int) -> list[str]:
    """Median and longest time of a short answer beside one client's many, in seconds.

    First beside a few requests with many answers each, then beside as many requests as answers.
    """
    # The context may end them earlier.
    long = {"prompt": prompt, "max_tokens": _CROWD_TOKENS}
    count = crowd_answers(slots)
    several = [long | {"n": _ANSWERS_PER_REQUEST}] * (count // _ANSWERS_PER_REQUEST)
    crowds = ((several, _SECONDS_BETWEEN), ([long] * count, 0.0))
    return [asyncio.run(_waits(port, crowd, between)) for crowd, between in crowds]


async def _waits(port: int, crowd: Sequence[dict], seconds_between: float) -> str:
    short = {"prompt": crowd[0]["prompt"], "max_tokens": _SHORT_TOKENS}
    seconds = []
    for _ in range(_TRIES):
        others = []
        for body in crowd:
            others.append(asyncio.create_task(send(port, body, "crowd")))
            await asyncio.sleep(seconds_between)
        await _all_are_in(port, others, sum(body.get("n", 1) for body in crowd))
        answer = await send(port, short, "newcomer")
        seconds.append(answer.total)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        while (await health(port))["active"]:
            await asyncio.sleep(0.05)
    return f"{median(seconds):.2f}, {max(seconds):.2f} s"


def complete_under_sigterm(server: ServerProcess, prompt: Sequence[int]) -> str:
    """How many answers that were running or waiting were complete after the signal."""
    body = {"prompt": prompt, "max_tokens": _SIGNALLED_TOKENS}
    answers = asyncio.run(_signalled(server, [body] * NUM_SIGNALLED))
    complete = sum(not answer.error for answer in answers)
    return f"{complete} of {len(answers)}"


async def _signalled(server: ServerProcess, bodies: Sequence[dict]) -> list[Answer]:
    answers = [asyncio.create_task(send(server.port, body)) for body in bodies]
    await _all_are_in(server.port, answers, len(bodies))
    server.process.send_signal(signal.SIGTERM)
    return await asyncio.gather(*answers)


async def _all_are_in(port: int, requests: Sequence[asyncio.Task], num_answers: int) -> None:
    """Wait until all answers run or wait, or the first request is complete."""
    while not any(request.done() for request in requests):
        numbers = await health(port)
        if numbers["active"] + numbers["queued"] >= num_answers:
            return
        await asyncio.sleep(0.01)
