"""Turn documents into token shards on all CPU cores, so that training reads only tokens.

    python -m data_tools.fineweb --source my_texts/ --out data/mine

Every document becomes `<|endoftext|>` and its tokens. The usable documents of all sources are
numbered from 0, in order. Document n is for validation if n is a multiple of --val-every, else for
training, so neither the number of workers nor a restart changes the split of a document.

gigatoken encodes where it is installed, else tiktoken. Both give the same tokens: samples of
gigatoken's output are compared with tiktoken's. A run that was killed continues with the same
command.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import argparse
import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from shlex import quote

from data_tools.encoders import Encoded, cores, encode_all, make_batches
from data_tools.fast_tokenizer import FastTokenizer
from data_tools.progress_bar import ProgressBar
from data_tools.resumable_shards import (
    CONTINUE_MESSAGE,
    PROGRESS_FILE,
    SPLITS,
    ResumableShards,
    expect_same_source,
)
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.runtime.files import expand_home, user_path
from minigpt_jax.shard_writer import SHARD_TOKENS
from minigpt_jax.sources import BadRow, documents, identity, local_files, text_bytes
from minigpt_jax.token_stream import MANIFEST, Shard, read_manifest
from minigpt_jax.tokenizer import load_tokenizer

# Shards hold uint16.
BYTES_PER_TOKEN = 2


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of the shards.

    `name` is the configuration of a Hub data set, `column` the field that holds the text. Every
    `val_every`th document is for validation. Only the first `limit` documents are used; None: all.
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

    def read_documents(self) -> Iterator[str | BadRow]:
        """The text of every row of all sources, or a BadRow. Raises InputError and RunError."""
        return chain.from_iterable(
            documents(source, name=self.name, column=self.column) for source in self.sources
        )

    def estimate_bytes(self) -> int | None:
        """About how many bytes of text there are, None if unknown."""
        if self.limit:
            # How long the first documents are is not known before they are read.
            return None
        sizes = [text_bytes(source, name=self.name, column=self.column) for source in self.sources]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None


@dataclass
class RowCounts:
    """Rows read so far: usable documents, and skipped rows by reason."""

    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def prepare(
    recipe: Recipe,
    out: Path,
    *,
    workers: int | None = None,
    fast_tokenizer: FastTokenizer | None = None,
) -> None:
    """Write those shards of `recipe` that are missing in `out`, and the manifest.

    Prints an estimate and a summary. `fast_tokenizer` encodes as long as it gives the ids of
    tiktoken; with None, tiktoken encodes everything. Raises InputError for a source that cannot be
    read, that contains `out` or that has too few documents, and for a folder with other data.
    Raises RunError for a full disk, a killed worker or a failed connection to the Hub.
    """
    workers = workers or cores()
    _expect_outside_sources(out, recipe.sources)
    description = recipe.describe()
    if (out / MANIFEST).exists():
        expect_same_source(out, read_manifest(out).get("source"), description)
        # A process that was killed right after it wrote the manifest leaves this file behind.
        (out / PROGRESS_FILE).unlink(missing_ok=True)
        print(
            f"{out}: done before, from the same text; "
            f"to check its files: python -m data_tools.verify {quote(str(out))}"
        )
        return
    shards = ResumableShards(
        out, description, val_every=recipe.val_every, shard_tokens=recipe.shard_tokens
    )
    if shards.tokens_found:
        found = f"{shards.tokens_found:,} tokens in complete shards"
        print(f"{out}: continuing after {found}", flush=True)
    started = time.monotonic()
    counts = RowCounts()
    batches = make_batches(_missing_documents(recipe, shards, counts))
    try:
        # Closing the generator ends the workers, also when writing fails.
        with closing(encode_all(batches, workers, fast_tokenizer)) as encoded:
            _append_all(encoded, shards, recipe, workers, out)
    except BrokenProcessPool:
        raise RunError(
            f"{out}: a worker process was killed (out of memory?): {CONTINUE_MESSAGE}"
        ) from None
    except KeyboardInterrupt:
        print(f"\n{out}: {CONTINUE_MESSAGE}", file=sys.stderr)
        raise
    documents_per_split = _count_splits(recipe, counts)
    written = shards.finish(documents_per_split)
    seconds = time.monotonic() - started
    speed = (_count_tokens(written) - shards.tokens_found) / seconds
    _print_summary(written, documents_per_split, counts.skipped)
    _print_line("time", f"{seconds:.1f} s, {speed:,.0f} tokens/s")
    _print_line("written to", out)


def _expect_outside_sources(out: Path, sources: Sequence[str]) -> None:
    # Otherwise the next run would read progress.json and manifest.json as documents.
    for source in sources:
        if local_files(source) and out.resolve().is_relative_to(Path(source).resolve()):
            raise InputError(f"--out {out} lies within --source {source}: choose another folder")


def _missing_documents(
    recipe: Recipe, shards: ResumableShards, counts: RowCounts
) -> Iterator[tuple[int, str]]:
    """(number, text) of every document that complete shards do not hold.

    Adds every row that it reads to `counts`.
    """
    for text in recipe.read_documents():
        if isinstance(text, BadRow):
            counts.skipped[text.reason] += 1
            continue
        number = counts.documents
        if number == recipe.limit:
            return
        counts.documents += 1
        if shards.is_missing(number):
            yield number, text


def _append_all(
    batches: Iterator[Encoded], shards: ResumableShards, recipe: Recipe, workers: int, out: Path
) -> None:
    """Write the batches. Prints an estimate after the first, and shows a progress bar."""
    first = next(batches, None)
    if first is None:
        return
    found = shards.tokens_found
    missing = _print_estimate(first, recipe.estimate_bytes(), found, workers, out)
    total = None if missing is None else found + missing
    with ProgressBar("tok", total=total, initial=found) as bar:
        for encoded in chain([first], batches):
            shards.append(encoded)
            bar.advance(len(encoded.tokens))


def _print_estimate(
    first: Encoded, size: int | None, tokens_found: int, workers: int, out: Path
) -> int | None:
    """Print the time and disk space for `size` bytes of text, estimated from the first batch.

    `tokens_found` tokens are in complete shards already. Returns the number of tokens still to
    write, None if it is unknown.
    """
    # One worker encoded the batch, and workers beyond the number of cores add no speed.
    speed = len(first.tokens) / first.seconds * min(workers, cores())
    free = shutil.disk_usage(out).free
    rate = f"{speed / 1e6:.2f}M tokens/s with {workers} workers, {free / 1e9:.1f} GB of disk free"
    if size is None:
        print(
            f"estimate: unknown size, {BYTES_PER_TOKEN} bytes of disk per token; {rate}", flush=True
        )
        return None
    first_bytes = load_tokenizer().byte_lengths()[first.tokens].sum()
    all_tokens = int(size * len(first.tokens) / max(1, first_bytes))
    tokens = max(0, all_tokens - tokens_found)
    needed = tokens * BYTES_PER_TOKEN
    print(
        f"estimate: {tokens / 1e6:.1f}M tokens, {needed / 1e6:.1f} MB of disk, "
        f"{tokens / speed:.0f} s; {rate}",
        flush=True,
    )
    if needed > free:
        print(f"warning: {out} has too little free space for that", file=sys.stderr)
    return tokens


def _count_splits(recipe: Recipe, counts: RowCounts) -> dict[str, int]:
    """The number of documents of each split. Raises InputError where there are too few."""
    total = counts.documents
    if total < len(SPLITS):
        raise InputError(
            f"{', '.join(recipe.sources)}: {total} usable documents in column {recipe.column!r} "
            f"(skipped: {_list_counts(counts.skipped)}), expected at least one for each split; "
            "a text file is one document"
        )
    # Rounded up, because document 0 is for validation.
    held_out = math.ceil(total / recipe.val_every)
    return {"train": total - held_out, "val": held_out}


def _list_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "0"


def _count_tokens(shards: dict[str, list[Shard]]) -> int:
    return sum(shard.tokens for split in shards.values() for shard in split)


def _print_summary(
    shards: dict[str, list[Shard]], documents_per_split: dict[str, int], skipped: Counter[str]
) -> None:
    # Each document begins with one <|endoftext|>.
    separators = num_documents = sum(documents_per_split.values())
    _print_line("documents", f"{num_documents:,}")
    _print_line("skipped", _list_counts(skipped))
    _print_line("text tokens", f"{_count_tokens(shards) - separators:,}")
    _print_line("separators", f"{separators:,}")
    for split, split_shards in shards.items():
        tokens = sum(shard.tokens for shard in split_shards)
        source = f"{documents_per_split[split]:,} documents"
        _print_line(split, f"{tokens:,} tokens of {source} in {len(split_shards)} shards")


def _print_line(label: str, value: object) -> None:
    print(f"{label:<12} {value}")


def _at_least(smallest: int) -> Callable[[str], int]:
    # argparse shows the inner function's name in its message: "invalid integer value".
    def integer(text: str) -> int:
        if (number := int(text)) < smallest:
            raise argparse.ArgumentTypeError(f"{number}, expected at least {smallest}")
        return number

    return integer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.fineweb", description="Turn documents into token shards."
    )
    add = parser.add_argument
    add(
        "--source",
        type=expand_home,
        dest="sources",
        action="append",
        required=True,
        help="file, folder, or Hugging Face Hub data set (owner/name or owner/name@revision); "
        "may be repeated",
    )
    add("--name", help="configuration of the Hub data set, e.g. sample-10BT")
    add("--out", type=user_path, required=True, help="folder for the shards")
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
        metavar="N",
        help="every Nth document is for validation (default: 100)",
    )
    add(
        "--shard-tokens",
        type=_at_least(1),
        default=SHARD_TOKENS,
        help=f"tokens per shard (default: {SHARD_TOKENS})",
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
    add(
        "--limit",
        type=_at_least(1),
        metavar="N",
        help="use only the first N documents (default: all)",
    )
    return parser


def main() -> None:
    """The command line of `prepare`."""
    options = vars(_parser().parse_args())
    out = options.pop("out")
    workers = options.pop("workers")
    fast_tokenizer = None if options.pop("no_fast") else FastTokenizer()
    # The options that are left are the fields of Recipe.
    prepare(Recipe(**options), out, workers=workers, fast_tokenizer=fast_tokenizer)


if __name__ == "__main__":
    exit_cleanly(main)
