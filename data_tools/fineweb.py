"""Turn documents into token shards at the speed of all cores, so that pretraining reads tokens and never text.

    python -m data_tools.fineweb --source HuggingFaceFW/fineweb-edu --name sample-10BT --out data/fineweb_edu

Every document becomes `<|endoftext|>` and its tokens. Document n, counted over the usable documents of all sources in
order, is for validation when n is a multiple of --val-every, else for training: where a document lands depends neither
on the number of workers nor on restarts. Nor does the tokenizer change a byte: gigatoken is used where it is installed,
and compared with tiktoken, which is used otherwise. A journal in the folder says what its complete shards hold, so a run that was
killed goes on by the same command; when all is done the manifest takes the journal's place.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_tools.fast_tokenizer import FastTokenizer, Unusable, expect_equal
from minigpt_jax.errors import InputError, RunError, exit_cleanly
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.runtime.files import sha256, write_json
from minigpt_jax.shard_writer import SHARD_TOKENS, ShardWriter, write_manifest
from minigpt_jax.sources import BadRow, documents, identity, local_files, text_bytes
from minigpt_jax.token_stream import (
    MANIFEST,
    Shard,
    read_manifest,
)
from minigpt_jax.tokenizer import END_OF_TEXT, TEXT_VOCAB, load_tokenizer

JOURNAL = "progress.json"
SPLITS = ("train", "val")
SAFE = "complete shards are safe, and the same command goes on from them"
_BATCH_CHARACTERS = 2_000_000  # a fraction of a second of work: far more than it costs to hand it over, and to wait for Python meanwhile
_COMPARED_FIRST, _COMPARED_EVERY = (
    20,
    1_000,
)  # documents that both tokenizers encode: the first of a run, then one in so many
_LINE_SECONDS = 10  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Place:
    """How far the complete shards of a split reach: over its documents before `document`, and `offset` tokens of that one."""

    shards: tuple[Shard, ...] = ()
    document: int = -1
    offset: int = 0


Batch = list[tuple[int, str]]  # (ordinal, text) of some documents


@dataclass(frozen=True)
class Encoded:
    """A batch of n documents: ordinals [n] and lengths [n] with the separator, all tokens in a row uint16, and the seconds it took."""

    ordinals: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    seconds: float


def prepare(
    sources: Sequence[str],
    out: Path,
    *,
    name: str | None = None,
    column: str = "text",
    val_every: int = 100,
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    limit: int | None = None,
    fast: FastTokenizer | None = None,
) -> None:
    """Write the shards and the manifest of `sources` to `out`, or what is missing of them, and print a summary.

    `fast` encodes as long as it agrees with tiktoken; None is tiktoken from the start.
    Raises InputError for a source that cannot be read or a folder that holds something else, RunError for a full disk
    or a killed worker.
    """
    workers = workers or cores()
    recipe = _recipe(sources, out, name, column, val_every, shard_tokens, limit)
    if (out / MANIFEST).exists():
        _expect_same(out, read_manifest(out).get("source"), recipe)
        (out / JOURNAL).unlink(missing_ok=True)
        print(
            f"{out}: done before, from the same text; to check its files: python -m data_tools.index {out}"
        )
        return
    places = _resume(out, recipe)
    writers = {
        split: ShardWriter(out, split, shard_tokens, shards=place.shards)
        for split, place in places.items()
    }
    already = sum(shard.tokens for place in places.values() for shard in place.shards)
    if already:
        print(
            f"{out}: going on after {already:,} tokens that are safe in complete shards", flush=True
        )
    started, counts = time.monotonic(), Counter[str]()
    texts = chain.from_iterable(documents(source, name=name, column=column) for source in sources)
    batches = _batches(_todo(texts, places, val_every, limit, counts))
    sizes = (
        [None] if limit else [text_bytes(source, name=name, column=column) for source in sources]
    )
    size = None if None in sizes else sum(filter(None, sizes))
    try:
        with closing(_encode_all(batches, workers, fast)) as all_encoded:
            for encoded in _progress(all_encoded, size, already, workers, out):
                with _storage(out):
                    _store(
                        encoded,
                        writers,
                        places,
                        val_every,
                        journal=partial(_save_journal, out, recipe, places),
                    )
    except BrokenProcessPool:
        raise RunError(f"{out}: a worker process was killed (out of memory?): {SAFE}") from None
    except KeyboardInterrupt:
        print(f"\n{out}: {SAFE}", file=sys.stderr)
        raise
    total = counts.pop("documents", 0)
    if total < len(SPLITS):
        found = f"{total} usable documents in column {column!r} (skipped: {_skipped(counts)})"
        raise InputError(
            f"{', '.join(sources)}: {found}, expected one for each split at least; a text file is one document"
        )
    val = math.ceil(total / val_every)
    with _storage(out):
        splits = {
            "train": (writers["train"].close(), total - val),
            "val": (writers["val"].close(), val),
        }
        failpoint("before_manifest")
        write_manifest(
            out,
            splits,
            tokenizer=load_tokenizer().hash,
            vocab_size=TEXT_VOCAB,
            context=None,
            source=recipe,
        )
        failpoint("after_manifest")
        (out / JOURNAL).unlink()
    _summarise(out, splits, counts, already, time.monotonic() - started)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _recipe(
    sources: Sequence[str],
    out: Path,
    name: str | None,
    column: str,
    val_every: int,
    shard_tokens: int,
    limit: int | None,
) -> str:
    """All that decides the bytes of the shards, in one line: a folder that was made by another recipe is left alone."""
    for source in sources:
        if local_files(source) and out.resolve().is_relative_to(Path(source).resolve()):
            raise InputError(f"--out {out} lies within --source {source}: choose another folder")
    parts = [identity(source, name=name) for source in sources]
    parts += [
        f"column {column}",
        f"1 document in {val_every} to val",
        f"{shard_tokens} tokens a shard",
        f"tokenizer {load_tokenizer().hash[:12]}",
    ]
    return "; ".join(parts + ([f"the first {limit} documents"] if limit else []))


def _resume(out: Path, recipe: str) -> dict[str, Place]:
    """How far a run that was killed got, its shards checked, with the journal in place for this one."""
    places = {split: Place() for split in SPLITS}
    if (out / JOURNAL).exists():
        found, places = _load_journal(out / JOURNAL)
        if any(place.shards for place in places.values()):
            _expect_same(out, found, recipe)
    elif any(out.glob("*.npy")):
        raise InputError(
            f"{out}: holds .npy files of unknown origin: choose another --out, or adopt them: python -m data_tools.index {out}"
        )
    for shard in (shard for place in places.values() for shard in place.shards):
        if not (out / shard.file).is_file() or sha256(out / shard.file) != shard.sha256:
            raise InputError(
                f"{out / shard.file}: missing or changed since it was written: delete {out} and run again"
            )
    with _storage(out):
        out.mkdir(parents=True, exist_ok=True)
        for leftover in out.glob("*.tmp"):
            leftover.unlink()
        _save_journal(out, recipe, places)
    return places


def _expect_same(out: Path, found: str | None, recipe: str) -> None:
    if found != recipe:
        raise InputError(
            f"{out}: holds data made from [{found}], now asked for [{recipe}]: choose another --out, or delete it"
        )


def _save_journal(out: Path, recipe: str, places: dict[str, Place]) -> None:
    write_json(
        out / JOURNAL,
        {"source": recipe, "splits": {split: asdict(place) for split, place in places.items()}},
    )


def _load_journal(path: Path) -> tuple[str, dict[str, Place]]:
    try:
        journal = json.loads(path.read_text())
        places = {s: journal["splits"][s] for s in SPLITS}
        return journal["source"], {
            s: Place(tuple(Shard(**f) for f in p["shards"]), p["document"], p["offset"])
            for s, p in places.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a journal of ours ({error!r}): delete {path.parent} and run again"
        ) from None


def _split_of(ordinal: int, val_every: int) -> str:
    return "val" if ordinal % val_every == 0 else "train"


def _todo(
    texts: Iterable[str | BadRow],
    places: dict[str, Place],
    val_every: int,
    limit: int | None,
    counts: Counter[str],
) -> Iterator[tuple[int, str]]:
    """(ordinal, text) of every document that complete shards do not cover; `counts` gets all documents, and bad rows by reason."""
    for text in texts:
        if isinstance(text, BadRow):
            counts[text.reason] += 1
            continue
        ordinal = counts["documents"]
        if ordinal == limit:
            return
        counts["documents"] += 1
        if ordinal >= places[_split_of(ordinal, val_every)].document:
            yield ordinal, text


def _batches(numbered: Iterable[tuple[int, str]]) -> Iterator[Batch]:
    batch, size = [], 0
    for ordinal, text in numbered:
        batch.append((ordinal, text))
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_all(
    batches: Iterator[Batch], workers: int, fast: FastTokenizer | None
) -> Generator[Encoded]:
    """Tokenise in order: by `fast` in threads, which share all memory; when it fails or there is none, by processes with tiktoken."""
    flying: deque[tuple[Batch, Future[Encoded]]] = deque()
    if fast is not None and (first := next(batches, None)):
        start = first[0][0]
        try:
            with _shut_down(ThreadPoolExecutor(workers)) as pool:
                yield from _in_order(
                    pool,
                    partial(_encode_fast, fast, start),
                    chain([first], batches),
                    3 * workers,
                    flying,
                )
        except Unusable as reason:
            print(_farewell(reason, start, flying[0][0][0][0]), flush=True)
    with _shut_down(
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    ) as pool:
        undone = [batch for batch, _ in flying]
        yield from _in_order(pool, _encode, chain(undone, batches), 3 * workers, deque())


def _farewell(reason: Unusable, start: int, place: int) -> str:
    """The line that says why tiktoken takes over at document `place` of a run that began with document `start`."""
    doubt = (
        f"; only samples of the {place - start:,} before it were compared: to be sure, start over with --no-fast"
        if place > start
        else ""
    )
    return f"{reason}: tiktoken encodes from document {place} on{doubt}"


@contextmanager
def _shut_down(pool: Executor) -> Iterator[Executor]:
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: Executor,
    encode: Callable[[Batch], Encoded],
    batches: Iterable[Batch],
    ahead: int,
    flying: deque[tuple[Batch, Future[Encoded]]],
) -> Iterator[Encoded]:
    """Results in the order of the batches, of which at most `ahead` wait in memory; `flying` holds those not yet given out."""
    for batch in batches:
        flying.append((batch, pool.submit(encode, batch)))
        if len(flying) > ahead:
            yield _next(flying)
    while flying:
        yield _next(flying)


def _next(flying: deque[tuple[Batch, Future[Encoded]]]) -> Encoded:
    encoded = flying[0][1].result()
    flying.popleft()
    return encoded


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and go when it goes: nothing else would tell a worker that it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(batch: Batch) -> Encoded:
    tokenizer, started = load_tokenizer(), time.perf_counter()
    parts = [tokenizer.encode_array(text) for _, text in batch]
    return _encoded(batch, np.array([len(part) for part in parts]), np.concatenate(parts), started)


def _encode_fast(fast: FastTokenizer, start: int, batch: Batch) -> Encoded:
    """As `_encode`, compared with it where the rule of a run that began with document `start` says so. Raises Unusable."""
    fast.load()
    started = time.perf_counter()
    lengths, ids = fast.encode([text for _, text in batch])
    encoded = _encoded(batch, lengths, ids, started)
    expect_equal(
        batch,
        lengths,
        ids,
        {
            n
            for n, _ in batch
            if n < start + _COMPARED_FIRST or n % _COMPARED_EVERY == _COMPARED_EVERY - 1
        },
    )
    return encoded


def _encoded(batch: Batch, lengths: np.ndarray, ids: np.ndarray, started: float) -> Encoded:
    tokens = np.insert(ids, np.cumsum(lengths) - lengths, END_OF_TEXT)
    return Encoded(
        np.array([ordinal for ordinal, _ in batch]),
        lengths + 1,
        tokens,
        time.perf_counter() - started,
    )


def _store(
    encoded: Encoded,
    writers: dict[str, ShardWriter],
    places: dict[str, Place],
    val_every: int,
    journal: Callable[[], None],
) -> None:
    """Append a batch, each document to its split; whenever that completes a shard, `places` moves and `journal` saves it.

    Neighbours of the same split are appended together, up to the end of a shard.
    """
    ends = np.cumsum(encoded.lengths)
    held_out = encoded.ordinals % val_every == 0
    borders = [0, *(np.flatnonzero(held_out[1:] != held_out[:-1]) + 1), len(ends)]
    for first, last in pairwise(borders):
        split = _split_of(int(encoded.ordinals[first]), val_every)
        writer, place = writers[split], places[split]
        position = int(ends[first] - encoded.lengths[first]) + (
            place.offset if encoded.ordinals[first] == place.document else 0
        )
        stop = int(ends[last - 1])
        while position < stop:
            complete = len(writer.shards)
            upto = min(stop, position + writer.shard_tokens - writer.buffered)
            writer.append(encoded.tokens[position:upto])
            position = upto
            if len(writer.shards) > complete:
                cut = int(
                    np.searchsorted(ends, position)
                )  # the document that the end of the shard lies in
                places[split] = Place(
                    tuple(writer.shards),
                    int(encoded.ordinals[cut]),
                    int(position - ends[cut] + encoded.lengths[cut]),
                )
                failpoint("before_journal", len(writer.shards))
                journal()


@contextmanager
def _storage(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # numpy reports a short write without an error number.
        raise RunError(
            f"{out}: {error.strerror or f'disk full? ({error})'}: once there is room, {SAFE}"
        ) from None


def _progress(
    batches: Iterator[Encoded], size: int | None, already: int, workers: int, out: Path
) -> Iterator[Encoded]:
    """Pass `batches` on, with an estimate from the first and a bar on a terminal; elsewhere with a line now and then."""
    live, bar, spoken = sys.stderr.isatty(), None, time.monotonic()
    with Path(os.devnull).open("w") as nowhere:
        for encoded in batches:
            if bar is None:
                total, width = _estimate(encoded, size, workers, out), None if live else 80
                bar = tqdm(
                    total=total,
                    initial=already,
                    unit="tok",
                    unit_scale=True,
                    file=sys.stderr if live else nowhere,
                    ncols=width,
                )
            yield encoded
            bar.update(len(encoded.tokens))
            if not live and time.monotonic() - spoken > _LINE_SECONDS:
                spoken = time.monotonic()
                print(bar, file=sys.stderr, flush=True)
        if bar is not None:
            bar.close()


def _estimate(first: Encoded, size: int | None, workers: int, out: Path) -> int | None:
    """Print what the whole will cost, judged by the first batch; returns the number of tokens to expect, if it is known."""
    speed, free = (
        len(first.tokens) / first.seconds * min(workers, cores()),
        shutil.disk_usage(out).free,
    )
    rate = f"{speed / 1e6:.2f}M tokens/s with {workers} workers, {free / 1e9:.1f} GB of disk free"
    if size is None:
        print(f"estimate: unknown size, 2 bytes of disk a token; {rate}", flush=True)
        return None
    tokens = int(
        size * len(first.tokens) / max(1, load_tokenizer().byte_lengths()[first.tokens].sum())
    )
    print(
        f"estimate: {tokens / 1e6:.1f}M tokens, {tokens * 2 / 1e6:.1f} MB of disk, {tokens / speed:.0f} s; {rate}",
        flush=True,
    )
    if tokens * 2 > free:
        print(f"warning: {out} has too little room for that", file=sys.stderr)
    return tokens


def _skipped(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "0"


def _summarise(
    out: Path,
    splits: dict[str, tuple[list[Shard], int]],
    skipped: Counter[str],
    already: int,
    seconds: float,
) -> None:
    tokens = {split: sum(shard.tokens for shard in shards) for split, (shards, _) in splits.items()}
    separators = sum(count for _, count in splits.values())
    table = [("documents", f"{separators:,}"), ("skipped", _skipped(skipped))]
    table += [
        ("text tokens", f"{sum(tokens.values()) - separators:,}"),
        ("separators", f"{separators:,}"),
    ]
    table += [
        (split, f"{tokens[split]:,} tokens of {count:,} documents in {len(shards)} shards")
        for split, (shards, count) in splits.items()
    ]
    table += [
        ("time", f"{seconds:.1f} s, {(sum(tokens.values()) - already) / seconds:,.0f} tokens/s"),
        ("written to", str(out)),
    ]
    for label, value in table:
        print(f"{label:<12} {value}")


def _at_least(smallest: int):
    def parse(text: str) -> int:
        if (number := int(text)) < smallest:
            raise argparse.ArgumentTypeError(f"{number}, expected at least {smallest}")
        return number

    return parse


def main() -> None:
    """The command line of `prepare`."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.fineweb", description="Turn documents into token shards."
    )
    source_help = (
        "hub data set (owner/name or owner/name@revision), file or folder; may be repeated"
    )
    parser.add_argument(
        "--source", dest="sources", action="append", required=True, help=source_help
    )
    parser.add_argument("--name", help="configuration of the hub data set, e.g. sample-10BT")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--text-column",
        dest="column",
        default="text",
        help="field that holds the text (default: text)",
    )
    parser.add_argument(
        "--val-every",
        type=_at_least(2),
        default=100,
        help="one document in so many is for validation (default: 100)",
    )
    parser.add_argument(
        "--shard-tokens",
        type=_at_least(1),
        default=SHARD_TOKENS,
        help=f"tokens a shard (default: {SHARD_TOKENS})",
    )
    parser.add_argument(
        "--workers",
        type=_at_least(1),
        help="processes or threads that tokenise (default: one per core)",
    )
    parser.add_argument(
        "--no-fast",
        action="store_true",
        help="encode with tiktoken even where gigatoken is installed: the same ids, slower",
    )
    parser.add_argument("--limit", type=_at_least(1), help="stop after so many documents")
    options = vars(parser.parse_args())
    fast = None if options.pop("no_fast") else FastTokenizer()
    prepare(**options, fast=fast)


if __name__ == "__main__":
    exit_cleanly(main)
