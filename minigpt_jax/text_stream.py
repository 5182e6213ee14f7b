"""Turn a stream of token ids into pieces of text that can be shown as they come.

One token may be only a part of a character, and a stop string may extend over several tokens. So a
piece is given out only when no later token can change it.
"""

import codecs
from collections.abc import Sequence

from minigpt_jax.tokenizer import END_OF_TEXT, Tokenizer


class TextStream:
    """The text of one row. No piece ends inside a character or inside a possible stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        """`stop`: strings at which the text ends; they are not part of it."""
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        # The decoder keeps the bytes of an incomplete character, `_pending` the text that may
        # become a stop string.
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""
        self.stopped = False

    def push(self, ids: Sequence[int], final: bool = False) -> str:
        """The text that is complete with `ids`, up to a stop string; then `stopped` is True.

        Special tokens have no text. `final`: no more ids will come.
        """
        if self.stopped:
            return ""
        content = self._tokenizer.decode_bytes([id for id in ids if id < END_OF_TEXT])
        self._pending += self._utf8.decode(content, final)
        found = [self._pending.find(text) for text in self._stop if text in self._pending]
        self.stopped = bool(found)
        if found:
            end = min(found)
        elif final:
            end = len(self._pending)
        else:
            end = len(self._pending) - self._possible_stop_length()
        piece, self._pending = self._pending[:end], self._pending[end:]
        return piece

    def push_prompt(self, ids: Sequence[int], final: bool = False) -> str:
        """The text of ids before the first one that is pushed: it may contain stop strings.

        A character whose bytes `ids` do not complete comes with the ids that do.
        """
        content = self._tokenizer.decode_bytes([id for id in ids if id < END_OF_TEXT])
        return self._utf8.decode(content, final)

    def push_until_stop(self, ids: Sequence[int]) -> tuple[str, int]:
        """The text of `ids` up to a stop string, and how many of them were used for it.

        One id at a time, so that the last one used is the one that completed the string.
        """
        text = ""
        for used, id in enumerate(ids, start=1):
            text += self.push([id])
            if self.stopped:
                return text, used
        return text, len(ids)

    def _possible_stop_length(self) -> int:
        """Characters at the end of the pending text with which a stop string begins.

        The pending text is short, a stop string may be long: so the places in the text are tried,
        and not every beginning of every stop string.
        """
        longest = max(map(len, self._stop), default=0) - 1
        first = max(len(self._pending) - longest, 0)
        ends = (self._pending[start:] for start in range(first, len(self._pending)))
        return next((len(end) for end in ends if self._may_become_stop(end)), 0)

    def _may_become_stop(self, end: str) -> bool:
        return any(text.startswith(end) for text in self._stop)
