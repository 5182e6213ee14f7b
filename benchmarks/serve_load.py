"""How a server behaves under load: fairness, answers in a full house, and at the end."""

import asyncio
import signal
from collections.abc import Sequence
from statistics import median

from benchmarks.serving_client import Answer, ServerProcess, health, send, send_all

# Answers of one client that hold the others up, and their longest length.
CROWD_ANSWERS = 64
_CROWD_TOKENS = 240
_ANSWERS_PER_REQUEST = 16
_SHORT_TOKENS = 3
_TRIES = 5
# Answers of which the texts are compared, and answers that a signal finds.
_COMPARED = 20
NUM_SIGNALLED = 48
_SIGNALLED_TOKENS = 30


def changed_texts(port: int, bodies: Sequence[dict], crowded: Sequence[str]) -> str:
    """How many of the first texts in `crowded` are others where each request is alone."""
    count = min(_COMPARED, len(bodies))
    alone = asyncio.run(send_all(port, bodies[:count], clients=1))
    changed = sum(a.text != text for a, text in zip(alone, crowded[:count], strict=True))
    return f"{changed} of {count}"


def waits_beside_a_crowd(port: int, prompt: Sequence[int]) -> list[str]:
    """Median and longest time of a short answer beside one client's many, in seconds.

    First beside a few requests with many answers each, then beside as many requests as answers.
    """
    # The context may end them earlier.
    long = {"prompt": prompt, "max_tokens": _CROWD_TOKENS}
    several = [long | {"n": _ANSWERS_PER_REQUEST}] * (CROWD_ANSWERS // _ANSWERS_PER_REQUEST)
    single = [long] * CROWD_ANSWERS
    return [asyncio.run(_waits(port, crowd)) for crowd in (several, single)]


async def _waits(port: int, crowd: Sequence[dict]) -> str:
    short = {"prompt": crowd[0]["prompt"], "max_tokens": _SHORT_TOKENS}
    seconds = []
    for _ in range(_TRIES):
        others = [asyncio.create_task(send(port, body, "crowd")) for body in crowd]
        while (await health(port))["queued"] < CROWD_ANSWERS // 2:
            await asyncio.sleep(0.05)
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
    while (numbers := await health(server.port))["active"] + numbers["queued"] < len(bodies) // 2:
        await asyncio.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    return await asyncio.gather(*answers)
