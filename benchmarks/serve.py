"""The value of slots: many clients that stream from a server with one slot and one with eight.

    python -m benchmarks.serve --run runs/quickstart_finetune
    python -m benchmarks.serve --run runs/pretrain --temperature 1 --clients 16
    python -m benchmarks.serve --slots 8 32 64 --clients 128 --each 4 --context 256    on a GPU

Without `--run` the servers have a model with random weights, of GPT-2 124M's size unless `--layers`
and others say so; a server compiles for each doubling of the context, so a short one starts sooner.
All servers run from the start and take turns; an idle one does nothing. The requests of a round are
the same for all: prompts and lengths are mixed, and every client sends its next request when it has
the last answer.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from benchmarks.contenders import table
from benchmarks.options import add_integers, model_config
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.files import expand_home
from minigpt_jax.tokenizer import END_OF_TEXT


class Answer(NamedTuple):
    """The answer to one request."""

    text: str
    tokens: int
    # Seconds until the first text.
    first: float


class Results(NamedTuple):
    """The measurements of one server."""

    # Tokens per second of each round.
    rates: list[float]
    # Seconds until the first text of each request.
    waits: list[float]


def main() -> None:
    """Measure and print the table."""
    options = parse()
    results = {slots: Results([], []) for slots in options.slots}
    title = options.run
    differing = 0
    with ExitStack() as stack:
        if options.run is None:
            config = model_config(options)
            title = f"random weights, {config.parameters:,} parameters"
            options.run = f"{stack.enter_context(TemporaryDirectory())}/random"
            write_random_run(options.run, config)
        ports = {slots: stack.enter_context(server(options, slots)) for slots in options.slots}
        for number in range(options.rounds + 1):
            # The first round is not counted: it compiles.
            texts = run_round(options, number, ports, results if number else None)
            differing += sum(len(set(same)) > 1 for same in zip(*texts, strict=True))
    report(options, title, results, differing)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve", description="Throughput and waiting, by slots."
    )
    parser.add_argument("--run", type=expand_home, help="folder of a run (default: random weights)")
    add_integers(parser, layers=12, heads=12, embed=768, context=1024)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8])
    add_integers(parser, clients=64, each=2, rounds=5, prompt=60, new=120)
    parser.add_argument("--quantize", choices=["int8"])
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    return parser.parse_args()


def run_round(
    options: argparse.Namespace,
    number: int,
    ports: dict[int, int],
    results: dict[int, Results] | None,
) -> list[list[str]]:
    """The texts of each server in round `number`; adds to `results` if they count."""
    bodies = requests(options, number)
    texts = []
    for slots, port in ports.items():
        began = time.perf_counter()
        answers = asyncio.run(send_all(port, bodies, options.clients))
        seconds = time.perf_counter() - began
        texts.append([answer.text for answer in answers])
        if results:
            results[slots].rates.append(sum(answer.tokens for answer in answers) / seconds)
            results[slots].waits.extend(answer.first for answer in answers)
    return texts


def report(
    options: argparse.Namespace, title: str, results: dict[int, Results], differing: int
) -> None:
    """Print the table."""
    base = median(results[options.slots[0]].rates)
    rows = []
    for slots, (rates, waits) in results.items():
        p50, p95 = np.quantile(waits, (0.5, 0.95))
        row = [
            str(slots),
            f"{median(rates):.0f}",
            f"{min(rates):.0f} to {max(rates):.0f}",
            f"{median(rates) / base:.2f}",
            f"{p50:.2f} s",
            f"{p95:.2f} s",
        ]
        rows.append(row)
    count = options.clients * options.each
    print(
        f"{title}, {options.quantize or 'not quantized'}: {options.clients} clients, "
        f"{count} requests per round, {options.rounds} rounds"
    )
    print(f"{differing} of {count * (options.rounds + 1)} texts differ between the servers")
    print(table(["slots", "tokens/s", "rounds", "times", "first text p50", "p95"], rows))


# ---- the clients


def requests(options: argparse.Namespace, number: int) -> list[dict]:
    """The bodies of a round: up to `prompt` random ids each, up to `new` tokens wanted."""
    draw = random.Random(number)
    bodies = []
    for seed in range(options.clients * options.each):
        length = draw.randint(1, options.prompt - 1)
        body = {
            "prompt": [END_OF_TEXT, *draw.choices(range(END_OF_TEXT), k=length)],
            "max_tokens": draw.randint(1, options.new),
            "temperature": options.temperature,
            "top_p": options.top_p,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        bodies.append(body)
    return bodies


async def send_all(port: int, bodies: Sequence[dict], clients: int) -> list[Answer]:
    """All answers, in the order of `bodies`; `clients` requests are open at a time."""

    async def client(number: int) -> list[Answer]:
        return [await send(port, body) for body in bodies[number::clients]]

    own = await asyncio.gather(*(client(number) for number in range(clients)))
    return [own[i % clients][i // clients] for i in range(len(bodies))]


async def send(port: int, body: dict) -> Answer:
    """One answer, over a connection of its own."""
    began = time.perf_counter()
    first = None
    text = ""
    tokens = 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"expected status 200, found {status.decode().strip()}")
    while (line := await reader.readline()) != b"data: [DONE]\n":
        if not line:
            raise RuntimeError("the server closed the connection")
        if line.startswith(b"data: "):
            chunk = json.loads(line.removeprefix(b"data: "))
            first = first or time.perf_counter() - began
            text += "".join(choice["text"] for choice in chunk["choices"])
            tokens = (chunk["usage"] or {}).get("completion_tokens", tokens)
    writer.close()
    return Answer(text, tokens, first or time.perf_counter() - began)


# ---- the servers


def write_random_run(folder: str, config: GPTConfig) -> None:
    """A run with fresh weights, written by a process of its own: this one needs no device."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_write_random_run, args=(folder, config))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("the run with random weights was not written")


def _write_random_run(folder: str, config: GPTConfig) -> None:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from minigpt_jax.interop.imported_run import write_run
    from minigpt_jax.model import GPT

    jax.config.update("jax_platforms", "cpu")
    variables = jax.jit(GPT(config).init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    write_run(Path(folder), config, nn.unbox(variables["params"]), "random numbers")


@contextmanager
def server(options: argparse.Namespace, slots: int) -> Iterator[int]:
    """The port of a server that is ready."""
    command = [sys.executable, "-m", "minigpt_jax.server", "--port", "0"]
    command += ["--run", options.run, "--slots", str(slots), "--queue", str(options.clients)]
    if options.quantize:
        command += ["--quantize", options.quantize]
    # All servers share the memory of a GPU.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield ready_port(process.stderr)
    finally:
        process.terminate()
        process.wait()


def ready_port(lines: Iterable[str]) -> int:
    """The port that a server prints when it is ready."""
    for line in lines:
        if found := re.search(r"ready: http://\S+:(\d+)", line):
            return int(found[1])
    raise RuntimeError("the server did not start")


if __name__ == "__main__":
    main()
