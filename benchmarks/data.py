"""Measure how fast text becomes shards, and how long a training step would wait for a batch.

    python -m benchmarks.data --source my_texts/

The comparison is tiktoken alone: as many processes, each with its share of the texts in memory
before the clock starts, and the ids are discarded. The tool is timed from the start of its
processes to the manifest, with tiktoken and with gigatoken.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib.util import find_spec
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.contenders import seconds_of
from data_tools.encoders import cores
from data_tools.fast_tokenizer import FastTokenizer
from data_tools.fineweb import Recipe, prepare
from minigpt_jax.runtime.program import exit_cleanly
from minigpt_jax.sources import documents
from minigpt_jax.token_stream import Stream, open_stream, read_manifest
from minigpt_jax.tokenizer import TEXT_VOCAB, load_tokenizer

# The batch whose loading is measured.
ROWS = 32
CONTEXT = 1024
BATCHES = 200
# The small model whose step it is compared with.
STEP_ROWS = 16
STEP_CONTEXT = 256
LAYERS = 6
EMBED = 384
STEPS = 5


def main() -> None:
    """Let all take turns, so that a slow minute affects all of them, and print the medians."""
    options = parse()
    contenders: dict[str, Callable[[], float]] = {
        "tiktoken alone": partial(tiktoken_alone, options.sources, options.workers),
        "tool, tiktoken": partial(data_tool, options.sources, options.workers, fast=False),
    }
    if find_spec("gigatoken"):
        contenders["tool, gigatoken"] = partial(
            data_tool, options.sources, options.workers, fast=True
        )
    speeds = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, measure in contenders.items():
            speeds[name].append(measure())
    report_speeds(speeds, options.workers)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with hidden_output():
            prepare(
                Recipe(options.sources),
                out,
                workers=options.workers,
                fast_tokenizer=FastTokenizer(),
            )
        stream = open_stream(
            out,
            "train",
            tokenizer=load_tokenizer().hash,
            vocab_size=TEXT_VOCAB,
            context=CONTEXT,
        )
        load = loader_seconds(stream)
        step = step_seconds(stream)
    print(f"loader: {load * 1e3:.2f} ms for a batch of {ROWS} x {CONTEXT} tokens")
    shape = f"{STEP_ROWS} x {STEP_CONTEXT} tokens, {LAYERS} layers of {EMBED}"
    print(f"a training step ({shape}): {step * 1e3:.0f} ms, {step / load:.0f} times as long")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data",
        description="The data tool compared with tiktoken alone, the loader compared with a step.",
    )
    parser.add_argument(
        "--source",
        dest="sources",
        action="append",
        required=True,
        help="as for data_tools.fineweb; may be repeated",
    )
    parser.add_argument(
        "--workers", type=int, default=cores(), help="processes or threads (default: one per core)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    return parser.parse_args()


def report_speeds(speeds: dict[str, list[float]], workers: int) -> None:
    """The table of tokens per second."""
    alone = statistics.median(speeds["tiktoken alone"])
    rounds = len(speeds["tiktoken alone"])
    head = f"{'':<16} {'tokens/s':>12} {'ratio':>7}"
    print(f"{head}   each of {rounds} rounds, {workers} workers")
    for name, own in speeds.items():
        median = statistics.median(own)
        each = " ".join(f"{speed:,.0f}" for speed in own)
        print(f"{name:<16} {median:>12,.0f} {median / alone:>7.2f}   {each}")


# ---- text to shards


def tiktoken_alone(sources: Sequence[str], workers: int) -> float:
    """Tokens per second of `workers` processes together."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        speeds = pool.map(_encode_share, [sources] * workers, range(workers), [workers] * workers)
        return sum(speeds)


def data_tool(sources: Sequence[str], workers: int, *, fast: bool) -> float:
    """Tokens per second of the whole tool with `workers` processes, or threads if it is `fast`."""
    tokenizer = FastTokenizer() if fast else None
    with tempfile.TemporaryDirectory() as folder, hidden_output() as output:
        out = Path(folder) / "out"
        work = partial(prepare, Recipe(sources), out, workers=workers, fast_tokenizer=tokenizer)
        seconds = seconds_of(work)
        if fast and "tiktoken encodes from" in output.getvalue():
            raise SystemExit(output.getvalue())
        tokens = sum(split["tokens"] for split in read_manifest(out)["splits"].values())
        return tokens / seconds


def _encode_share(sources: Sequence[str], share: int, shares: int) -> float:
    """Tokens per second of one process, for every `shares`-th text."""
    usable = [text for source in sources for text in documents(source) if isinstance(text, str)]
    texts = usable[share::shares]
    tokenizer = load_tokenizer()
    tokens = 0

    def encode() -> None:
        nonlocal tokens
        tokens = sum(len(tokenizer.encode_array(text)) for text in texts)

    seconds = seconds_of(encode)
    return tokens / seconds


@contextmanager
def hidden_output() -> Iterator[StringIO]:
    """Collect what is printed on stdout, and discard stderr."""
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()):
        yield output


# ---- loader and step; JAX is imported only after the processes of the tool have ended


def loader_seconds(stream: Stream) -> float:
    """Median seconds to choose, read and place on the device a batch of ROWS x CONTEXT tokens."""
    import jax

    from minigpt_jax.data import batch_at, row_count, rows_at
    from minigpt_jax.sharding import batch_sharding, make_mesh

    sharding = batch_sharding(make_mesh())
    rows = row_count(stream, CONTEXT)

    def load(step: int) -> None:
        jax.block_until_ready(
            batch_at(stream, rows_at(0, step, ROWS, [rows]), CONTEXT, 1, sharding)
        )

    return statistics.median(seconds_of(partial(load, step)) for step in range(BATCHES))


def step_seconds(stream: Stream) -> float:
    """Median seconds of a compiled training step of the small model."""
    from benchmarks.training import training_step
    from minigpt_jax.data import batch_at
    from minigpt_jax.model import GPT
    from minigpt_jax.model_config import GPTConfig
    from minigpt_jax.sharding import batch_sharding, make_mesh
    from minigpt_jax.step import init_state

    config = GPTConfig(
        vocab_size=TEXT_VOCAB, context=STEP_CONTEXT, layers=LAYERS, heads=EMBED // 64, embed=EMBED
    )
    model = GPT(config, dtype="float32")
    mesh = make_mesh()
    optimizer, step = training_step(model, mesh, loss_chunk=32)
    rows = np.arange(STEP_ROWS)
    batch = batch_at(stream, rows, STEP_CONTEXT, 1, batch_sharding(mesh))
    state = init_state(model, optimizer, 0, mesh)

    def work() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        metrics["loss"].block_until_ready()

    # Compiles.
    work()
    return statistics.median(seconds_of(work) for _ in range(STEPS))


if __name__ == "__main__":
    exit_cleanly(main)
