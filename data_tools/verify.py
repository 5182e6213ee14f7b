"""Verify a folder of token files that our tools wrote, or adopt one that was made elsewhere.

    python -m data_tools.verify data/fineweb_edu

Files made elsewhere must hold GPT-2 ids as one dimension of uint16, and have `train_` or `val_` in
their names, as build-nanogpt writes them (`edufineweb_train_000001.npy`). Training reads only files
that a manifest lists.
"""

from minigpt_jax.runtime.program import begin_program, exit_cleanly

if __name__ == "__main__":
    begin_program()  # before the imports below, which take time

import argparse
import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from data_tools.folder_lock import lock
from data_tools.packing import UNFINISHED
from data_tools.progress_bar import ProgressBar
from data_tools.resumable_shards import PROGRESS_FILE
from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import sha256, user_path
from minigpt_jax.shard_writer import write_manifest
from minigpt_jax.token_stream import (
    MANIFEST,
    Shard,
    expect_sha256,
    load_tokens,
    mask_file,
    open_stream,
    read_manifest,
)
from minigpt_jax.tokenizer import END_OF_TEXT, TEXT_VOCAB, load_tokenizer

# The shards of a split and its number of documents.
Split = tuple[list[Shard], int]

_SPLIT_IN_NAME = re.compile(r"(?:^|_)(train|val)_")
# Bytes that are hashed to estimate the time for all.
_SAMPLE_BYTES = 2**24


def adopt(folder: Path) -> dict[str, Split]:
    """Check every token of the `.npy` files in `folder` and write the manifest.

    Returns shards and number of documents of each split; a document begins with `<|endoftext|>`.
    Raises InputError for a file that is no token file, and when a split has none.
    """
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise InputError(f"{folder}: no .npy file in this folder")
    if masks := [path for path in paths if path.name.endswith(".mask.npy")]:
        raise InputError(
            f"{masks[0]}: a mask belongs to packed conversations, which are not adopted: "
            "prepare them again: python -m data_tools.instruct"
        )
    splits: dict[str, Split] = {"train": ([], 0), "val": ([], 0)}
    for path in _with_progress(paths):
        match = _SPLIT_IN_NAME.search(path.name)
        if match is None:
            raise InputError(
                f"{path}: expected a token file with train_ or val_ in its name: "
                "rename it or move it to another folder"
            )
        tokens = load_tokens(path, expected=None, vocab_size=TEXT_VOCAB)
        shards, documents = splits[match[1]]
        shards.append(Shard(path.name, len(tokens), sha256(path)))
        splits[match[1]] = (shards, documents + int(np.count_nonzero(tokens == END_OF_TEXT)))
    for split, (shards, _) in splits.items():
        if not shards:
            raise InputError(
                f"{folder}: no file of the {split} split: rename one to {split}_000000.npy"
            )
    write_manifest(
        folder,
        splits,
        tokenizer=load_tokenizer().hash,
        vocab_size=TEXT_VOCAB,
        context=None,
        source=f"{len(paths)} token files made elsewhere",
    )
    return splits


def verify(folder: Path) -> dict[str, Split]:
    """Check every byte of every file that the manifest of `folder` lists.

    Returns shards and number of documents of each split. Raises InputError naming the first file
    that is missing, malformed or changed.
    """
    manifest = read_manifest(folder)
    try:
        splits = {}
        for split, entry in manifest["splits"].items():
            shards = [Shard(**shard) for shard in entry["shards"]]
            splits[split] = (shards, entry["documents"])
        vocab_size = manifest["vocab_size"]
        context = manifest["context"] or 1
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / MANIFEST}: not a manifest of ours ({error!r}): prepare the data again"
        ) from None
    tokenizer = load_tokenizer().hash
    for split, (shards, _) in splits.items():
        open_stream(folder, split, tokenizer=tokenizer, vocab_size=vocab_size, context=context)
        expected = {folder / shard.file: shard.sha256 for shard in shards}
        for shard in shards:
            if shard.mask_sha256 is not None:
                expected[folder / mask_file(shard.file)] = shard.mask_sha256
        for path in _with_progress(list(expected)):
            expect_sha256(path, expected[path])
    return splits


def _with_progress(paths: list[Path]) -> Iterator[Path]:
    """The paths, one by one, after an estimate and with a progress bar."""
    sizes = {path: path.stat().st_size for path in paths}
    total = sum(sizes.values())
    sample = bytes(_SAMPLE_BYTES)
    started = time.monotonic()
    hashlib.sha256(sample)
    seconds = (time.monotonic() - started) * total / _SAMPLE_BYTES
    print(
        f"{len(paths)} files of {total / 1e6:,.1f} MB to read: "
        f"about {seconds:.0f} s and the time of the disk"
    )
    token_bytes = np.dtype(np.uint16).itemsize
    with ProgressBar("tok", total=total // token_bytes) as bar:
        for path in paths:
            yield path
            bar.advance(sizes[path] // token_bytes)


def main() -> None:
    """The command line: verify where there is a manifest, adopt where there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.verify",
        description="Verify a folder of token shards, or adopt one made elsewhere.",
    )
    parser.add_argument("folder", type=user_path, help="folder of .npy token files")
    folder = parser.parse_args().folder
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    has_manifest = (folder / MANIFEST).exists()
    # What has a manifest is only read, by any number of commands.
    with nullcontext() if has_manifest else lock(folder):
        is_unfinished = any((folder / name).exists() for name in (PROGRESS_FILE, UNFINISHED))
        if is_unfinished and not has_manifest:
            raise InputError(
                f"{folder}: its preparation was interrupted: run the command that began it again"
            )
        splits = verify(folder) if has_manifest else adopt(folder)
    for split, (shards, documents) in splits.items():
        tokens = sum(shard.tokens for shard in shards)
        print(f"{split:<6} {tokens:>15,} tokens of {documents:,} documents in {len(shards)} shards")
    if has_manifest:
        print(f"{folder}: every file is as {MANIFEST} says")
    else:
        print(f"{folder}: adopted, {MANIFEST} written")


if __name__ == "__main__":
    exit_cleanly(main)
