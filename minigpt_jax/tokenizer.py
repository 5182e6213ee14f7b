"""The GPT-2 byte-pair encoding, offline: tiktoken with the ranks that ship with the package.

Text is encoded to ids 0..50255 only. The ids above them are special tokens, which no text produces:
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

END_OF_TEXT = 50256
USER = 50257
ASSISTANT = 50258
SYSTEM = 50259
END = 50260
SPECIAL_TOKENS = {
    "<|endoftext|>": END_OF_TEXT,
    "<|user|>": USER,
    "<|assistant|>": ASSISTANT,
    "<|system|>": SYSTEM,
    "<|end|>": END,
}
# The model ends its text with one of these.
STOP_TOKENS = (END, END_OF_TEXT)
# Vocabulary of pretraining and of imported GPT-2 weights: text and the document separator.
TEXT_VOCAB = 50257
# Vocabulary of finetuning: the role markers too.
CHAT_VOCAB = 50261

# Each line: the bytes of a token in base64, and its rank.
RANKS = Path(str(files("minigpt_jax") / "assets" / "gpt2.tiktoken"))
_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# GPT-2 splits text into these pieces before it merges bytes: contractions, words, numbers,
# punctuation, whitespace.
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def has_chat_tokens(vocab_size: int) -> bool:
    """Whether a model of `vocab_size` has the role markers, as every finetuned model does."""
    return vocab_size >= CHAT_VOCAB


class Tokenizer:
    """Encode and decode.

    `hash` (hex) identifies the vocabulary and the special tokens: files made with another tokenizer
    are refused.
    """

    def __init__(self, encoding: tiktoken.Encoding, hash: str):
        self._encoding = encoding
        self.hash = hash

    def encode(self, text: str) -> list[int]:
        """Ids 0..50255 of `text`.

        The names of special tokens in it are plain text. Lone surrogates become U+FFFD.
        """
        return self._encoding.encode_ordinary(text)

    def encode_document(self, text: str) -> list[int]:
        """Ids of a document: `<|endoftext|>`, with which every document begins, and then `text`."""
        return [END_OF_TEXT, *self.encode(text)]

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of `encode` as [n] uint16, without a list of Python integers: for much text."""
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)
        except UnicodeEncodeError:
            return np.array(self.encode(text), np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Bytes that are not UTF-8 become U+FFFD, special tokens their names."""
        return self._encoding.decode(list(ids))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of `ids`, also where a token ends inside a character."""
        return self._encoding.decode_bytes(list(ids))

    def byte_sequences(self) -> list[bytes]:
        """The bytes of ids 0..50255. Byte-pair encoding merges them in the order of their ids."""
        return [self._encoding.decode_single_token_bytes(i) for i in range(END_OF_TEXT)]

    def byte_lengths(self) -> np.ndarray:
        """[V] int32: bytes of text of each id, 0 for special tokens. Divides in bits per byte."""
        lengths = [len(piece) for piece in self.byte_sequences()]
        return np.array(lengths + [0] * len(SPECIAL_TOKENS), np.int32)


@cache
def load_tokenizer() -> Tokenizer:
    """The tokenizer of all models of this project.

    Raises InputError if the vocabulary file does not have its published SHA-256.
    """
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
