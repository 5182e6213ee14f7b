"""Tell before training that a split is too short for a row, and the --val-every that would do."""

import numpy as np

from data_tools.encoders import Encoded
from data_tools.resumable_shards import SPLITS
from minigpt_jax.token_stream import Shard

# A row of GPT-2's context, and the target of its last token.
NEEDED = 1024 + 1


class SplitLengths:
    """The lengths of the documents, as long as a split is too short."""

    def __init__(self, val_every: int):
        self._val_every = val_every
        self._tokens = dict.fromkeys(SPLITS, 0)
        self._lengths: list[np.ndarray] = []

    def add(self, encoded: Encoded) -> None:
        """Add the documents of a batch."""
        if min(self._tokens.values()) >= NEEDED:
            # There will be nothing to say.
            self._lengths = []
            return
        lengths = np.diff(encoded.bounds)
        held_out = encoded.numbers % self._val_every == 0
        self._tokens["val"] += int(lengths[held_out].sum())
        self._tokens["train"] += int(lengths[~held_out].sum())
        self._lengths.append(lengths)

    def advice(self, shards: dict[str, list[Shard]], *, is_whole: bool) -> str | None:
        """What to do about a short split, in one line; None where both are long enough.

        `is_whole` tells that every document was added and may belong to either split.
        """
        tokens = {name: sum(shard.tokens for shard in split) for name, split in shards.items()}
        shortest = min(tokens, key=lambda name: tokens[name])
        if tokens[shortest] >= NEEDED:
            return None
        found = (
            f"the {shortest} split has {tokens[shortest]:,} tokens, "
            f"enough for model.context up to {tokens[shortest] - 1:,}"
        )
        total = sum(tokens.values())
        if is_whole and self._lengths:
            every, least = _best_interval(np.concatenate(self._lengths))
            words = "at least"
        else:
            every = max(2, total // (2 * NEEDED))
            least = total // every
            words = "about"
        if least <= tokens[shortest]:
            return f"{found}: provide more text"
        return (
            f"{found}: --val-every {every} would give {words} {least:,} to both splits "
            "(in another --out, or after deleting this one)"
        )


def _best_interval(lengths: np.ndarray) -> tuple[int, int]:
    """The largest --val-every with enough tokens in both splits, or else the best; its tokens."""
    total = int(lengths.sum())
    best = (2, 0)
    for every in range(max(2, len(lengths)), 1, -1):
        val = int(lengths[::every].sum())
        least = min(val, total - val)
        if least >= NEEDED:
            return every, least
        if least > best[1]:
            best = (every, least)
    return best
