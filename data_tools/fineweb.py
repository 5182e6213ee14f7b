"""Turn documents into token shards on all CPU cores, so that training reads only tokens.

    python -m data_tools.fineweb --source my_texts/ --out data/mine

Every document becomes `<|endoftext|>` and its tokens. The usable documents of all sources are
numbered from 0, in order. Document n is for validation if n is a multiple of --val-every, else for
training, so neither the number of workers nor a restart changes the split of a document.

Several machines can share the work (make_parts.py): each of them writes a part, and then --merge
makes of all parts the bytes that one process would have written.

    python -m data_tools.fineweb --source my_texts/ --parts data/parts --part 0/2
    python -m data_tools.fineweb --source my_texts/ --parts data/parts --part 1/2
    python -m data_tools.fineweb --merge data/parts --out data/mine

gigatoken encodes where it is installed, else tiktoken. Both give the same tokens: samples of
gigatoken's output are compared with tiktoken's. A run that was killed continues with the same
command.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import chain
from pathlib import Path

from data_tools.encoders import Encoded, cores, encode_all, make_batches
from data_tools.fast_tokenizer import FastTokenizer
from data_tools.fineweb_options import read_options
from data_tools.folder_lock import lock
from data_tools.join_parts import join_parts
from data_tools.make_parts import make_part
from data_tools.parts import expect_no_parts
from data_tools.progress_bar import ProgressBar
from data_tools.recipe import Recipe, cut_end, expect_outside_sources
from data_tools.resumable_shards import CONTINUE_MESSAGE, ResumableShards, done_source
from data_tools.split_lengths import SplitLengths
from data_tools.summary import (
    RowCounts,
    count_splits,
    count_tokens,
    print_end,
    print_estimate,
    print_summary,
)
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.sources import FileTime, name_some, times, unread_notes


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
    expect_outside_sources(out, "--out", recipe.sources)
    expect_no_parts(out)
    notes = list(unread_notes(recipe.sources))
    for note in notes:
        print(note, flush=True)
    before = [times(source) for source in recipe.sources]
    description = recipe.describe()
    if found := done_source(out, description, recipe.describe_earlier()):
        if found != description and not recipe.is_read_as_earlier():
            print(f"{out}: made by version 0.1.0, which did not read all these files")
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
    print_summary(written, documents_per_split, counts, notes)
    advice = lengths.advice(written, is_whole=not (shards.tokens_found or counts.is_cut))
    print_end(out, seconds, count_tokens(written) - shards.tokens_found, advice)


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
    texts = _in_two_if_alone(counts.usable(recipe.read_documents()), recipe, counts)
    for number, text in enumerate(texts):
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


def main() -> None:
    """The command line of `prepare`, `make_part` and `join_parts`."""
    options = read_options()
    if "merge" in options:
        with lock(options["out"]):
            join_parts(options["merge"], options["out"])
        return
    workers = options.pop("workers", None)
    fast_tokenizer = None if options.pop("no_fast", False) else FastTokenizer()
    out, folder, part = (options.pop(name, None) for name in ("out", "parts", "part"))
    # The options that are left are the fields of Recipe.
    recipe = Recipe(**options)
    if part:
        make_part(recipe, folder, *part, workers=workers, fast_tokenizer=fast_tokenizer)
        return
    expect_outside_sources(out, "--out", recipe.sources)
    with lock(out):
        prepare(recipe, out, workers=workers, fast_tokenizer=fast_tokenizer)


if __name__ == "__main__":
    exit_cleanly(main)
