"""Measure how fast text becomes shards beside the tokenizer alone, and how long a training step would wait for a batch of them.

    python -m benchmarks.data --source my_texts/

The peer is tiktoken alone: as many processes, each with its share of the texts in memory before the clock starts, ids
thrown away. The tool is timed from the start of its processes to the manifest, with tiktoken and with gigatoken.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.util import find_spec
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.encoders import cores
from data_tools.fast_tokenizer import FastTokenizer
from data_tools.fineweb import Recipe, prepare
from minigpt_jax.errors import exit_cleanly
from minigpt_jax.sources import documents
from minigpt_jax.token_stream import Stream, open_stream, read_manifest
from minigpt_jax.tokenizer import TEXT_VOCAB, load_tokenizer

ROWS, CONTEXT = 32, 1024  # the batch that is loaded
STEP_ROWS, STEP_CONTEXT, LAYERS, EMBED = (
    16,
    256,
    6,
    384,
)  # the small model whose step it is compared with


def tiktoken_alone(sources: Sequence[str], workers: int) -> float:
    """Tokens a second of `workers` processes together."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return sum(
            pool.map(_encode_share, [sources] * workers, range(workers), [workers] * workers)
        )


def data_tool(sources: Sequence[str], workers: int, *, fast: bool) -> float:
    """Tokens a second of the whole tool with `workers` processes, or threads when it is `fast`."""
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(StringIO()) as said,
        redirect_stderr(StringIO()),
    ):
        out, started = Path(folder) / "out", time.perf_counter()
        prepare(Recipe(sources), out, workers=workers, fast=FastTokenizer() if fast else None)
        seconds = time.perf_counter() - started
        if fast and "tiktoken encodes from" in said.getvalue():
            raise SystemExit(said.getvalue())
        return sum(split["tokens"] for split in read_manifest(out)["splits"].values()) / seconds


def _encode_share(sources: Sequence[str], share: int, shares: int) -> float:
    usable = [text for source in sources for text in documents(source) if isinstance(text, str)]
    texts, tokenizer = usable[share::shares], load_tokenizer()
    started = time.perf_counter()
    tokens = sum(len(tokenizer.encode_array(text)) for text in texts)
    return tokens / (time.perf_counter() - started)


def loader_seconds(stream: Stream, batches: int = 200) -> float:
    """Median seconds to choose, read and hand to the device a batch of ROWS x CONTEXT tokens."""
    from minigpt_jax.data import batch_at, row_count, rows_at
    from minigpt_jax.sharding import batch_sharding, make_mesh

    sharding = batch_sharding(make_mesh())
    rows = row_count(stream, CONTEXT)

    def load(step: int) -> None:
        for array in batch_at(stream, rows_at(0, step, ROWS, rows), CONTEXT, 1, sharding):
            array.block_until_ready()

    return statistics.median(_seconds(partial(load, step)) for step in range(batches))


def step_seconds(stream: Stream, steps: int = 5) -> float:
    """Median seconds of a training step of the small model, compiled."""
    from configs.pretrain import get_config
    from minigpt_jax import optim
    from minigpt_jax.data import batch_at
    from minigpt_jax.model import GPT, GPTConfig
    from minigpt_jax.sharding import batch_sharding, make_mesh
    from minigpt_jax.step import Batch, init_state, make_train_step

    c: Any = get_config()
    mesh = make_mesh()
    model = GPT(
        GPTConfig(
            vocab_size=TEXT_VOCAB,
            context=STEP_CONTEXT,
            layers=LAYERS,
            heads=EMBED // 64,
            embed=EMBED,
        ),
        dtype="float32",
    )
    optimizer = optim.make_optimizer(**c.optimizer)
    step = make_train_step(
        model,
        optimizer,
        partial(optim.learning_rate, horizon=10_000, **c.schedule),
        mesh,
        seed=0,
        loss_chunk=32,
    )
    batch = Batch(*batch_at(stream, np.arange(STEP_ROWS), STEP_CONTEXT, 1, batch_sharding(mesh)))
    state = init_state(model, optimizer, 0, mesh)

    def work() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        metrics["loss"].block_until_ready()

    work()
    return statistics.median(_seconds(work) for _ in range(steps))


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Alternate all, so that a slow minute of the machine meets all, and print the medians."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data",
        description="The data tool beside tiktoken alone, the loader beside a step.",
    )
    parser.add_argument(
        "--source",
        dest="sources",
        action="append",
        required=True,
        help="as of data_tools.fineweb; may be repeated",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=cores(),
        help="processes or threads of every side (default: one per core)",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="measurements of every side (default: 3)"
    )
    args = parser.parse_args()
    sides: dict[str, Callable[[], float]] = {
        "tiktoken alone": partial(tiktoken_alone, args.sources, args.workers),
        "tool, tiktoken": partial(data_tool, args.sources, args.workers, fast=False),
    }
    if find_spec("gigatoken"):
        sides["tool, gigatoken"] = partial(data_tool, args.sources, args.workers, fast=True)
    speeds = {label: [] for label in sides}
    for _ in range(args.rounds):
        for label, measure in sides.items():
            speeds[label].append(measure())
    alone = statistics.median(speeds["tiktoken alone"])
    print(
        f"{'':<16} {'tokens/s':>12} {'ratio':>7}   each of {args.rounds} rounds, {args.workers} workers"
    )
    for label, each in speeds.items():
        middle = statistics.median(each)
        print(
            f"{label:<16} {middle:>12,.0f} {middle / alone:>7.2f}   {' '.join(f'{speed:,.0f}' for speed in each)}"
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(StringIO()),
        redirect_stderr(StringIO()),
    ):
        out = Path(folder) / "out"
        prepare(Recipe(args.sources), out, workers=args.workers, fast=FastTokenizer())
        stream = open_stream(
            Path(folder) / "out",
            "train",
            tokenizer=load_tokenizer().hash,
            vocab_size=TEXT_VOCAB,
            context=CONTEXT,
        )
        load, step = loader_seconds(stream), step_seconds(stream)
    print(f"loader: {load * 1e3:.2f} ms for a batch of {ROWS} x {CONTEXT} tokens")
    shape = f"{STEP_ROWS} x {STEP_CONTEXT} tokens, {LAYERS} layers of {EMBED}"
    print(f"a training step ({shape}): {step * 1e3:.0f} ms, {step / load:.0f} times as long")


if __name__ == "__main__":
    exit_cleanly(main)
