"""Turn documents into token shards at the speed of all cores, so that training reads only tokens.

    python -m data_tools.fineweb --source my_texts/ --out data/mine

Every document becomes `<|endoftext|>` and its tokens. Document n, counted over the usable documents
of all sources in order, is for validation when n is a multiple of --val-every, else for training.
So neither the number of workers nor a restart changes the split of a document. Nor does the
tokenizer change a byte: gigatoken is used where it is installed, and compared with tiktoken, which
is used otherwise. A run that was killed continues with the same command.
"""

import argparse
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from data_tools.encoders import Encoded, cores, encode_all, make_batches
from data_tools.fast_tokenizer import FastTokenizer
from data_tools.progress_bar import ProgressBar
from data_tools.resumable_shards import (
    CONTINUE,
    PROGRESS,
    SPLITS,
    ResumableShards,
    expect_same_source,
)
from minigpt_jax.errors import InputError, RunError, exit_cleanly
from minigpt_jax.shard_writer import SHARD_TOKENS
from minigpt_jax.sources import BadRow, documents, identity, local_files, text_bytes
from minigpt_jax.token_stream import MANIFEST, Shard, read_manifest
from minigpt_jax.tokenizer import load_tokenizer

BYTES_PER_TOKEN = 2


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of the shards.

    `name` and `column` choose configuration and text field of the sources, of which the first
    `limit` documents are used (all by default). One document in `val_every` is for validation.
    """

    sources: Sequence[str]
    name: str | None = None
    column: str = "text"
    val_every: int = 100
    shard_tokens: int = SHARD_TOKENS
    limit: int | None = None

    def describe(self) -> str:
        """The recipe in one line. Raises InputError for a source that does not exist."""
        parts = [identity(source, name=self.name) for source in self.sources]
        parts += [
            f"column {self.column}",
            f"1 document in {self.val_every} to val",
            f"{self.shard_tokens} tokens a shard",
            f"tokenizer {load_tokenizer().hash[:12]}",
        ]
        if self.limit:
            parts.append(f"the first {self.limit} documents")
        return "; ".join(parts)

    def documents(self) -> Iterator[str | BadRow]:
        """All texts of all sources, and the rows that hold none. Raises InputError and RunError."""
        return chain.from_iterable(
            documents(source, name=self.name, column=self.column) for source in self.sources
        )

    def text_bytes(self) -> int | None:
        """About how many bytes of text there are, None if unknown."""
        if self.limit:
            return None
        sizes = [text_bytes(source, name=self.name, column=self.column) for source in self.sources]
        return None if None in sizes else sum(filter(None, sizes))


def prepare(
    recipe: Recipe, out: Path, *, workers: int | None = None, fast: FastTokenizer | None = None
) -> None:
    """Write the shards and the manifest of `recipe` to `out`, or what is missing of them.

    Prints an estimate and a summary. `fast` encodes as long as it agrees with tiktoken; None is
    tiktoken from the start. Raises InputError for a source that cannot be read or a folder that
    holds something else, RunError for a full disk or a killed worker.
    """
    workers = workers or cores()
    _expect_outside_sources(out, recipe.sources)
    description = recipe.describe()
    if (out / MANIFEST).exists():
        expect_same_source(out, read_manifest(out).get("source"), description)
        (out / PROGRESS).unlink(missing_ok=True)
        print(
            f"{out}: done before, from the same text; "
            f"to check its files: python -m data_tools.verify {out}"
        )
        return
    shards = ResumableShards(
        out, description, val_every=recipe.val_every, shard_tokens=recipe.shard_tokens
    )
    if shards.tokens_found:
        found = f"{shards.tokens_found:,} tokens in complete shards"
        print(f"{out}: continuing after {found}", flush=True)
    started = time.monotonic()
    counts = Counter[str]()
    batches = make_batches(_missing_documents(recipe, shards, counts))
    try:
        with closing(encode_all(batches, workers, fast)) as encoded:
            _append_all(encoded, shards, recipe, workers, out)
    except BrokenProcessPool:
        raise RunError(f"{out}: a worker process was killed (out of memory?): {CONTINUE}") from None
    except KeyboardInterrupt:
        print(f"\n{out}: {CONTINUE}", file=sys.stderr)
        raise
    documents = _count_splits(recipe, counts.pop("documents", 0), counts)
    written = shards.finish(documents)
    seconds = time.monotonic() - started
    speed = (_count_tokens(written) - shards.tokens_found) / seconds
    _print_summary(written, documents, counts)
    _print_line("time", f"{seconds:.1f} s, {speed:,.0f} tokens/s")
    _print_line("written to", out)


def _expect_outside_sources(out: Path, sources: Sequence[str]) -> None:
    for source in sources:
        if local_files(source) and out.resolve().is_relative_to(Path(source).resolve()):
            raise InputError(f"--out {out} lies within --source {source}: choose another folder")


def _missing_documents(
    recipe: Recipe, shards: ResumableShards, counts: Counter[str]
) -> Iterator[tuple[int, str]]:
    """(number, text) of every document that complete shards do not hold.

    `counts` receives the number of all "documents", and of the bad rows by reason.
    """
    for text in recipe.documents():
        if isinstance(text, BadRow):
            counts[text.reason] += 1
            continue
        number = counts["documents"]
        if number == recipe.limit:
            return
        counts["documents"] += 1
        if shards.is_missing(number):
            yield number, text


def _append_all(
    batches: Iterator[Encoded], shards: ResumableShards, recipe: Recipe, workers: int, out: Path
) -> None:
    """Write the batches, with an estimate after the first and a progress bar."""
    first = next(batches, None)
    if first is None:
        return
    total = _print_estimate(first, recipe.text_bytes(), workers, out)
    with ProgressBar("tok", total=total, initial=shards.tokens_found) as bar:
        for encoded in chain([first], batches):
            shards.append(encoded)
            bar.advance(len(encoded.tokens))


def _print_estimate(first: Encoded, size: int | None, workers: int, out: Path) -> int | None:
    """Print what `size` bytes of text will cost, judged by the first batch.

    Returns the number of tokens to expect, None if it is unknown.
    """
    speed = len(first.tokens) / first.seconds * min(workers, cores())
    free = shutil.disk_usage(out).free
    rate = f"{speed / 1e6:.2f}M tokens/s with {workers} workers, {free / 1e9:.1f} GB of disk free"
    if size is None:
        print(
            f"estimate: unknown size, {BYTES_PER_TOKEN} bytes of disk a token; {rate}", flush=True
        )
        return None
    text_bytes = load_tokenizer().byte_lengths()[first.tokens].sum()
    tokens = int(size * len(first.tokens) / max(1, text_bytes))
    needed = tokens * BYTES_PER_TOKEN
    print(
        f"estimate: {tokens / 1e6:.1f}M tokens, {needed / 1e6:.1f} MB of disk, "
        f"{tokens / speed:.0f} s; {rate}",
        flush=True,
    )
    if needed > free:
        print(f"warning: {out} has too little space for that", file=sys.stderr)
    return tokens


def _count_splits(recipe: Recipe, total: int, skipped: Counter[str]) -> dict[str, int]:
    """The number of documents of each split. Raises InputError where there are too few."""
    if total < len(SPLITS):
        raise InputError(
            f"{', '.join(recipe.sources)}: {total} usable documents in column {recipe.column!r} "
            f"(skipped: {_list_counts(skipped)}), expected at least one for each split; "
            "a text file is one document"
        )
    held_out = math.ceil(total / recipe.val_every)
    return {"train": total - held_out, "val": held_out}


def _list_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "0"


def _count_tokens(shards: dict[str, list[Shard]]) -> int:
    return sum(shard.tokens for split in shards.values() for shard in split)


def _print_summary(
    shards: dict[str, list[Shard]], documents: dict[str, int], skipped: Counter[str]
) -> None:
    separators = sum(documents.values())
    _print_line("documents", f"{separators:,}")
    _print_line("skipped", _list_counts(skipped))
    _print_line("text tokens", f"{_count_tokens(shards) - separators:,}")
    _print_line("separators", f"{separators:,}")
    for split, own in shards.items():
        tokens = sum(shard.tokens for shard in own)
        count = documents[split]
        _print_line(split, f"{tokens:,} tokens of {count:,} documents in {len(own)} shards")


def _print_line(label: str, value: object) -> None:
    print(f"{label:<12} {value}")


def _at_least(smallest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if (number := int(text)) < smallest:
            raise argparse.ArgumentTypeError(f"{number}, expected at least {smallest}")
        return number

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.fineweb", description="Turn documents into token shards."
    )
    add = parser.add_argument
    add(
        "--source",
        dest="sources",
        action="append",
        required=True,
        help="hub data set (owner/name or owner/name@revision), file or folder; may be repeated",
    )
    add("--name", help="configuration of the hub data set, e.g. sample-10BT")
    add("--out", type=Path, required=True, help="folder for the shards")
    add(
        "--text-column",
        dest="column",
        default="text",
        help="field that holds the text (default: text)",
    )
    add(
        "--val-every",
        type=_at_least(2),
        default=100,
        help="one document in so many is for validation (default: 100)",
    )
    add(
        "--shard-tokens",
        type=_at_least(1),
        default=SHARD_TOKENS,
        help=f"tokens a shard (default: {SHARD_TOKENS})",
    )
    add(
        "--workers",
        type=_at_least(1),
        help="processes or threads that tokenise (default: one per core)",
    )
    add(
        "--no-fast",
        action="store_true",
        help="encode with tiktoken even where gigatoken is installed: the same ids, slower",
    )
    add("--limit", type=_at_least(1), help="stop after so many documents")
    return parser


def main() -> None:
    """The command line of `prepare`."""
    options = vars(_parser().parse_args())
    out = options.pop("out")
    workers = options.pop("workers")
    fast = None if options.pop("no_fast") else FastTokenizer()
    prepare(Recipe(**options), out, workers=workers, fast=fast)


if __name__ == "__main__":
    exit_cleanly(main)
