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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import chain
from pathlib import Path

from data_tools.encoders import Encoded, cores, encode_all, make_batches
from data_tools.fast_tokenizer import FastTokenizer
from data_tools.folder_lock import lock
from data_tools.progress_bar import ProgressBar
from data_tools.recipe import Recipe, cut_end
from data_tools.resumable_shards import (
    CONTINUE_MESSAGE,
    PROGRESS_FILE,
    ResumableShards,
    expect_same_source,
)
from data_tools.split_lengths import SplitLengths
from data_tools.summary import (
    RowCounts,
    count_splits,
    count_tokens,
    print_estimate,
    print_line,
    print_summary,
)
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.runtime.files import expand_home, shell_word, user_path
from minigpt_jax.shard_writer import SHARD_TOKENS
from minigpt_jax.sources import BadRow, FileTime, find, name_some, times, unread_notes
from minigpt_jax.token_stream import MANIFEST, read_manifest


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
    expect_outside_sources(out, recipe.sources)
    notes = list(unread_notes(recipe.sources))
    for note in notes:
        print(note, flush=True)
    before = [times(source) for source in recipe.sources]
    description = recipe.describe()
    if (out / MANIFEST).exists():
        _explain_finished(out, recipe, description)
        return
    shards = ResumableShards(
        out,
        description,
        earlier_source=recipe.describe_earlier() if recipe.is_read_as_earlier() else None,
        val_every=recipe.val_every,
        shard_tokens=recipe.shard_tokens,
    )
    if shards.tokens_found:
        found = f"{shards.tokens_found:,} tokens in complete shards"
        print(f"{out}: continuing after {found}", flush=True)
    started = time.monotonic()
    counts = RowCounts()
    lengths = SplitLengths(recipe.val_every)
    batches = make_batches(_missing_documents(recipe, shards, counts))
    try:
        # Closing the generator ends the workers, also when writing fails.
        with closing(encode_all(batches, workers, fast_tokenizer)) as encoded:
            _append_all(encoded, shards, recipe, workers, out, lengths)
    except BrokenProcessPool:
        raise RunError(
            f"{out}: a worker process was killed (out of memory?): {CONTINUE_MESSAGE}"
        ) from None
    except KeyboardInterrupt:
        print(f"\n{out}: {CONTINUE_MESSAGE}", file=sys.stderr)
        raise
    documents_per_split = count_splits(recipe, counts)
    _expect_unchanged(recipe, before, out)
    written = shards.finish(documents_per_split)
    seconds = time.monotonic() - started
    speed = (count_tokens(written) - shards.tokens_found) / seconds
    print_summary(written, documents_per_split, counts, notes)
    print_line("time", f"{seconds:.1f} s, {speed:,.0f} tokens/s")
    print_line("written to", out)
    if advice := lengths.advice(written, is_whole=not (shards.tokens_found or counts.is_cut)):
        print_line("warning", advice)


def expect_outside_sources(out: Path, sources: Sequence[str]) -> None:
    """Raises InputError for a folder whose files the next run would read as documents."""
    above = {out.resolve(), *out.resolve().parents}
    for source in sources:
        found = find(source)
        if found is not None and {*found.folders, Path(source).resolve()} & above:
            raise InputError(f"--out {out} lies within --source {source}: choose another folder")


def _explain_finished(out: Path, recipe: Recipe, description: str) -> None:
    """Say that there is nothing to do. Raises InputError where `out` holds something else."""
    found = read_manifest(out).get("source")
    expect_same_source(out, found, description, recipe.describe_earlier())
    # A process that was killed right after it wrote the manifest leaves this file behind.
    (out / PROGRESS_FILE).unlink(missing_ok=True)
    print(
        f"{out}: done before, from the same text; "
        f"to check its files: python -m data_tools.verify {shell_word(out)}"
    )
    if found != description and not recipe.is_read_as_earlier():
        print(f"{out}: made by version 0.1.0, which did not read all these files")


def _expect_unchanged(recipe: Recipe, before: list[list[FileTime]], out: Path) -> None:
    """Raises InputError for a file that changed while it was read: `before` is what it was."""
    now = [times(source) for source in recipe.sources]
    changed = {state.path for state in {*chain(*before)} ^ {*chain(*now)}}
    if changed:
        raise InputError(
            f"{name_some(sorted(changed))}: changed while the text was read: "
            f"delete {out} and run the same command again"
        )


def _missing_documents(
    recipe: Recipe, shards: ResumableShards, counts: RowCounts
) -> Iterator[tuple[int, str]]:
    """(number, text) of every document that complete shards do not hold.

    Adds every row that it reads to `counts`.
    """
    for number, text in enumerate(_in_two_if_alone(_usable(recipe, counts), recipe, counts)):
        if number == recipe.limit:
            return
        if counts.is_cut and shards.is_earlier:
            raise InputError(
                f"{', '.join(recipe.sources)}: a single document, which is now cut in two: "
                "choose another --out, or delete the one that version 0.1.0 began"
            )
        counts.documents += 1
        if shards.is_missing(number):
            yield number, text


def _usable(recipe: Recipe, counts: RowCounts) -> Iterator[str]:
    for text in recipe.read_documents():
        if isinstance(text, BadRow):
            counts.skip(text)
        else:
            yield text


def _in_two_if_alone(texts: Iterator[str], recipe: Recipe, counts: RowCounts) -> Iterator[str]:
    """The texts; of a single one its end, for validation (it is document 0), and its beginning."""
    first, second = next(texts, None), next(texts, None)
    if first is not None and second is None:
        parts = cut_end(first, recipe.val_every)
        counts.is_cut = parts is not None
        yield from parts or (first,)
    elif first is not None and second is not None:
        yield from chain((first, second), texts)


def _append_all(
    batches: Iterator[Encoded],
    shards: ResumableShards,
    recipe: Recipe,
    workers: int,
    out: Path,
    lengths: SplitLengths,
) -> None:
    """Write the batches. Prints an estimate after the first, and shows a progress bar."""
    first = next(batches, None)
    if first is None:
        return
    found = shards.tokens_found
    missing = print_estimate(first, recipe.estimate_bytes(), found, workers, out)
    total = None if missing is None else found + missing
    with ProgressBar("tok", total=total, initial=found) as bar:
        for encoded in chain([first], batches):
            shards.append(encoded)
            lengths.add(encoded)
            bar.advance(len(encoded.tokens))


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
    recipe = Recipe(**options)
    expect_outside_sources(out, recipe.sources)
    with lock(out):
        prepare(recipe, out, workers=workers, fast_tokenizer=fast_tokenizer)


if __name__ == "__main__":
    exit_cleanly(main)
