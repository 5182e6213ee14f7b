"""Turn question-answer pairs and dialogues into finetuning data: rendered, masked and packed.

    python -m data_tools.instruct --source HuggingFaceH4/instruction-dataset \\
        --source my_pairs.jsonl --out data/instruct

A source is a hub data set, or a local file of rows (parquet, Arrow, JSON or CSV), or a folder.
The schema is recognised row by row: `messages` (role/content), `conversations` (from/value),
`prompt`/`completion`, `instruction`/`input`/`output`, `question`/`answer` and others, with the
fields that belong to them: docs/data.md has the list. A row that cannot be trained on is skipped
and counted by reason, never cut to fit. Fields that were not used are named.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_tools.conversation_fields import FIELDS
from data_tools.conversations import Conversation, conversation_of
from data_tools.folder_lock import lock
from data_tools.packing import expect_free, write_packed
from data_tools.progress_bar import ProgressBar
from minigpt_jax.chat import BadConversation
from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import expand_home, user_path
from minigpt_jax.sources import ROWS, BadRow, rows, unread_notes
from minigpt_jax.tokenizer import Tokenizer, load_tokenizer

# Rows from which the cost of all rows is estimated.
SAMPLE_ROWS = 500
# Two for the id, one for the mask.
BYTES_PER_TOKEN = 3
# A row can have any number of fields that are not used.
SHOWN_FIELDS = 30

GREEN = "\x1b[32m"
NO_COLOUR = "\x1b[0m"


class SourceRow(NamedTuple):
    """A row, with the source and the number by which messages name it."""

    source: str
    number: int
    row: dict[str, Any] | BadRow


def read_rows(sources: Sequence[str], name: str | None) -> list[SourceRow]:
    """All rows of all sources in order. Raises as `sources.rows` does."""
    found = []
    for source in sources:
        print(f"reading {source}", flush=True)
        for note in unread_notes([source], ROWS):
            print(note, flush=True)
        read = rows(source, name=name, columns=FIELDS, kinds=ROWS, others=True)
        found += [SourceRow(source, number, row) for number, row in enumerate(read, 1)]
    return found


def render_rows(
    found: Sequence[SourceRow], context: int, *, strict: bool, out: Path
) -> tuple[list[Conversation], Counter[str]]:
    """The conversations of all rows in order, and the number of skipped rows by reason.

    Prints an estimate for the data in `out`. With `strict`, the first row that would be skipped
    raises InputError.
    """
    tokenizer = load_tokenizer()
    conversations: list[Conversation] = []
    skipped = Counter[str]()
    sample = min(SAMPLE_ROWS, len(found) // 10)
    started = time.monotonic()
    tokens = 0
    with ProgressBar(" rows", total=len(found)) as bar:
        for done, (source, number, row) in enumerate(found, 1):
            try:
                conversations.append(_render(row, context, tokenizer))
                tokens += len(conversations[-1].tokens)
            except BadConversation as bad:
                if strict:
                    raise InputError(
                        f"{source}: row {number}: {bad} "
                        "(without --strict it would be skipped and counted)"
                    ) from None
                skipped[bad.reason] += 1
            seconds = time.monotonic() - started
            bar.advance(1, f"{tokens / seconds:,.0f} tokens/s")
            if done == sample:
                share = len(found) / sample
                _print_estimate(share * tokens, share * seconds, out)
    return conversations, skipped


def _render(row: dict[str, Any] | BadRow, context: int, tokenizer: Tokenizer) -> Conversation:
    if isinstance(row, BadRow):
        raise BadConversation(row.reason, f"found at {row.where}")
    return conversation_of(row, context, tokenizer)


def _print_estimate(tokens: float, seconds: float, out: Path) -> None:
    folders = (out.absolute(), *out.absolute().parents)
    free = shutil.disk_usage(next(folder for folder in folders if folder.exists())).free
    print(
        f"estimate: {tokens / 1e6:.1f}M tokens, {tokens * BYTES_PER_TOKEN / 1e6:.0f} MB of disk "
        f"({free / 1e9:.1f} GB free), {seconds:.0f} s",
        flush=True,
    )


def _print_summary(
    conversations: Sequence[Conversation],
    skipped: Counter[str],
    packed_rows: dict[str, int],
    context: int,
) -> None:
    tokens = sum(len(c.tokens) for c in conversations)
    table = [
        ("rows read", len(conversations) + skipped.total()),
        ("kept", len(conversations)),
        ("skipped", skipped.total()),
        *((f"  {reason}", count) for reason, count in skipped.most_common()),
        ("tokens", tokens),
        ("supervised", sum(int(c.mask.sum()) for c in conversations)),
        *((f"{split} rows", count) for split, count in packed_rows.items()),
    ]
    width = max(20, *(len(label) for label, _ in table))
    for label, value in table:
        print(f"{label:<{width}} {value:>12,}")
    fill = tokens / (context * sum(packed_rows.values()))
    print(f"{'fill of the rows':<{width}} {fill:>12.1%}")
    if unused := sorted({field for c in conversations for field in c.unused}):
        more = f" and {len(unused) - SHOWN_FIELDS} more" if len(unused) > SHOWN_FIELDS else ""
        print(f"fields not used: {', '.join(unused[:SHOWN_FIELDS])}{more}")


def marked_text(
    conversation: Conversation, tokenizer: Tokenizer, before: str, after: str
) -> Iterator[str]:
    """The parts of the text, special tokens included; a learned part is between the two marks."""
    mask = conversation.mask
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    for start, stop in pairwise(edges):
        text = tokenizer.decode(conversation.tokens[start:stop].tolist())
        yield f"{before}{text}{after}" if mask[start] else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.instruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--source",
        type=expand_home,
        action="append",
        required=True,
        help="hub data set, file or folder; may be repeated",
    )
    add("--name", help="configuration of the hub data sets, where they have several")
    add("--out", type=user_path, required=True, help="folder for shards and manifest")
    add(
        "--context",
        type=int,
        default=1024,
        help="row length in tokens: model.context of the run that is to come (default %(default)s)",
    )
    add(
        "--val-every",
        type=int,
        default=100,
        help="every n-th conversation is for validation (default %(default)s)",
    )
    add(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="print the first N conversations, with the learned tokens in colour",
    )
    add("--strict", action="store_true", help="stop at the first row that would be skipped")
    add("--overwrite", action="store_true", help="replace the prepared data in --out")
    return parser


def main() -> None:
    """The command line: prepare the folder and print a summary of all rows."""
    args = _parser().parse_args()
    with lock(args.out):
        prepare(args)


def prepare(args: argparse.Namespace) -> None:
    """Read, pack and write. Raises InputError and RunError."""
    if args.context < 2 or args.val_every < 2:
        raise InputError(
            f"--context {args.context} --val-every {args.val_every}: both must be at least 2"
        )
    tokenizer = load_tokenizer()
    expect_free(args.out, args.overwrite)
    conversations, skipped = render_rows(
        read_rows(args.source, args.name), args.context, strict=args.strict, out=args.out
    )
    sources = ", ".join(args.source)
    if len(conversations) < 2:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
        raise InputError(
            f"{sources}: found {len(conversations)} conversations, "
            f"expected at least one for each split (skipped: {reasons or 'nothing'}"
            f"{'; --strict shows the first row' if skipped else ''})"
        )
    splits = {
        "train": [c for n, c in enumerate(conversations) if n % args.val_every],
        "val": conversations[:: args.val_every],
    }
    packed_rows = write_packed(args.out, splits, args.context, tokenizer, source=sources)
    marks = (GREEN, NO_COLOUR) if sys.stdout.isatty() else ("[[", "]]")
    for conversation in conversations[: args.show]:
        print("".join(marked_text(conversation, tokenizer, *marks)) + "\n")
    _print_summary(conversations, skipped, packed_rows, args.context)


if __name__ == "__main__":
    exit_cleanly(main)
