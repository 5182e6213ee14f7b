"""Measure how much of the tokenizer's speed is left once the data tool has read, split, hashed and written everything.

    python -m benchmarks.data --source my_texts/

The peer is tiktoken alone: as many processes, each with its share of the texts in memory before the clock starts, ids
thrown away. The tool is timed from the start of its processes to the manifest.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

from data_tools.documents import documents
from data_tools.fineweb import cores, prepare
from minigpt_jax.errors import exit_cleanly
from minigpt_jax.shards import read_manifest
from minigpt_jax.tokenizer import load_tokenizer


def tiktoken_alone(sources: Sequence[str], workers: int) -> float:
    """Tokens a second of `workers` processes together."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return sum(pool.map(_encode_share, [sources] * workers, range(workers), [workers] * workers))


def data_tool(sources: Sequence[str], workers: int) -> float:
    """Tokens a second of the whole tool with `workers` processes."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        out, started = Path(folder) / "out", time.perf_counter()
        prepare(sources, out, workers=workers)
        seconds = time.perf_counter() - started
        return sum(split["tokens"] for split in read_manifest(out)["splits"].values()) / seconds


def _encode_share(sources: Sequence[str], share: int, shares: int) -> float:
    usable = [text for source in sources for text in documents(source) if isinstance(text, str)]
    texts, tokenizer = usable[share::shares], load_tokenizer()
    started = time.perf_counter()
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    return tokens / (time.perf_counter() - started)


def main() -> None:
    """Alternate both, so that a slow minute of the machine meets both, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description="The data tool's speed beside tiktoken's alone.")
    parser.add_argument("--source", dest="sources", action="append", required=True, help="as of data_tools.fineweb; may be repeated")
    parser.add_argument("--workers", type=int, default=cores(), help="processes of either side (default: one per core)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of either side (default: 3)")
    args = parser.parse_args()
    pairs = [(tiktoken_alone(args.sources, args.workers), data_tool(args.sources, args.workers)) for _ in range(args.rounds)]
    alone, tool = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{'':<16} {'tokens/s':>12}   each of {args.rounds} rounds")
    for label, speed, column in zip(("tiktoken alone", "data tool"), (alone, tool), zip(*pairs, strict=True), strict=True):
        print(f"{label:<16} {speed:>12,.0f}   {' '.join(f'{value:,.0f}' for value in column)}")
    print(f"{'ratio':<16} {tool / alone:>12.3f}   {args.workers} processes")


if __name__ == "__main__":
    exit_cleanly(main)
