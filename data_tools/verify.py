"""Vouch for a folder of token files: adopt one that was made elsewhere, verify one of ours.

    python -m data_tools.index data/fineweb_edu

Files made elsewhere need GPT-2 ids as one dimension of uint16, and `train_` or `val_` in their names, as build-nanogpt
writes them (`edufineweb_val_000000.npy`, `edufineweb_train_000001.npy`). Training reads only what a manifest lists.
"""

import argparse
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minigpt_jax.errors import InputError, exit_cleanly
from minigpt_jax.runtime.files import sha256
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

_SPLIT_IN_NAME = re.compile(r"(?:^|_)(train|val)_")


def adopt(folder: Path) -> dict[str, tuple[list[Shard], int]]:
    """Check every token of the `.npy` files in `folder`, write the manifest; returns (shards, documents) of each split.

    A document begins with `<|endoftext|>`. Raises InputError for a file that is no token file, and when a split has none.
    """
    paths = sorted(folder.glob("*.npy"))
    if not paths:
        raise InputError(f"{folder}: no .npy file in this folder")
    splits: dict[str, tuple[list[Shard], int]] = {"train": ([], 0), "val": ([], 0)}
    for path in _progress(paths):
        match = _SPLIT_IN_NAME.search(path.name)
        if match is None or path.name.endswith(".mask.npy"):
            raise InputError(
                f"{path}: expected a token file with train_ or val_ in its name: rename it or move it away"
            )
        tokens = load_tokens(path, expected=None, vocab_size=TEXT_VOCAB)
        shards, documents = splits[match[1]]
        shards.append(Shard(path.name, len(tokens), sha256(path)))
        splits[match[1]] = shards, documents + int(np.count_nonzero(tokens == END_OF_TEXT))
    for split, (shards, _) in splits.items():
        if not shards:
            raise InputError(
                f"{folder}: no file of the {split} split: rename one to {split}_000000.npy"
            )
    source = f"{len(paths)} token files made elsewhere"
    write_manifest(
        folder,
        splits,
        tokenizer=load_tokenizer().hash,
        vocab_size=TEXT_VOCAB,
        context=None,
        source=source,
    )
    return splits


def verify(folder: Path) -> dict[str, tuple[list[Shard], int]]:
    """Check every file that the manifest of `folder` lists, to the last byte; returns (shards, documents) of each split.

    Raises InputError naming the first file that is missing, malformed or changed.
    """
    manifest = read_manifest(folder)
    try:
        splits = {
            split: ([Shard(**shard) for shard in entry["shards"]], entry["documents"])
            for split, entry in manifest["splits"].items()
        }
        vocab_size, context = manifest["vocab_size"], manifest["context"] or 1
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / MANIFEST}: not a manifest of ours ({error!r}): prepare the data again"
        ) from None
    for split, (shards, _) in splits.items():
        open_stream(
            folder, split, tokenizer=load_tokenizer().hash, vocab_size=vocab_size, context=context
        )
        expected = {folder / shard.file: shard.sha256 for shard in shards}
        expected |= {
            folder / mask_file(shard.file): shard.mask_sha256
            for shard in shards
            if shard.mask_sha256 is not None
        }
        for path in _progress(list(expected)):
            expect_sha256(path, expected[path])
    return splits


def _progress(paths: list[Path]) -> Iterator[Path]:
    """Pass the files on after an estimate, with a bar where a terminal shows it: tokens/s and the time to go."""
    sizes = {path: path.stat().st_size // np.dtype(np.uint16).itemsize for path in paths}
    total, sample = sum(sizes.values()), bytes(2**24)
    began = time.monotonic()
    hashlib.sha256(sample)
    seconds = (time.monotonic() - began) * 2 * total / len(sample)
    print(
        f"{len(paths)} files of {2 * total / 1e6:,.1f} MB to read: about {seconds:.0f} s and what the disk takes"
    )
    with tqdm(total=total, unit="tok", unit_scale=True, disable=None) as bar:
        for path in paths:
            yield path
            bar.update(sizes[path])


def main() -> None:
    """The command line: verify where there is a manifest, adopt where there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.index",
        description="Verify a folder of token shards, or adopt one made elsewhere.",
    )
    parser.add_argument("folder", type=Path, help="folder of .npy token files")
    folder = parser.parse_args().folder
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if (folder / "progress.json").exists() and not (folder / MANIFEST).exists():
        raise InputError(
            f"{folder}: its preparation was interrupted: run the command that began it again"
        )
    known = (folder / MANIFEST).exists()
    splits = verify(folder) if known else adopt(folder)
    for split, (shards, documents) in splits.items():
        print(
            f"{split:<6} {sum(s.tokens for s in shards):>15,} tokens of {documents:,} documents in {len(shards)} shards"
        )
    print(
        f"{folder}: every file is as {MANIFEST} says"
        if known
        else f"{folder}: adopted, {MANIFEST} written"
    )


if __name__ == "__main__":
    exit_cleanly(main)
