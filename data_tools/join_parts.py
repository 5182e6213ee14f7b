"""Join parts to token shards: byte for byte those that one process writes.

In the order of the source files, every document gets its number, and the writer that one process
uses decides by it. The sources themselves are not needed.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_tools.encoders import Encoded, encode_batch
from data_tools.parts import (
    PartRecord,
    expect_no_parts,
    find_parts,
    part_path,
    read_batches,
    read_record,
)
from data_tools.progress_bar import ProgressBar
from data_tools.recipe import Recipe, cut_end
from data_tools.resumable_shards import ResumableShards, done_source
from data_tools.split_lengths import SplitLengths
from data_tools.summary import RowCounts, count_splits, count_tokens, print_end, print_summary
from minigpt_jax.errors import InputError
from minigpt_jax.sources import identity_of, name_some
from minigpt_jax.tokenizer import load_tokenizer


def join_parts(folder: Path, out: Path) -> None:
    """Write the shards of all parts in `folder` that are missing in `out`, and the manifest.

    Prints a summary. Raises InputError where a part is missing, damaged or of other text or another
    number of parts, where there are too few documents, and for an `out` with other data. Raises
    RunError for a full disk.
    """
    expect_no_parts(out)
    records = read_complete(folder)
    recipe = Recipe(**records[0].recipe)
    description = recipe.describe_as(_identities(records))
    if done_source(out, description):
        return
    counts = RowCounts(sum(record.documents for record in records))
    for record in records:
        counts.add_skipped(record.skipped, record.named)
    batches = _batches(folder, records)
    if counts.documents == 1:
        batches = iter([_in_two(next(batches), recipe, counts)])
    if recipe.limit:
        counts.documents = min(counts.documents, recipe.limit)
    documents_per_split = count_splits(recipe, counts)
    started = time.monotonic()
    shards = ResumableShards(
        out, description, val_every=recipe.val_every, shard_tokens=recipe.shard_tokens
    )
    found = shards.tokens_found
    lengths = SplitLengths(recipe.val_every)
    with ProgressBar("tok", total=sum(record.tokens for record in records)) as bar:
        for encoded in batches:
            bar.advance(len(encoded.tokens))
            missing = _missing(encoded, shards, counts.documents)
            if len(missing.numbers):
                shards.append(missing)
                lengths.add(missing)
    written = shards.finish(documents_per_split)
    print_summary(written, documents_per_split, counts, notes=())
    advice = lengths.advice(written, is_whole=not (found or counts.is_cut))
    print_end(out, time.monotonic() - started, count_tokens(written) - found, advice)


def read_complete(folder: Path) -> list[PartRecord]:
    """The records of all parts, in order. Raises InputError where they are not one whole."""
    if not folder.is_dir():
        raise InputError(f"--merge {folder}: no such folder")
    paths = find_parts(folder)
    numbers = sorted({of for _, of in paths})
    if not numbers:
        raise InputError(f"{folder}: no parts here: make them with --parts and --part")
    if len(numbers) > 1:
        raise InputError(
            f"{folder}: holds parts of {numbers[0]} and of {numbers[1]}: delete those of one"
        )
    of = numbers[0]
    missing = [f"{index}/{of}" for index in range(of) if (index, of) not in paths]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {of} parts are missing: make them with "
            f"--part {name_some(missing)}"
        )
    records = [read_record(path) for path in paths.values()]
    for record in records:
        if record.plan != records[0].plan:
            raise InputError(
                f"{folder}: part {record.index}/{of} was made from [{record.plan}], "
                f"part 0/{of} from [{records[0].plan}]: delete one of them and make it again"
            )
    return records


def _identities(records: list[PartRecord]) -> list[str]:
    """The identity of each source, from the files of all parts."""
    identities = []
    for same in zip(*(record.sources for record in records), strict=True):
        if same[0].files is None:
            identities.append(same[0].name)
        else:
            files = [file for part in same for file in part.files]
            identities.append(identity_of(same[0].name, files))
    return identities


def _batches(folder: Path, records: list[PartRecord]) -> Iterator[Encoded]:
    """All batches, with the numbers that the documents have in the whole."""
    first = 0
    for record in records:
        path = part_path(folder, record.index, record.of)
        for bounds, tokens in read_batches(path, record.batches):
            numbers = first + np.arange(len(bounds) - 1)
            yield Encoded(numbers, bounds, tokens, seconds=0)
            first += len(numbers)


def _in_two(alone: Encoded, recipe: Recipe, counts: RowCounts) -> Encoded:
    """A single document as the two that one process makes of it."""
    # Its first token is <|endoftext|>.
    text = load_tokenizer().decode(alone.tokens[1:].tolist())
    pieces = cut_end(text, recipe.val_every)
    if pieces is None:
        return alone
    counts.is_cut = True
    counts.documents = len(pieces)
    return encode_batch(list(enumerate(pieces)))


def _missing(encoded: Encoded, shards: ResumableShards, limit: int) -> Encoded:
    """Those documents of a batch that complete shards do not hold, below number `limit`."""
    kept = np.array([n < limit and shards.is_missing(n) for n in encoded.numbers.tolist()])
    if kept.all():
        return encoded
    lengths = np.diff(encoded.bounds)
    bounds = np.insert(np.cumsum(lengths[kept]), 0, 0)
    tokens = encoded.tokens[np.repeat(kept, lengths)]
    return Encoded(encoded.numbers[kept], bounds, tokens, seconds=0)
