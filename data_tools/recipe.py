"""What decides the bytes of token shards: the sources and the settings of a preparation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

from minigpt_jax.errors import InputError
from minigpt_jax.shard_writer import SHARD_TOKENS
from minigpt_jax.sources import (
    BadRow,
    count_files,
    documents,
    earlier_identity,
    find,
    identity,
    read_as_earlier,
    text_bytes,
)
from minigpt_jax.tokenizer import load_tokenizer

# Characters without any blank, as in Chinese, that may be cut anywhere.
_UNBROKEN = 20


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of the shards.

    `name` is the configuration of a Hub data set, `column` the field that holds the text. Every
    `val_every`th document is for validation. Only the first `limit` documents are used; None: all.
    """

    sources: Sequence[str]
    name: str | None = None
    column: str = "text"
    val_every: int = 100
    shard_tokens: int = SHARD_TOKENS
    limit: int | None = None

    def describe(self) -> str:
        """The recipe in one line. Raises InputError for a source that does not exist."""
        return self.describe_as([identity(source, name=self.name) for source in self.sources])

    def describe_earlier(self) -> str:
        """The line that version 0.1.0 recorded, without the content of local files."""
        return self.describe_as(
            [
                earlier_identity(source) if find(source) else identity(source, name=self.name)
                for source in self.sources
            ]
        )

    def is_read_as_earlier(self) -> bool:
        """Whether version 0.1.0 read the same files."""
        return all(read_as_earlier(source) for source in self.sources)

    def describe_as(self, identities: list[str]) -> str:
        """The line of `describe`, where the sources are described by `identities`."""
        parts = [
            *identities,
            f"column {self.column}",
            f"1 document in {self.val_every} to val",
            f"{self.shard_tokens} tokens a shard",
            f"tokenizer {load_tokenizer().hash[:12]}",
        ]
        if self.limit:
            parts.append(f"the first {self.limit} documents")
        return "; ".join(parts)

    def count_files(self) -> list[int]:
        """The number of files of each source. Raises InputError and RunError."""
        return [count_files(source, name=self.name) for source in self.sources]

    def read_documents(self, files: Sequence[range] | None = None) -> Iterator[str | BadRow]:
        """The text of every row of all sources, or a BadRow. Raises InputError and RunError.

        `files` are the numbers of the files to read of each source; None: all.
        """
        return chain.from_iterable(
            documents(source, name=self.name, column=self.column, files=numbers)
            for source, numbers in zip(self.sources, files or repeat(None), strict=False)
        )

    def estimate_bytes(self) -> int | None:
        """About how many bytes of text there are, None if unknown."""
        if self.limit:
            # How long the first documents are is not known before they are read.
            return None
        sizes = [text_bytes(source, name=self.name, column=self.column) for source in self.sources]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None


def expect_outside_sources(folder: Path, option: str, sources: Sequence[str]) -> None:
    """Raises InputError for a folder, of this option, whose files would be read as documents."""
    above = {folder.resolve(), *folder.resolve().parents}
    for source in sources:
        found = find(source)
        if found is not None and {*found.folders, Path(source).resolve()} & above:
            raise InputError(f"{option} {folder} lies within --source {source}: choose another")


def cut_end(text: str, val_every: int) -> tuple[str, str] | None:
    """The end of a text, about 1 / `val_every` of it, and what comes before.

    It begins with a paragraph, a line or a word. None for a text that is too short for two parts.
    """
    length = len(text) // val_every
    target = len(text) - length
    for mark in ("\n\n", "\n", " "):
        if (found := text.rfind(mark, target - length, target)) >= 0:
            target = found + len(mark)
            break
    else:
        if length < _UNBROKEN:
            return None
    end, start = text[target:], text[:target]
    return (end, start) if end.strip() and start.strip() else None
