"""What slots are worth: many clients at once against a server with one slot and one with eight, streaming, over real sockets.

    python -m benchmarks.serve --run runs/quickstart_finetune
    python -m benchmarks.serve --run runs/pretrain --temperature 1 --clients 16

Both servers stand ready all the time and take turns; an idle one does nothing. The requests of a round are the same for
both: prompts and lengths are mixed, and every client asks for its next answer when it has the last.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks.rivals import table


class Answer(NamedTuple):
    """What one request brought."""

    text: str
    tokens: int
    first: float  # seconds until the first text


def main() -> None:
    """Measure and print the table."""
    options = parse()
    with ExitStack() as stack:
        ports = {slots: stack.enter_context(server(options, slots)) for slots in options.slots}
        rates: dict[int, list[float]] = {slots: [] for slots in ports}
        waits: dict[int, list[float]] = {slots: [] for slots in ports}
        differing = 0
        for number in range(options.rounds + 1):
            asked, texts = requests(options, number), []
            for slots, port in ports.items():
                began = time.perf_counter()
                answers = asyncio.run(together(port, asked, options.clients))
                elapsed = time.perf_counter() - began
                texts.append([answer.text for answer in answers])
                if number:  # the first round warms up
                    rates[slots].append(sum(answer.tokens for answer in answers) / elapsed)
                    waits[slots] += [answer.first for answer in answers]
            differing += sum(len(set(same)) > 1 for same in zip(*texts, strict=True))
    base = median(rates[options.slots[0]])
    rows = []
    for slots in options.slots:
        p50, p95 = np.quantile(waits[slots], (0.5, 0.95))
        spread = f"{min(rates[slots]):.0f} to {max(rates[slots]):.0f}"
        rows.append(
            [
                str(slots),
                f"{median(rates[slots]):.0f}",
                spread,
                f"{median(rates[slots]) / base:.2f}",
                f"{p50:.2f} s",
                f"{p95:.2f} s",
            ]
        )
    count = options.clients * options.each
    print(
        f"{options.run}, {options.quantize or 'not quantized'}: {options.clients} clients, {count} requests a round, {options.rounds} rounds"
    )
    print(f"{differing} of {count * (options.rounds + 1)} texts differ")
    print(table(["slots", "tokens/s", "rounds", "times", "first text p50", "p95"], rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description="Throughput and waiting, by slots."
    )
    parser.add_argument("--run", required=True, help="folder of a run")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8])
    for name, value in {"clients": 64, "each": 2, "rounds": 5, "prompt": 60, "new": 120}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--quantize", choices=["int8"])
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    return parser.parse_args()


def requests(options: argparse.Namespace, number: int) -> list[dict]:
    """The bodies of a round: up to `prompt` random ids each, up to `new` tokens wanted."""
    draw = random.Random(number)
    return [
        {
            "prompt": [50256, *draw.choices(range(50256), k=draw.randint(1, options.prompt - 1))],
            "max_tokens": draw.randint(1, options.new),
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": i,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for i in range(options.clients * options.each)
    ]


async def together(port: int, asked: list[dict], clients: int) -> list[Answer]:
    """All answers; `clients` ask at a time."""

    async def client(number: int) -> list[Answer]:
        return [await ask(port, body) for body in asked[number::clients]]

    own = await asyncio.gather(*(client(number) for number in range(clients)))
    return [own[i % clients][i // clients] for i in range(len(asked))]


async def ask(port: int, body: dict) -> Answer:
    """One answer, over a connection of its own."""
    began, first, text, tokens = time.perf_counter(), None, "", 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"the server said {status.decode().strip()}")
    while (line := await reader.readline()) != b"data: [DONE]\n":
        if line.startswith(b"data: "):
            piece = json.loads(line[6:])
            first = first or time.perf_counter() - began
            text += "".join(choice["text"] for choice in piece["choices"])
            tokens = (piece["usage"] or {}).get("completion_tokens", tokens)
        elif not line:
            raise RuntimeError("the server hung up")
    writer.close()
    return Answer(text, tokens, first or time.perf_counter() - began)


@contextmanager
def server(options: argparse.Namespace, slots: int) -> Iterator[int]:
    """The port of a server that is ready."""
    command = [sys.executable, "-m", "minigpt_jax.server", "--port", "0"]
    command += ["--run", options.run, "--slots", str(slots), "--queue", str(options.clients)]
    command += ["--quantize", options.quantize] if options.quantize else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = next(
            (
                found[1]
                for line in process.stderr
                if (found := re.search(r"ready: http://\S+:(\d+)", line))
            ),
            None,
        )
        if port is None:
            raise RuntimeError("the server did not start")
        yield int(port)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
