"""Write the shards of both splits so that a killed preparation can continue where it stopped.

The file progress.json in the folder records which shards are complete and the document and token at
which they end. The manifest replaces it when everything is written.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_tools.encoders import Encoded
from minigpt_jax.errors import InputError, RunError, os_error_text
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.runtime.files import sha256, shell_word, write_json
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.token_stream import MANIFEST, Shard, read_manifest
from minigpt_jax.tokenizer import TEXT_VOCAB, load_tokenizer

PROGRESS_FILE = "progress.json"
SPLITS = ("train", "val")
CONTINUE_MESSAGE = "complete shards are kept, and the same command continues after them"


@dataclass(frozen=True)
class SplitProgress:
    """The complete shards of a split.

    They hold all documents of the split whose number is below `document`, and the first `offset`
    tokens of `document` itself.
    """

    shards: tuple[Shard, ...] = ()
    # -1 is below every number: the shards hold no document yet.
    document: int = -1
    offset: int = 0


def split_of(number: int, val_every: int) -> str:
    """The split of document `number`: one document in `val_every` is held out for validation."""
    return "val" if number % val_every == 0 else "train"


class ResumableShards:
    """Writes the shards of a folder, from the first document that complete shards do not hold.

    `source` describes the text and the settings in one line. A folder whose complete shards have
    another `source` is refused, except for `earlier_source`, the line of version 0.1.0; then
    `is_earlier` is true.
    Raises InputError for a folder that cannot be continued, RunError for a full disk.
    """

    def __init__(
        self,
        out: Path,
        source: str,
        *,
        earlier_source: str | None = None,
        val_every: int,
        shard_tokens: int,
    ):
        self._out = out
        self._source = source
        self._val_every = val_every
        found, self._progress = _load(out, source, earlier_source)
        with _disk_errors_explained(out):
            out.mkdir(parents=True, exist_ok=True)
            for unfinished in out.glob("*.tmp"):
                unfinished.unlink()
            # Before the first shard, because `_load` refuses shards without a progress file.
            self._save()
        self._writers = {
            split: ShardWriter(out, split, shard_tokens, shards=progress.shards)
            for split, progress in self._progress.items()
        }
        self.tokens_found = sum(s.tokens for p in self._progress.values() for s in p.shards)
        self.is_earlier = bool(self.tokens_found) and found != source

    def is_missing(self, number: int) -> bool:
        """Whether complete shards lack document `number`, or a part of it."""
        return number >= self._progress[split_of(number, self._val_every)].document

    def append(self, encoded: Encoded) -> None:
        """Add each document of a batch to its split, and record every shard that becomes complete.

        Raises RunError for a full disk.
        """
        # Consecutive documents of the same split are written in one call.
        held_out = encoded.numbers % self._val_every == 0
        changes = np.flatnonzero(held_out[1:] != held_out[:-1]) + 1
        with _disk_errors_explained(self._out):
            for first, last in pairwise([0, *changes.tolist(), len(encoded.numbers)]):
                self._append_to_split(encoded, first, last)

    def finish(self, documents: dict[str, int]) -> dict[str, list[Shard]]:
        """Write the last shards and the manifest; returns the shards of every split.

        `documents` gives the number of documents in each split. Raises RunError for a full disk.
        """
        with _disk_errors_explained(self._out):
            shards = {split: writer.close() for split, writer in self._writers.items()}
            failpoint("before_manifest")
            write_manifest(
                self._out,
                {split: (shards[split], documents[split]) for split in shards},
                tokenizer=load_tokenizer().hash,
                vocab_size=TEXT_VOCAB,
                context=None,
                source=self._source,
            )
            failpoint("after_manifest")
            (self._out / PROGRESS_FILE).unlink()
        return shards

    def _append_to_split(self, encoded: Encoded, first: int, last: int) -> None:
        """Add the documents at indices `first` to `last` (exclusive), all of the same split."""
        bounds = encoded.bounds
        split = split_of(int(encoded.numbers[first]), self._val_every)
        writer = self._writers[split]
        progress = self._progress[split]
        position = int(bounds[first])
        if encoded.numbers[first] == progress.document:
            # An earlier process wrote the beginning of this document.
            position += progress.offset
        stop = int(bounds[last])
        while position < stop:
            shards_before = len(writer.shards)
            end = min(stop, position + writer.shard_tokens - writer.buffered)
            writer.append(encoded.tokens[position:end])
            position = end
            if len(writer.shards) > shards_before:
                # The index of the document in which, or with which, the shard ends.
                cut = int(np.searchsorted(bounds, position)) - 1
                self._progress[split] = SplitProgress(
                    tuple(writer.shards), int(encoded.numbers[cut]), position - int(bounds[cut])
                )
                failpoint("before_progress", len(writer.shards))
                self._save()

    def _save(self) -> None:
        splits = {split: asdict(progress) for split, progress in self._progress.items()}
        write_json(self._out / PROGRESS_FILE, {"source": self._source, "splits": splits})


def unfinished_source(out: Path) -> str | None:
    """The source of the unfinished preparation in `out`; None where nothing was prepared there.

    Raises InputError for shards of unknown origin and for a damaged progress file.
    """
    path = out / PROGRESS_FILE
    if path.exists():
        return _parse(path)[0]
    if any(out.glob("*.npy")):
        raise InputError(
            f"{out}: holds .npy files of unknown origin: choose another --out, "
            f"or adopt them: python -m data_tools.verify {shell_word(out)}"
        )
    return None


def done_source(out: Path, source: str, earlier: str | None = None) -> str | None:
    """The source of the finished preparation in `out`, after saying that it is done; else None.

    Raises InputError where `out` holds something else.
    """
    if not (out / MANIFEST).exists():
        return None
    found = read_manifest(out).get("source")
    expect_same_source(out, found, source, earlier or source)
    # A process that was killed right after it wrote the manifest leaves this file behind.
    (out / PROGRESS_FILE).unlink(missing_ok=True)
    print(
        f"{out}: done before, from the same text; "
        f"to check its files: python -m data_tools.verify {shell_word(out)}"
    )
    return found


def expect_same_source(out: Path, found: str | None, source: str, earlier: str | None) -> None:
    """Raises InputError for a folder that was made from other text or with other settings.

    `earlier` is the line that version 0.1.0 recorded for this `source`.
    """
    if found not in (source, earlier):
        is_edited = _without_content(found or "") == _without_content(source)
        edited = "; the text has changed, or the names of its files" if is_edited else ""
        raise InputError(
            f"{out}: holds data made from [{found}], now requested is [{source}]{edited}: "
            "choose another --out, or delete it"
        )


def _without_content(source: str) -> str:
    return re.sub(r"\d+ bytes, content [0-9a-f]+", "", source)


@contextmanager
def _disk_errors_explained(out: Path) -> Iterator[None]:
    """Turn an OSError into a RunError that says how to continue."""
    try:
        yield
    except OSError as error:
        # numpy reports an incomplete write without an error number.
        reason = os_error_text(error) if error.errno else f"disk full? ({error}): free space"
        raise RunError(f"{out}: {reason}; {CONTINUE_MESSAGE}") from None


def _load(
    out: Path, source: str, earlier_source: str | None
) -> tuple[str | None, dict[str, SplitProgress]]:
    """The source and the progress of an earlier process, with its shards checked."""
    if unfinished_source(out) is None:
        return None, {split: SplitProgress() for split in SPLITS}
    found, progress = _parse(out / PROGRESS_FILE)
    shards = [shard for split in progress.values() for shard in split.shards]
    # A folder without complete shards holds nothing of another source.
    if shards:
        expect_same_source(out, found, source, earlier_source)
    for shard in shards:
        file = out / shard.file
        if not file.is_file() or sha256(file) != shard.sha256:
            raise InputError(
                f"{file}: missing or changed since it was written: delete {out} and run again"
            )
    return found, progress


def _parse(path: Path) -> tuple[str, dict[str, SplitProgress]]:
    """Source and progress of a file that `ResumableShards` wrote."""
    try:
        content = json.loads(path.read_text())
        progress = {}
        for split in SPLITS:
            entry = content["splits"][split]
            shards = tuple(Shard(**shard) for shard in entry["shards"])
            progress[split] = SplitProgress(shards, entry["document"], entry["offset"])
        return content["source"], progress
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a progress file of data_tools.fineweb ({error!r}): "
            f"delete {path.parent} and run again"
        ) from None
