"""Encode text several times as fast where gigatoken is installed, and check its ids.

gigatoken is a package with a fast BPE tokenizer. It reads the same merge ranks as our tokenizer, so
it must return the same ids; `expect_equal` compares them. Every failure is raised as Unusable, and
the caller then continues with tiktoken.
"""

import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from minigpt_jax.tokenizer import RANKS, load_tokenizer

# gigatoken 0.10 keeps every word that it has seen in memory. A tokenizer that has encoded this many
# characters is therefore replaced by a new one.
RELOAD_CHARACTERS = 1_000_000_000
_SHOWN_CHARACTERS = 40


class Unusable(Exception):
    """gigatoken is missing, failed, or returned other ids than tiktoken; the text says which."""


class FastTokenizer:
    """gigatoken with the merge ranks in the file `ranks`, which has the format of tiktoken.

    Threads may share one. Every failure is raised as Unusable.
    """

    def __init__(self, ranks: Path = RANKS):
        self._ranks = ranks
        self._tokenizer: Any = None
        self._characters = 0
        self._lock = threading.Lock()

    def load(self) -> None:
        """Read the ranks now, which takes a tenth of a second, instead of in the first `encode`."""
        with _failures_as_unusable():
            self._load(0)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Lengths [n] int64 and ids [sum of lengths] uint16 of n texts."""
        with _failures_as_unusable():
            # The arrays that gigatoken returns: rows of different lengths.
            import awkward

            tokenizer = self._load(sum(map(len, texts)))
            # Not parallel: the caller has one thread for each core.
            try:
                rows = tokenizer.encode_batch(texts, parallel=False)
            except TypeError:
                # It refuses lone surrogates. tiktoken replaces them like this:
                valid = [
                    text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                    for text in texts
                ]
                rows = tokenizer.encode_batch(valid, parallel=False)
            lengths = np.asarray(awkward.num(rows))
            return lengths, np.asarray(awkward.flatten(rows)).astype(np.uint16)

    def _load(self, characters: int) -> Any:
        """The tokenizer that shall encode the next `characters`: the one in use, or a new one."""
        import gigatoken

        with self._lock:
            if self._tokenizer is None or self._characters >= RELOAD_CHARACTERS:
                # Without special tokens, because documents are data: "<|endoftext|>" in one of them
                # is encoded as ordinary text, as tokenizer.encode does it.
                self._tokenizer = gigatoken.Tokenizer.from_tiktoken(self._ranks, "gpt2", {})
                self._characters = 0
            self._characters += characters
            return self._tokenizer


def expect_equal(
    numbered_texts: Sequence[tuple[int, str]],
    lengths: np.ndarray,
    ids: np.ndarray,
    compared: Container[int],
) -> None:
    """Raises Unusable unless the texts whose numbers are `compared` have the ids of tiktoken.

    `ids` are those of all texts, one after the other, `lengths` how many each text has.
    """
    tokenizer = load_tokenizer()
    ends = np.cumsum(lengths)
    for (number, text), length, end in zip(numbered_texts, lengths, ends, strict=True):
        if number not in compared:
            continue
        if not np.array_equal(ids[end - length : end], tokenizer.encode_array(text)):
            raise Unusable(
                f"warning: gigatoken and tiktoken differ in document {number}, "
                f"which begins {text[:_SHOWN_CHARACTERS]!r}"
            )


@contextmanager
def _failures_as_unusable() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise Unusable(
            f"{error.name or 'gigatoken'} is not installed "
            "(`pip install gigatoken` makes this several times faster)"
        ) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # A panic of gigatoken's Rust code is a BaseException, but not an Exception.
        raise Unusable(f"warning: gigatoken failed ({error!r})") from error
