"""Tokenise documents on all cores, in order, always with the ids of tiktoken.

gigatoken encodes in threads of this process, tiktoken in processes of its own. When gigatoken fails
or gives other ids, tiktoken continues with the first batch that was not returned yet.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from data_tools.fast_tokenizer import FastTokenizer, Unusable, expect_equal
from data_tools.worker_processes import WorkerProcesses
from minigpt_jax.tokenizer import END_OF_TEXT, load_tokenizer

# (number, text) of some documents.
Batch = list[tuple[int, str]]

# A fraction of a second of work: far more than it costs to send a batch to another process, and to
# wait for Python's lock in a thread.
BATCH_CHARACTERS = 2_000_000
# Batches that wait in memory, for each worker.
QUEUED_BATCHES = 3
# Documents that both tokenizers encode: the first of a run, then one in so many.
COMPARED_FIRST = 20
COMPARED_EVERY = 1_000


@dataclass(frozen=True)
class Encoded:
    """The tokens of a batch of n documents, each with <|endoftext|> before it.

    Document i has number `numbers[i]` and the uint16 ids `tokens[bounds[i] : bounds[i + 1]]`.
    `seconds` is the time that encoding took.
    """

    numbers: np.ndarray
    bounds: np.ndarray
    tokens: np.ndarray
    seconds: float


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_batches(numbered: Iterable[tuple[int, str]]) -> Iterator[Batch]:
    """Neighbouring documents together, in batches of about BATCH_CHARACTERS."""
    batch = []
    size = 0
    for number, text in numbered:
        batch.append((number, text))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def encode_all(
    batches: Iterator[Batch], workers: int, fast_tokenizer: FastTokenizer | None
) -> Generator[Encoded]:
    """The encoded batches in order.

    `workers` threads encode with `fast_tokenizer`, or as many processes with tiktoken. Prints one
    line when tiktoken has to replace `fast_tokenizer`. Raises BrokenProcessPool when a process was
    killed.
    """
    pending = _Pending(QUEUED_BATCHES * workers)
    if fast_tokenizer is not None and (first := next(batches, None)):
        start = first[0][0]
        try:
            with _shut_down(ThreadPoolExecutor(workers)) as pool:
                encode = partial(_encode_fast, fast_tokenizer, start)
                yield from pending.results(pool, encode, chain([first], batches))
        except Unusable as reason:
            print(_explain_change(reason, start, pending.first_number()), flush=True)
    batches = chain(pending.take_batches(), batches)
    processes = WorkerProcesses(encode_batch)
    with _shut_down(ThreadPoolExecutor(workers)) as pool:
        try:
            yield from pending.results(pool, processes.call, batches)
        finally:
            processes.end()


class _Pending:
    """Batches given to a pool, oldest first; at most `size` wait in memory."""

    def __init__(self, size: int):
        self._size = size
        self._batches: deque[tuple[Batch, Future[Encoded]]] = deque()

    def results(
        self, pool: Executor, encode: Callable[[Batch], Encoded], batches: Iterable[Batch]
    ) -> Iterator[Encoded]:
        """Results in the order of `batches`."""
        for batch in batches:
            self._batches.append((batch, pool.submit(encode, batch)))
            if len(self._batches) > self._size:
                yield self._oldest()
        while self._batches:
            yield self._oldest()

    def first_number(self) -> int:
        """The number of the first document without a result."""
        return self._batches[0][0][0][0]

    def take_batches(self) -> list[Batch]:
        """Remove and return the batches without a result."""
        batches = [batch for batch, _ in self._batches]
        self._batches.clear()
        return batches

    def _oldest(self) -> Encoded:
        # A batch whose encoding fails is not removed: another encoder will have to do it.
        encoded = self._batches[0][1].result()
        self._batches.popleft()
        return encoded


@contextmanager
def _shut_down(pool: Executor) -> Iterator[Executor]:
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _explain_change(reason: Unusable, start: int, number: int) -> str:
    """Say that tiktoken encodes from document `number` on, in a run that began with `start`."""
    line = f"{reason}: tiktoken encodes from document {number} on"
    if number > start:
        line += (
            f"; only samples of the {number - start:,} documents before it were compared: "
            "to be sure of them, start again with --no-fast"
        )
    return line


def encode_batch(batch: Batch) -> Encoded:
    """The tokens of a batch by tiktoken, in this process."""
    tokenizer = load_tokenizer()
    started = time.perf_counter()
    parts = [tokenizer.encode_array(text) for _, text in batch]
    lengths = np.array([len(part) for part in parts])
    return _with_separators(batch, lengths, np.concatenate(parts), started)


def _encode_fast(fast_tokenizer: FastTokenizer, start: int, batch: Batch) -> Encoded:
    """As `encode_batch`, in a run that began with document `start`. Raises Unusable."""
    fast_tokenizer.load()
    started = time.perf_counter()
    lengths, ids = fast_tokenizer.encode([text for _, text in batch])
    encoded = _with_separators(batch, lengths, ids, started)
    compared = {number for number, _ in batch if _is_compared(number, start)}
    expect_equal(batch, lengths, ids, compared)
    return encoded


def _is_compared(number: int, start: int) -> bool:
    return number < start + COMPARED_FIRST or number % COMPARED_EVERY == COMPARED_EVERY - 1


def _with_separators(batch: Batch, lengths: np.ndarray, ids: np.ndarray, started: float) -> Encoded:
    numbers = np.array([number for number, _ in batch])
    tokens = np.insert(ids, np.cumsum(lengths) - lengths, END_OF_TEXT)
    bounds = np.insert(np.cumsum(lengths + 1), 0, 0)
    return Encoded(numbers, bounds, tokens, time.perf_counter() - started)
