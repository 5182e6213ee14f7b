"""What a preparation says of itself: an estimate after the first batch, a summary at the end."""

import math
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.encoders import Encoded, cores
from data_tools.recipe import Recipe
from data_tools.resumable_shards import SPLITS
from minigpt_jax.errors import InputError
from minigpt_jax.sources import BadRow, name_some
from minigpt_jax.token_stream import Shard
from minigpt_jax.tokenizer import load_tokenizer

# Shards hold uint16.
BYTES_PER_TOKEN = 2
# Rows of each reason that are named.
NAMED_ROWS = 10


@dataclass
class RowCounts:
    """Rows read so far: usable documents, and skipped rows by reason.

    `named` says where the first rows of each reason are. `is_cut` tells that the only document was
    cut in two.
    """

    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    is_cut: bool = False

    def skip(self, row: BadRow) -> None:
        """Count a row that cannot be used."""
        self.skipped[row.reason] += 1
        if len(self.named[row.reason]) < NAMED_ROWS:
            self.named[row.reason].append(row.where)

    def add_skipped(self, skipped: dict[str, int], named: dict[str, list[str]]) -> None:
        """Add rows that another process skipped."""
        self.skipped.update(skipped)
        for reason, rows in named.items():
            self.named[reason] = (self.named[reason] + rows)[:NAMED_ROWS]

    def usable(self, documents: Iterable[str | BadRow]) -> Iterator[str]:
        """The texts; the other rows are counted."""
        for text in documents:
            if isinstance(text, BadRow):
                self.skip(text)
            else:
                yield text

    def reasons(self) -> str:
        """How many rows were skipped for each reason, in one line."""
        return (
            ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
            or "0"
        )


def print_estimate(
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


def count_splits(recipe: Recipe, counts: RowCounts) -> dict[str, int]:
    """The number of documents of each split. Raises InputError where there are too few."""
    total = counts.documents
    if total < len(SPLITS):
        raise InputError(
            f"{', '.join(recipe.sources)}: {total} usable documents in column {recipe.column!r} "
            f"(skipped: {counts.reasons()}), expected at least one for each split; "
            "a text file is one document, which is cut in two where it is alone and long enough"
        )
    # Rounded up, because document 0 is for validation.
    held_out = math.ceil(total / recipe.val_every)
    return {"train": total - held_out, "val": held_out}


def count_tokens(shards: dict[str, list[Shard]]) -> int:
    """The tokens of all splits."""
    return sum(shard.tokens for split in shards.values() for shard in split)


def print_summary(
    shards: dict[str, list[Shard]],
    documents_per_split: dict[str, int],
    counts: RowCounts,
    notes: Sequence[str],
) -> None:
    """Print a table of documents, skipped rows and tokens; `notes` tell of files."""
    for note in notes:
        print_line("files", note)
    num_documents = sum(documents_per_split.values())
    # Each document begins with one <|endoftext|>.
    separators = num_documents
    print_line("documents", f"{num_documents:,}")
    if counts.is_cut:
        print_line("one document", "cut in two parts: its end is for validation")
    print_skipped(counts)
    print_line("text tokens", f"{count_tokens(shards) - separators:,}")
    print_line("separators", f"{separators:,}")
    for split, split_shards in shards.items():
        tokens = sum(shard.tokens for shard in split_shards)
        source = f"{documents_per_split[split]:,} documents"
        print_line(split, f"{tokens:,} tokens of {source} in {len(split_shards)} shards")


def print_skipped(counts: RowCounts) -> None:
    """Print how many rows were skipped, and where the first ones of each reason are."""
    print_line("skipped", counts.reasons())
    for reason, count in sorted(counts.skipped.items()):
        named = counts.named[reason]
        more = f" and {count - len(named):,} more" if count > len(named) else ""
        print(f"  {reason}: {name_some(named)}{more}")


def print_end(out: Path, seconds: float, tokens: int, advice: str | None) -> None:
    """Print the time that `tokens` took, the folder, and the advice if there is one."""
    print_line("time", f"{seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")
    print_line("written to", out)
    if advice:
        print_line("warning", advice)


def print_line(label: str, value: object) -> None:
    """Print a line of the table."""
    print(f"{label:<12} {value}")
