"""A trained model as one object: weights, their config, the tokenizer, and what the checkpoint records about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax

from minigpt_jax import chat
from minigpt_jax.checkpoint import load_params
from minigpt_jax.errors import InputError
from minigpt_jax.generate import Generator
from minigpt_jax.model import GPTConfig
from minigpt_jax.sampling import sampling_params
from minigpt_jax.tokenizer import CHAT_VOCAB, Tokenizer, load_tokenizer


@dataclass(frozen=True)
class LoadedRun:
    """Weights that are ready to use. `meta` is the checkpoint's record, {} for weights from elsewhere."""

    params: dict
    config: GPTConfig
    tokenizer: Tokenizer
    meta: dict = field(default_factory=dict)

    @property
    def can_chat(self) -> bool:
        """Whether the vocabulary has role markers, as every finetuned model's has."""
        return self.config.vocab_size >= CHAT_VOCAB

    def generator(self, *, rows: int = 1, dtype=None, quantize: str | None = None) -> Generator:
        """A Generator of `rows` texts at a time. `dtype`, `quantize`: see `prepare_for_decoding`."""
        return Generator(
            self.params, self.config, self.tokenizer, rows=rows, dtype=dtype, quantize=quantize
        )

    def complete(self, text: str, *, max_new_tokens: int = 256, **sampling) -> str:
        """The continuation of `text`, without `text`. `sampling`: see `sampling_params`.

        Raises InputError for a text that does not fit into the context.
        """
        return self._generate(self.tokenizer.encode_document(text), max_new_tokens, sampling)

    def chat(
        self, messages: Sequence[chat.Message], *, max_new_tokens: int = 256, **sampling
    ) -> str:
        """The answer to a conversation whose last message is the user's.

        Raises InputError for a model that was not finetuned and for messages out of order.
        """
        if not self.can_chat:
            raise InputError("this model was not finetuned and cannot chat: use complete()")
        return self._generate(chat.prompt(messages, self.tokenizer), max_new_tokens, sampling)

    def _generate(self, prompt: list[int], max_new_tokens: int, sampling: dict) -> str:
        settings = sampling_params(1, self.config, **sampling)
        (completion,) = self.generator().complete([prompt], settings, max_new_tokens=max_new_tokens)
        return completion.text


def load_run(path: Path, sharding: jax.sharding.Sharding | None = None) -> LoadedRun:
    """The newest checkpoint of the run in folder `path` that verifies.

    `sharding` is that of every array (default: the first device). Raises InputError where there is
    no usable checkpoint.
    """
    params, config, meta = load_params(path, sharding)
    return LoadedRun(params, config, load_tokenizer(), meta)
