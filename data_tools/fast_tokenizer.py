"""Encode text several times as fast where the package gigatoken is installed, and never take its word for it.

gigatoken gets the ranks of our own tokenizer and must give the ids of our own tokenizer: `expect_equal` looks whether it
does. Whatever goes wrong is one exception, so that a caller has one thing to do: go on with tiktoken.
"""

import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minigpt_jax.tokenizer import RANKS, load_tokenizer

_FRESH_AFTER = 1_000_000_000  # characters, then a new one: gigatoken 0.10 remembers every word that it met, for ever


class Unusable(Exception):
    """gigatoken is missing, broke down, or gave other ids than tiktoken; the text says which, in words for the user."""


class FastTokenizer:
    """gigatoken over a table of ranks; any number of threads may use one, and learn words together. What goes wrong is raised as Unusable."""

    def __init__(self, ranks: Path = RANKS):
        self._ranks = ranks
        self._tokenizer, self._characters, self._loading = None, 0, threading.Lock()

    def load(self) -> None:
        """Read the ranks, unless that was done: a tenth of a second, which `encode` would take otherwise."""
        with _explained():
            self._loaded()

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Lengths [n] int64 and ids [sum of lengths] uint16 of n >= 1 texts, as of Tokenizer.encode."""
        with _explained():
            import awkward

            tokenizer = self._loaded(sum(map(len, texts)))
            try:
                rows = tokenizer.encode_batch(texts, parallel=False)
            except TypeError:  # its way to refuse lone surrogates; tiktoken replaces them, thus
                valid = [
                    text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                    for text in texts
                ]
                rows = tokenizer.encode_batch(valid, parallel=False)
            return np.asarray(awkward.num(rows)), np.asarray(awkward.flatten(rows)).astype(
                np.uint16
            )

    def _loaded(self, characters: int = 0):
        """A tokenizer that will be given so many `characters`."""
        import gigatoken

        with self._loading:
            if self._tokenizer is None or self._characters >= _FRESH_AFTER:
                # No special tokens: what looks like one in a text is text.
                self._tokenizer, self._characters = (
                    gigatoken.Tokenizer.from_tiktoken(self._ranks, "gpt2", {}),
                    0,
                )
            self._characters += characters
            return self._tokenizer


def expect_equal(
    numbered: Sequence[tuple[int, str]],
    lengths: np.ndarray,
    ids: np.ndarray,
    numbers: Container[int],
) -> None:
    """Raises Unusable unless `ids`, of `lengths`, are tiktoken's for those of the numbered texts whose numbers are given."""
    tokenizer = load_tokenizer()
    for (number, text), length, end in zip(numbered, lengths, np.cumsum(lengths), strict=True):
        if number in numbers and not np.array_equal(
            ids[end - length : end], tokenizer.encode_array(text)
        ):
            raise Unusable(
                f"warning: gigatoken and tiktoken differ in document {number}, which begins {text[:40]!r}"
            )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise Unusable(
            "gigatoken is not installed (`pip install gigatoken` makes this several times faster)"
        ) from None
    except BaseException as error:  # a panic of its Rust code is no Exception
        raise Unusable(f"warning: gigatoken failed ({error!r})") from error
