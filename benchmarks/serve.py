"""A server with one slot and one with eight: speed, and behaviour under load.

    python -m benchmarks.serve --run runs/quickstart_finetune
    python -m benchmarks.serve --run runs/pretrain --temperature 1 --clients 16
    python -m benchmarks.serve --slots 8 32 64 --clients 128 --each 4 --context 256    on a GPU

Without `--run` the servers have a model with random weights, of GPT-2 124M's size unless `--layers`
and others say so; a server compiles for each doubling of the context, so a short one starts sooner.
All servers run from the start and take turns; an idle one does nothing. The requests of a round are
the same for all: prompts and lengths are mixed, and every client sends its next request when it has
the last answer.

Under load: requests that failed, growth of the server's memory over the rounds, texts that are
others in a full house than alone, and how long an answer of three tokens takes (median, longest)
beside one client's 64 answers of 240 tokens (more, if there are more slots), 16 in a request or
one. At the end a signal comes while 48 answers run or wait.
"""

import argparse
import asyncio
import multiprocessing
import random
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from benchmarks.contenders import table
from benchmarks.options import add_integers, model_config
from benchmarks.serve_load import (
    NUM_SIGNALLED,
    changed_texts,
    complete_under_sigterm,
    crowd_answers,
    waits_beside_a_crowd,
)
from benchmarks.serving_client import ServerProcess, send_all, server
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.files import expand_home
from minigpt_jax.tokenizer import END_OF_TEXT


class Results(NamedTuple):
    """The measurements of one server."""

    # Tokens per second of each round.
    rates: list[float]
    # Seconds until the first text of each request.
    waits: list[float]
    # What failed.
    errors: list[str]
    # Cells of the second table.
    load: list[str]


def main() -> None:
    """Measure and print the table."""
    options = parse()
    results = {slots: Results([], [], [], []) for slots in options.slots}
    title = options.run
    differing = 0
    with ExitStack() as stack:
        if options.run is None:
            config = model_config(options)
            title = f"random weights, {config.parameters:,} parameters"
            options.run = f"{stack.enter_context(TemporaryDirectory())}/random"
            write_random_run(options.run, config)
        # Every answer has room.
        options.queue = max(options.clients, crowd_answers(max(options.slots)), NUM_SIGNALLED)
        servers = {slots: stack.enter_context(server(options, slots)) for slots in options.slots}
        # Not counted: the first round after the start.
        first_texts = run_round(options, 0, servers, None)
        memory = {slots: process.memory() for slots, process in servers.items()}
        for number in range(1, options.rounds + 1):
            texts = run_round(options, number, servers, results)
            differing += sum(len(set(same)) > 1 for same in zip(*texts, strict=True))
        for (slots, process), crowded in zip(servers.items(), first_texts, strict=True):
            cells = load_cells(options, process, slots, memory[slots], crowded)
            results[slots].load.extend(cells)
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
    servers: dict[int, ServerProcess],
    results: dict[int, Results] | None,
) -> list[list[str]]:
    """The texts of each server in round `number`; adds to `results` if they count."""
    bodies = requests(options, number)
    texts = []
    for slots, process in servers.items():
        began = time.perf_counter()
        answers = asyncio.run(send_all(process.port, bodies, options.clients))
        seconds = time.perf_counter() - began
        texts.append([answer.text for answer in answers])
        if results:
            results[slots].rates.append(sum(answer.tokens for answer in answers) / seconds)
            results[slots].waits.extend(answer.first for answer in answers)
            results[slots].errors.extend(answer.error for answer in answers if answer.error)
    return texts


def load_cells(
    options: argparse.Namespace,
    process: ServerProcess,
    slots: int,
    memory: float | None,
    crowded: list[str],
) -> list[str]:
    """The cells of the second table; `memory`, `crowded`: MiB and texts of the first round."""
    now = process.memory()
    growth = "unknown" if now is None or memory is None else f"{now - memory:+.1f} MiB"
    bodies = requests(options, 0)
    prompt = bodies[0]["prompt"]
    return [
        growth,
        changed_texts(process.port, bodies, crowded),
        *waits_beside_a_crowd(process.port, prompt, slots),
        # Last, because it ends the server.
        complete_under_sigterm(process, prompt),
    ]


def report(
    options: argparse.Namespace, title: str, results: dict[int, Results], differing: int
) -> None:
    """Print the table."""
    base = median(results[options.slots[0]].rates)
    rows = []
    for slots, (rates, waits, _, _) in results.items():
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
    print(f"{differing} of {count * options.rounds} texts differ between the servers")
    print(table(["slots", "tokens/s", "rounds", "times", "first text p50", "p95"], rows))
    head = ["slots", "errors", "memory", "changed", "beside n = 16", "beside n = 1", "SIGTERM"]
    print("\nUnder load:")
    print(table(head, [[str(s), str(len(r.errors)), *r.load] for s, r in results.items()]))
    for error in sorted({error for result in results.values() for error in result.errors}):
        print(f"error: {error}")


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
        }
        bodies.append(body)
    return bodies


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


if __name__ == "__main__":
    main()
