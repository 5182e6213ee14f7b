"""Turn question-answer pairs and dialogues into finetuning data: rendered once, masked, packed into rows that no conversation crosses.

    python -m data_tools.instruct --source HuggingFaceH4/instruction-dataset --source my_pairs.jsonl --out data/instruct

A source is a hub data set or a local parquet, jsonl, json or json.gz file or a folder of them. The schema is recognised row by row:
`messages` (role/content), `conversations` (from/value), `prompt`/`completion`, `instruction`/`input`/`output`, `question`/`answer`.
A row that cannot be trained on is skipped and counted by reason, never cut to fit.
"""

import argparse
import os
import shutil
import sys
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minigpt_jax.chat import BadConversation, Message, render
from minigpt_jax.errors import InputError, RunError, exit_cleanly
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.sources import BadRow, rows
from minigpt_jax.token_stream import MANIFEST, Shard, mask_file
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT, Tokenizer, load_tokenizer

_SAMPLE_ROWS = 500  # rows that tell what all of them will take
_LINE_SECONDS = 10  # between two lines of progress where there is no terminal
# Question and answer columns of a pair, in the order they are looked for, after the two kinds of dialogue.
_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
_DIALOGUES = ("messages", "conversations")
_ROLES = {
    "human": "user",
    "gpt": "assistant",
}  # ShareGPT's names; others are checked by the template


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation: `tokens` [n] uint16 and `mask` [n] uint8, 1 where a token is learned."""

    tokens: np.ndarray
    mask: np.ndarray


def messages_of(row: dict[str, Any]) -> list[Message]:
    """The conversation a row holds, whatever its schema; blanks around texts removed. Raises BadConversation.

    A null counts as an absent field. A `system` field goes before a pair, an `input` below its question.
    """
    fields = {name: value for name, value in row.items() if value is not None}
    for name in _DIALOGUES:
        if name in fields:
            return _dialogue(name, fields[name])
    for question, answer in _PAIRS:
        if question in fields or answer in fields:
            return _pair(fields, question, answer)
    known = [*_DIALOGUES, *("/".join(pair) for pair in _PAIRS)]
    raise BadConversation(
        "field missing",
        f"found {', '.join(map(str, fields)) or 'nothing'}, expected one of {', '.join(known)}",
    )


def conversation_of(row: dict[str, Any], context: int, tokenizer: Tokenizer) -> Conversation:
    """Render a row for rows of `context` tokens. Raises BadConversation, also where it is too long or teaches nothing."""
    tokens, mask = render(messages_of(row), tokenizer)
    if not any(mask):
        raise BadConversation("nothing to learn", "found no answer of the assistant")
    if len(tokens) > context:
        raise BadConversation("too long", f"found {len(tokens)} tokens, a row holds {context}")
    return Conversation(np.array(tokens, np.uint16), np.array(mask, np.uint8))


def pack(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Best fit, longest first: row after row, the numbers of the conversations in it; their `lengths` sum up to at most `context`.

    Rows stand in the order of their longest conversation in the source, so that no part of the stream is all short ones.
    """
    rows: list[list[int]] = []
    spaces: list[
        tuple[int, int]
    ] = []  # (tokens free, row), sorted: the first one that is large enough fits best
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        best = bisect_left(spaces, (lengths[number], 0))
        if best == len(spaces):
            space, row = context, len(rows)
            rows.append([])
        else:
            space, row = spaces.pop(best)
        rows[row].append(number)
        if space > lengths[number]:
            insort(spaces, (space - lengths[number], row))
    return sorted(rows)


def write_packed(
    folder: Path,
    splits: dict[str, list[Conversation]],
    context: int,
    tokenizer: Tokenizer,
    source: str,
) -> dict[str, int]:
    """Replace what `folder` holds by masked shards of rows of `context` tokens; returns the number of rows of every split.

    Rows are padded, and a stream is closed, with <|endoftext|> of weight 0. The manifest goes first and comes back last: a folder
    without one is unfinished. Raises RunError when the disk is full.
    """
    shards: dict[str, tuple[list[Shard], int]] = {}
    counts: dict[str, int] = {}
    try:
        _clear(folder)
        for split, conversations in splits.items():
            packed = pack([len(c.tokens) for c in conversations], context)
            writer = ShardWriter(folder, split, masked=True)
            for row in packed:
                writer.append(*_padded([conversations[number] for number in row], context))
            writer.append(*_padded([], 1))  # what the last token of the last row is followed by
            shards[split], counts[split] = (writer.close(), len(conversations)), len(packed)
        write_manifest(
            folder,
            shards,
            tokenizer=tokenizer.hash,
            vocab_size=CHAT_VOCAB,
            context=context,
            source=source,
        )
    except OSError as error:
        raise RunError(
            f"{folder}: {error.strerror or error}: make room and run the same command again"
        ) from None
    return counts


