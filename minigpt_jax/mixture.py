"""Several folders of token files as the data of one run, each with its share of the rows.

`data.mixture="data/a=0.7,data/b=0.3"` gives 7 of 10 rows to data/a. Which source a row belongs to,
and how many rows of that source came before it, follow from the number of the row alone, as the
order of the rows in data.py follows from seed and epoch: so a run resumes exactly at any step. Data
of one folder are a mixture with one source.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import expand_home
from minigpt_jax.token_stream import Stream, open_splits, read_manifest, row_count


@dataclass(frozen=True)
class Source:
    """A folder, opened. Its part of the rows is `share` by the sum of all sources' shares."""

    folder: str
    share: int
    train: Stream
    val: Stream


def shares_of(folder: str, mixture: str) -> dict[str, int]:
    """{folder: share} of the fields data.folder and data.mixture; the mixture comes first.

    The shares are whole numbers without a common divisor. Raises InputError.
    """
    if not mixture:
        return {folder: 1}
    weights: dict[str, Fraction] = {}
    for entry in mixture.split(","):
        # The last "=": a folder's name may contain others.
        name, equals, number = entry.rpartition("=")
        name = expand_home(name.strip())
        if not equals or not name:
            raise InputError(
                f"data.mixture: found {entry.strip()!r}, expected FOLDER=WEIGHT, and a comma "
                "between two of them"
            )
        for other in weights:
            if os.path.realpath(name) == os.path.realpath(other):
                raise InputError(
                    f"data.mixture: {other} and {name} are the same folder: "
                    "name it once, with the sum of the weights"
                )
        weights[name] = _weight(name, number.strip())
    common = math.lcm(*(weight.denominator for weight in weights.values()))
    shares = [int(weight * common) for weight in weights.values()]
    divisor = math.gcd(*shares)
    return {name: share // divisor for name, share in zip(weights, shares, strict=True)}


def _weight(folder: str, text: str) -> Fraction:
    """The decimal number `text`, as a float shows it."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    # Neither NaN nor a number that is 0 or infinite as a float passes.
    if not 0 < weight < math.inf:
        raise InputError(
            f"data.mixture: {folder} has the weight {text!r}, expected a number above 0, "
            "such as 0.3"
        )
    return Fraction(str(weight))


def open_sources(
    shares: Mapping[str, int], vocab_size: int, context: int, *, packed: bool
) -> tuple[Source, ...]:
    """Both splits of each folder, checked as in `open_splits`. Raises InputError.

    Folders that were prepared for different purposes are no mixture.
    """
    first, *others = shares
    for other in others:
        for one, two in zip(_kind(first), _kind(other), strict=True):
            if one != two:
                raise InputError(
                    f"data.mixture: {first} holds {one}, {other} holds {two}: "
                    "expected folders that were prepared alike"
                )
    return tuple(
        Source(folder, share, *open_splits(folder, vocab_size, context, packed=packed))
        for folder, share in shares.items()
    )


def _kind(folder: str) -> tuple[str, str]:
    """What all folders of a mixture have in common, in words."""
    manifest = read_manifest(Path(folder))
    context = manifest.get("context")
    rows = "plain text" if context is None else f"conversations in rows of {context} tokens"
    return rows, f"ids of the tokenizer {str(manifest.get('tokenizer'))[:12]}"


def identity(sources: Sequence[Source]) -> str:
    """Hex digits that change with any training token of the sources, their shares and order.

    One source has the identity of its stream.
    """
    if len(sources) == 1:
        return sources[0].train.identity
    content = json.dumps([[source.train.identity, source.share] for source in sources])
    return hashlib.sha256(content.encode()).hexdigest()


def describe_sources(sources: Sequence[Source], context: int, batch: int) -> dict:
    """The sources and the rows of a step as JSON: data.json of a run."""
    return {
        "batch": batch,
        "sources": [
            {
                "folder": source.folder,
                "share": source.share,
                "rows": row_count(source.train, context),
                "identity": source.train.identity,
            }
            for source in sources
        ],
    }


def rows_of_each(rows: int, shares: Sequence[int]) -> list[int]:
    """How many of the first `rows` rows of a run belong to each source.

    The largest share is rounded first, then the next one is rounded in what is left. Each count
    grows with `rows`, by one source at a time. It is less than one row away from the exact share
    with up to three sources, less than two with up to 12.
    """
    counts = [0] * len(shares)
    total = sum(shares)
    for source in sorted(range(len(shares)), key=lambda source: -shares[source]):
        # To the nearest, in whole numbers: floats would err in a long run.
        counts[source] = (2 * rows * shares[source] + total) // (2 * total)
        rows -= counts[source]
        total -= shares[source]
    return counts


def turns(start: int, stop: int, shares: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(source, rows of that source before) for the rows `start` to `stop` of a run."""
    before = rows_of_each(start, shares)
    for row in range(start, stop):
        after = rows_of_each(row + 1, shares)
        source = next(i for i, count in enumerate(before) if count < after[i])
        yield source, before[source]
        before = after


def first_rows(rows: Sequence[int]) -> list[int]:
    """The row of the `joined` stream with which each source begins, which has `rows` rows."""
    # The tokens that do not fill another row keep one row number free.
    return list(accumulate((count + 1 for count in rows[:-1]), initial=0))


def joined(sources: Sequence[Source], rows: Sequence[int], context: int) -> Stream:
    """The training streams as one, to be read by rows: each source begins where a row does."""
    streams = [source.train for source in sources]
    if len(streams) == 1:
        return streams[0]
    begins = [row * context for row in first_rows(rows)]
    starts = [
        begin + start
        for begin, stream in zip(begins, streams, strict=True)
        for start in stream.starts[:-1]
    ]
    masks = [mask for stream in streams for mask in stream.masks or ()]
    return Stream(
        streams[0].name,
        identity(sources),
        (*starts, begins[-1] + streams[-1].length),
        tuple(tokens for stream in streams for tokens in stream.tokens),
        tuple(masks) or None,
    )
