"""The GPT-2 byte-pair encoding without a network: tiktoken over the ranks that ship with the package.

Text becomes ids 0..50255 and nothing else. The ids above are structure, and only code can write them:
50256 separates documents, 50257..50260 mark the turns of a conversation (see chat.py).
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import tiktoken

from minigpt_jax.errors import InputError

END_OF_TEXT, USER, ASSISTANT, SYSTEM, END = 50256, 50257, 50258, 50259, 50260
SPECIAL_TOKENS = {
    "<|endoftext|>": END_OF_TEXT,
    "<|user|>": USER,
    "<|assistant|>": ASSISTANT,
    "<|system|>": SYSTEM,
    "<|end|>": END,
}
TEXT_VOCAB = 50257  # pretraining and imported GPT-2 weights: text and the document separator
CHAT_VOCAB = 50261  # finetuning: the role markers too

RANKS = Path(
    str(files("minigpt_jax") / "assets" / "gpt2.tiktoken")
)  # "bytes in base64, rank" a line
_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# How GPT-2 cuts text before merging bytes: contractions, words, numbers, punctuation, blanks.
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Tokenizer:
    """Encode and decode. `hash` (hex) names vocabulary and reserved ids, so that files made for another are refused."""

    def __init__(self, encoding: tiktoken.Encoding, hash: str):
        self._encoding = encoding
        self.hash = hash

    def encode(self, text: str) -> list[int]:
        """Ids 0..50255 of `text`. Marker strings in it stay plain text; lone surrogates become U+FFFD."""
        return self._encoding.encode_ordinary(text)

    def encode_document(self, text: str) -> list[int]:
        """Ids of a document: `<|endoftext|>`, with which every document begins, then `text`."""
        return [END_OF_TEXT, *self.encode(text)]

    def encode_array(self, text: str) -> np.ndarray:
        """[n] uint16, the same ids without the detour over a list of Python integers, for bulk work."""
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)
        except UnicodeEncodeError:
            return np.array(self.encode(text), np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, structure ids their names, e.g. `<|end|>`."""
        return self._encoding.decode(list(ids))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of `ids`: joined pieces of a stream decode as a whole even when one token splits a letter."""
        return self._encoding.decode_bytes(list(ids))

    def byte_sequences(self) -> list[bytes]:
        """The bytes of ids 0..50255, which are also the order in which byte-pair encoding joins them."""
        return [self._encoding.decode_single_token_bytes(i) for i in range(END_OF_TEXT)]

    def byte_lengths(self) -> np.ndarray:
        """[V] int32: bytes of text behind every id, 0 for structure; the denominator of bits per byte."""
        lengths = [len(piece) for piece in self.byte_sequences()]
        return np.array(lengths + [0] * len(SPECIAL_TOKENS), np.int32)


@cache
def load_tokenizer() -> Tokenizer:
    """The one tokenizer of this project, checked against its published SHA-256. Raises InputError when damaged."""
    content = RANKS.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != _RANKS_SHA256:
        raise InputError(
            f"{RANKS}: sha256 {found}, expected {_RANKS_SHA256}: install the package again"
        )
    pairs = (line.split() for line in content.splitlines())
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in pairs}
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=_PATTERN,
        mergeable_ranks=ranks,
        special_tokens=SPECIAL_TOKENS,
        explicit_n_vocab=CHAT_VOCAB,
    )
    identity = hashlib.sha256(content + repr(sorted(SPECIAL_TOKENS.items())).encode())
    return Tokenizer(encoding, identity.hexdigest())