def expect_free(folder: Path, overwrite: bool) -> None:
    """Raise InputError where writing to `folder` would destroy what somebody may need; what a killed run of ours left is free to go."""
    if (folder / MANIFEST).exists() and not overwrite:
        raise InputError(
            f"{folder}: holds prepared data: choose another folder, or replace it with --overwrite"
        )
    for path in folder.glob("*.npy"):
        # We write the mask of a shard before its tokens, so tokens alone are never ours.
        if not path.name.endswith(".mask.npy") and not (folder / mask_file(path.name)).exists():
            raise InputError(
                f"{path}: a token file without a mask, not from this tool: choose another folder"
            )


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / MANIFEST, *folder.glob("*.npy"), *folder.glob("*.tmp")):
        path.unlink(missing_ok=True)


def _padded(conversations: Sequence[Conversation], length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, mask = np.full(length, END_OF_TEXT, np.uint16), np.zeros(length, np.uint8)
    start = 0
    for conversation in conversations:
        stop = start + len(conversation.tokens)
        tokens[start:stop], mask[start:stop] = conversation.tokens, conversation.mask
        start = stop
    return tokens, mask


def _dialogue(name: str, turns: object) -> list[Message]:
    if not isinstance(turns, list):
        raise BadConversation("not a list", f"found {_brief(turns)} in {name}")
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadConversation(
                "not a list", f"found {_brief(turn)} in {name}, expected a list of turns with names"
            )
        role = turn.get("role", turn.get("from"))
        messages.append(
            _message(
                _ROLES.get(role, role) if isinstance(role, str) else _brief(role),
                turn.get("content", turn.get("value")),
            )
        )
    return messages


def _pair(fields: dict[str, Any], question: str, answer: str) -> list[Message]:
    for field in (question, answer):
        if field not in fields:
            raise BadConversation(
                "field missing", f"found {', '.join(map(str, fields))}, expected {field} too"
            )
    answered = _message("assistant", fields[answer])
    asked = _message("user", fields[question])
    if question == "instruction" and fields.get("input"):
        asked["content"] += "\n\n" + _message("user", fields["input"])["content"]
    system = [_message("system", fields["system"])] if fields.get("system") else []
    return [*system, asked, answered]


def _message(role: str, content: object) -> Message:
    if not isinstance(content, str):
        raise BadConversation("not a text", f"found {_brief(content)} as what the {role} says")
    if not content.strip():
        raise BadConversation(
            "empty answer" if role == "assistant" else "empty message", f"the {role} says nothing"
        )
    return {"role": role, "content": content.strip()}


def _brief(value: object) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."


def render_rows(
    sources: Sequence[str], *, name: str | None, context: int, strict: bool, out: Path
) -> tuple[list[Conversation], Counter[str]]:
    """The conversations of all sources in order, and how many rows were skipped, by reason. With `strict`, the first of those raises InputError."""
    tokenizer, conversations, skipped = load_tokenizer(), list[Conversation](), Counter[str]()
    numbered = []
    for source in sources:
        print(f"reading {source}", flush=True)
        numbered += [(source, number, row) for number, row in enumerate(rows(source, name=name), 1)]
    sample, started = min(_SAMPLE_ROWS, len(numbered) // 10), time.monotonic()
    for done, (source, number, row) in enumerate(_progress(numbered, conversations), 1):
        try:
            if isinstance(row, BadRow):
                raise BadConversation(row.reason, f"found at {row.where}")
            conversations.append(conversation_of(row, context, tokenizer))
        except BadConversation as bad:
            if strict:
                raise InputError(
                    f"{source}: row {number}: {bad} (without --strict it would be skipped and counted)"
                ) from None
            skipped[bad.reason] += 1
        if done == sample:
            share = len(numbered) / sample
            _print_estimate(
                share * sum(len(c.tokens) for c in conversations),
                share * (time.monotonic() - started),
                out,
            )
    return conversations, skipped


def _progress(
    numbered: Sequence[tuple[str, int, Any]], kept: Sequence[Conversation]
) -> Iterator[tuple[str, int, Any]]:
    """Pass the rows on, with a bar on a terminal that counts the tokens `kept` too; elsewhere with a line now and then."""
    live, spoken, began, counted, tokens = (
        sys.stderr.isatty(),
        time.monotonic(),
        time.monotonic(),
        0,
        0,
    )
    with Path(os.devnull).open("w") as nowhere:
        bar = tqdm(
            numbered, unit=" rows", file=sys.stderr if live else nowhere, ncols=None if live else 80
        )
        for item in bar:
            yield item
            tokens, counted = tokens + sum(len(c.tokens) for c in kept[counted:]), len(kept)
            bar.set_postfix_str(
                f"{tokens / (time.monotonic() - began):,.0f} tokens/s", refresh=False
            )
            if not live and time.monotonic() - spoken > _LINE_SECONDS:
                spoken = time.monotonic()
                print(bar, file=sys.stderr, flush=True)
        bar.close()


def _print_estimate(tokens: float, seconds: float, out: Path) -> None:
    existing = next(
        folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists()
    )
    free = shutil.disk_usage(existing).free
    print(
        f"estimate: {tokens / 1e6:.1f}M tokens, {tokens * 3 / 1e6:.0f} MB of disk ({free / 1e9:.1f} GB free), {seconds:.0f} s",
        flush=True,
    )


def _print_summary(
    conversations: Sequence[Conversation],
    skipped: Counter[str],
    lengths: dict[str, int],
    context: int,
) -> None:
    tokens, supervised = (
        sum(len(c.tokens) for c in conversations),
        sum(int(c.mask.sum()) for c in conversations),
    )
    table = [
        ("rows read", len(conversations) + skipped.total()),
        ("kept", len(conversations)),
        ("skipped", skipped.total()),
    ]
    table += [(f"  {reason}", count) for reason, count in skipped.most_common()]
    table += [("tokens", tokens), ("supervised", supervised)]
    table += [(f"{split} rows", count) for split, count in lengths.items()]
    for label, value in table:
        print(f"{label:<20} {value:>12,}")
    print(f"{'fill of the rows':<20} {tokens / (context * sum(lengths.values())):>12.1%}")


def marked(conversation: Conversation, tokenizer: Tokenizer, before: str, after: str) -> str:
    """The text of the tokens, structure included, with what the mask trains on between `before` and `after`."""
    edges = [0, *(np.flatnonzero(np.diff(conversation.mask)) + 1).tolist(), len(conversation.mask)]
    text = ""
    for start, stop in pairwise(edges):
        piece = tokenizer.decode(conversation.tokens[start:stop].tolist())
        text += before + piece + after if conversation.mask[start] else piece
    return text


def main() -> None:
    """Read the command line, prepare the folder, print what became of every row."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.instruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        help="hub data set, file or folder; may be repeated",
    )
    parser.add_argument(
        "--name", help="configuration of the hub data sets, where they have several"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for shards and manifest")
    parser.add_argument(
        "--context",
        type=int,
        default=1024,
        help="row length in tokens: model.context of the run to come (default %(default)s)",
    )
    parser.add_argument(
        "--val-every",
        type=int,
        default=100,
        help="hold out every n-th conversation for validation (default %(default)s)",
    )
    parser.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="print the first N conversations, what is trained on in colour",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first row that would be skipped"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the prepared data in --out"
    )
    args = parser.parse_args()
    if args.context < 2 or args.val_every < 2:
        raise InputError(
            f"--context {args.context} --val-every {args.val_every}: both must be at least 2"
        )
    tokenizer = load_tokenizer()
    expect_free(args.out, args.overwrite)
    conversations, skipped = render_rows(
        args.source, name=args.name, context=args.context, strict=args.strict, out=args.out
    )
    if len(conversations) < 2:
        reasons = (
            ", ".join(f"{count} {reason}" for reason, count in skipped.most_common()) or "nothing"
        )
        raise InputError(
            f"{', '.join(args.source)}: found {len(conversations)} conversations, expected at least one a split (skipped: {reasons})"
        )
    splits = {
        "train": [c for n, c in enumerate(conversations) if n % args.val_every],
        "val": conversations[:: args.val_every],
    }
    lengths = write_packed(args.out, splits, args.context, tokenizer, source=", ".join(args.source))
    before, after = ("\x1b[32m", "\x1b[0m") if sys.stdout.isatty() else ("[[", "]]")
    for conversation in conversations[: args.show]:
        print(marked(conversation, tokenizer, before, after) + "\n")
    _print_summary(conversations, skipped, lengths, args.context)


if __name__ == "__main__":
    exit_cleanly(main)
