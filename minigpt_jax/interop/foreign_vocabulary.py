"""Find out which rows of an imported embedding are token ids: GPT-2's, ours, or padding.

A folder's config.json says only how many rows there are. Their meaning is in its tokenizer's files.
"""

import json
from pathlib import Path

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.interop.vocabulary import special_tokens, vocabulary
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT, TEXT_VOCAB

# The files of a tokenizer that name ids, as transformers writes them.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json")
# Padding that was never trained: its rows differ by less than this share of what others do.
# transformers fills new rows with the mean of the others and very little noise.
ALIKE = 0.01
CUT = f"model.resize_token_embeddings({TEXT_VOCAB}); model.save_pretrained(folder)"


def known_vocab_size(folder: Path, *tables: np.ndarray) -> int:
    """TEXT_VOCAB, or CHAT_VOCAB where the ids above are our role markers: other rows are padding.

    `tables`: the embedding, and the head if it is another table, of at least TEXT_VOCAB rows.
    Raises InputError where the tokenizer is another one, and where rows above may be token ids that
    we do not have.
    """
    rows = len(tables[0])
    names = _names_of_ids(folder)
    if not names:
        if all(map(_are_padding, tables)):
            return TEXT_VOCAB
        raise InputError(
            f"{folder}: the embedding has {rows:,} rows, GPT-2's vocabulary has "
            f"{TEXT_VOCAB:,}, and no tokenizer.json says what the others are: put the model's own "
            f"beside it. If they are padding, cut them off, in transformers: {CUT}"
        )
    _check_text_tokens(folder, names)
    # A model is never trained to write its padding token.
    padding = _padding_token(folder)
    above = {id: name for id, name in names.items() if TEXT_VOCAB <= id < rows and name != padding}
    markers = {id: name for name, id in special_tokens(CHAT_VOCAB).items() if id >= TEXT_VOCAB}
    if above == markers:
        return CHAT_VOCAB
    if above:
        listed = ", ".join([*above.values()][:4]) + (", ..." if len(above) > 4 else "")
        raise InputError(
            f"{folder}: its tokenizer has {len(above)} tokens that GPT-2 has not ({listed}). To "
            f"import the model without them, in transformers: {CUT}"
        )
    return TEXT_VOCAB


def _names_of_ids(folder: Path) -> dict[int, str]:
    """{id: token} of all tokenizer files in `folder`; {} where there are none."""
    names: dict[int, str] = {}
    for file in TOKENIZER_FILES:
        path = folder / file
        if path.is_file():
            try:
                names |= _names_in(file, json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(
                    f"{path}: not a tokenizer's file ({error!r}): fetch it again, or remove it"
                ) from None
    return names


def _names_in(file: str, content: dict) -> dict[int, str]:
    if file == "tokenizer.json":
        vocab = content["model"]["vocab"]
        # Other kinds of tokenizers than BPE have a list of (token, score).
        ids = dict(vocab) if isinstance(vocab, dict) else {t[0]: id for id, t in enumerate(vocab)}
        ids |= {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    elif file == "tokenizer_config.json":
        added = content.get("added_tokens_decoder", {})
        ids = {token["content"]: int(id) for id, token in added.items()}
    else:
        ids = content
    return {int(id): str(name) for name, id in ids.items()}


def _check_text_tokens(folder: Path, names: dict[int, str]) -> None:
    """Raise InputError where an id of text means another text than in GPT-2's vocabulary."""
    for token, id in {**vocabulary(), "<|endoftext|>": END_OF_TEXT}.items():
        if names.get(id, token) != token:
            raise InputError(
                f"{folder}: its tokenizer is not GPT-2's (id {id} is {names[id]!r}, but GPT-2's is "
                f"{token!r}), and this project has no other one: choose a model with GPT-2's "
                "tokenizer"
            )


def _padding_token(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    token = json.loads(path.read_text(encoding="utf-8")).get("pad_token") if path.is_file() else ""
    return token["content"] if isinstance(token, dict) else token


def _are_padding(rows: np.ndarray) -> bool:
    """Whether the rows above GPT-2's vocabulary are as they were made, before any training."""
    text, above = rows[:TEXT_VOCAB], rows[TEXT_VOCAB:]
    if not len(above):
        return True
    # Zeros, the mean of the others, or all the same.
    origins = [np.zeros_like(above[0]), text.mean(0)]
    if len(above) > 1:
        origins.append(above.mean(0))
    return any(np.abs(above - origin).max() <= ALIKE * text.std() for origin in origins)
