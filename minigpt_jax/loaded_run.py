"""A trained model as one object, and what it does: complete a text, chat, make a generator."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax

from minigpt_jax import chat
from minigpt_jax.checkpoint import load_params
from minigpt_jax.errors import InputError
from minigpt_jax.generate import Generator
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.sampling import sampling_params
from minigpt_jax.tokenizer import Tokenizer, has_chat_tokens, load_tokenizer


@dataclass(frozen=True)
class LoadedRun:
    """Weights, their config, the tokenizer, and the checkpoint's record about them.

        run = load_run("runs/quickstart_modern_finetune")
        print(run.complete("Once upon a time", temperature=0.8))
        print(run.chat([{"role": "user", "content": "What does len do?"}]))

    `meta` is {} for weights that come from elsewhere.
    """

    params: dict
    config: GPTConfig
    tokenizer: Tokenizer
    meta: dict = field(default_factory=dict)

    @property
    def can_chat(self) -> bool:
        """Whether the vocabulary has the role markers, as that of every finetuned model has."""
        return has_chat_tokens(self.config.vocab_size)

    def generator(
        self,
        *,
        rows: int = 1,
        dtype: jax.typing.DTypeLike | None = None,
        quantize: str | None = None,
    ) -> Generator:
        """A Generator for `rows` texts at a time: for many texts, or for text as it is decoded.

        `dtype`, `quantize`: see `prepare_for_decoding`.
        """
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

        Raises InputError for a model that was not finetuned, for messages out of order, and for a
        conversation that does not fit into the context. `sampling`: see `sampling_params`.
        """
        if not self.can_chat:
            raise InputError("this model was not finetuned and cannot chat: use complete()")
        return self._generate(chat.prompt(messages, self.tokenizer), max_new_tokens, sampling)

    def _generate(self, prompt: list[int], max_new_tokens: int, sampling: dict) -> str:
        # A new generator each time: one that is kept would hold a second copy of the weights, and
        # its cache would not survive an interrupt or a second thread.
        settings = sampling_params(1, self.config, **sampling)
        (completion,) = self.generator().complete([prompt], settings, max_new_tokens=max_new_tokens)
        return completion.text


def load_run(path: Path, sharding: jax.sharding.Sharding | None = None) -> LoadedRun:
    """The newest checkpoint of the run in folder `path` that passes its checks.

    `sharding`: of every array (default: all on the first device). Raises InputError where there is
    no usable checkpoint.
    """
    params, config, meta = load_params(path, sharding)
    return LoadedRun(params, config, load_tokenizer(), meta)
