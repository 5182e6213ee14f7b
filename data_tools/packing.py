"""Pack conversations into rows of the model's context, and write the rows as shards with masks.

No conversation crosses the border of a row. Rows are filled up with <|endoftext|> of weight 0.
"""

import shutil
from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_tools.conversations import Conversation
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.shard_writer import ShardWriter, write_manifest
from minigpt_jax.token_stream import MANIFEST, Shard, mask_file
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT, Tokenizer

# The folder, within that of the data, in which new data are written until they are complete. Where
# it exists and no manifest does, a run was killed, and its files may be replaced.
UNFINISHED = "packing.unfinished"


def pack(lengths: Sequence[int], context: int) -> list[list[int]]:
    """The rows: each is a list of indices into `lengths`, whose lengths sum to at most `context`.

    The longest conversation is placed first, each into the row with the least sufficient space
    (best-fit decreasing). Rows are sorted by the number of their longest conversation, so that
    short conversations are spread over the whole stream.
    """
    rows: list[list[int]] = []
    # (free tokens, row), sorted: the first pair that is large enough fits best.
    spaces: list[tuple[int, int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        best = bisect_left(spaces, (lengths[number], 0))
        if best < len(spaces):
            space, row = spaces.pop(best)
        else:
            space = context
            row = len(rows)
            rows.append([])
        rows[row].append(number)
        if space > lengths[number]:
            insort(spaces, (space - lengths[number], row))
    # Every row begins with its longest conversation, so its number decides.
    return sorted(rows)


def write_packed(
    folder: Path,
    splits: dict[str, list[Conversation]],
    context: int,
    tokenizer: Tokenizer,
    source: str,
) -> dict[str, int]:
    """Replace the data in `folder` by packed conversations; returns the rows of every split.

    Old data are kept until the new ones are complete. Then the old manifest is deleted first and
    the new one moved last: a folder without a manifest is unfinished. Raises RunError when `folder`
    cannot be written.
    """
    new = folder / UNFINISHED
    # (shards, number of conversations) of each split.
    shards: dict[str, tuple[list[Shard], int]] = {}
    counts: dict[str, int] = {}
    try:
        new.mkdir(parents=True, exist_ok=True)
        for path in new.iterdir():
            path.unlink()
        try:
            for split, conversations in splits.items():
                rows = pack([len(c.tokens) for c in conversations], context)
                writer = ShardWriter(new, split, masked=True)
                for row in rows:
                    writer.append(*_padded([conversations[number] for number in row], context))
                # The last token of the last row needs a target.
                writer.append(*_padded([], 1))
                shards[split] = (writer.close(), len(conversations))
                counts[split] = len(rows)
            write_manifest(
                new,
                shards,
                tokenizer=tokenizer.hash,
                vocab_size=CHAT_VOCAB,
                context=context,
                source=source,
            )
        except OSError:
            # Beside files that a killed run left, this folder is what tells that they are.
            if (folder / MANIFEST).exists() or not any(folder.glob("*.npy")):
                shutil.rmtree(new, ignore_errors=True)
            raise
        _replace(folder, new)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}): correct this, for example "
            "by freeing space, and run the same command again"
        ) from None
    return counts


def expect_free(folder: Path, overwrite: bool) -> None:
    """Raises InputError where writing to `folder` would destroy data.

    Unfinished data of a killed run may be replaced; other data only with `overwrite`.
    """
    if (folder / MANIFEST).exists() and not overwrite:
        raise InputError(
            f"{folder}: holds prepared data: choose another folder, or replace it with --overwrite"
        )
    if not overwrite and not (folder / UNFINISHED).exists() and any(folder.glob("*.npy")):
        raise InputError(
            f"{folder}: holds .npy files but no {MANIFEST}, so it is not known what they are: "
            "choose another folder, delete them, or replace them with --overwrite"
        )
    for path in folder.glob("*.npy"):
        # write_packed writes the mask of a shard before its tokens: tokens alone are not from it.
        if not path.name.endswith(".mask.npy") and not (folder / mask_file(path.name)).exists():
            raise InputError(
                f"{path}: a token file without a mask, not from this tool: choose another folder"
            )


def _replace(folder: Path, new: Path) -> None:
    """Delete the data in `folder` and move those of its folder `new` to their place."""
    _clear(folder)
    masks = set(new.glob("*.mask.npy"))
    tokens = set(new.glob("*.npy")) - masks
    for path in (*masks, *tokens, new / MANIFEST):
        path.replace(folder / path.name)
    new.rmdir()


def _clear(folder: Path) -> None:
    masks = set(folder.glob("*.mask.npy"))
    tokens = set(folder.glob("*.npy")) - masks
    # Masks after tokens: a kill must not leave tokens without a mask, which expect_free refuses.
    for path in (folder / MANIFEST, *tokens, *masks, *folder.glob("*.tmp")):
        path.unlink(missing_ok=True)


def _padded(conversations: Sequence[Conversation], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [length] and mask [length] of one row."""
    tokens = np.full(length, END_OF_TEXT, np.uint16)
    mask = np.zeros(length, np.uint8)
    start = 0
    for conversation in conversations:
        stop = start + len(conversation.tokens)
        tokens[start:stop] = conversation.tokens
        mask[start:stop] = conversation.mask
        start = stop
    return tokens, mask
