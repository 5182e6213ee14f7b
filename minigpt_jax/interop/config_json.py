"""What both models ask of the fields of transformers' config.json."""

from collections.abc import Mapping
from typing import Any

from minigpt_jax.errors import InputError
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.tokenizer import TEXT_VOCAB

# Larger than any model has: a damaged config.json is reported before an array of its size is made.
MAX_SIZE = 1_000_000


def check_fixed_fields(
    fields: Mapping, expected: Mapping, model: str, ways_out: Mapping[str, str], otherwise: str
) -> None:
    """Raise InputError for a field with another value than `expected`.

    A field that is missing has transformers' default, which is the expected value. `model`: its
    name. `ways_out`: what to do about a field, `otherwise` about those that are not named there.
    """
    for name, value in expected.items():
        if fields.get(name, value) != value:
            raise InputError(
                f"config.json: {name} is {fields[name]!r}, but {model} has {value!r}: "
                f"{ways_out.get(name, otherwise)}"
            )


def sizes_in(fields: Mapping, names: Mapping[str, str]) -> dict[str, Any]:
    """The sizes {field of GPTConfig: number}, from `names` {field of GPTConfig: field there}."""
    return {ours: _size(fields, theirs) for ours, theirs in names.items()}


def check_vocab_size(config: GPTConfig) -> None:
    """Raise InputError where the model has fewer token ids than GPT-2's tokenizer."""
    if config.vocab_size < TEXT_VOCAB:
        raise InputError(
            f"config.json: vocab_size is {config.vocab_size}, expected {TEXT_VOCAB} "
            "(GPT-2's vocabulary) or more (with padding): choose a model with GPT-2's tokenizer"
        )


def _size(fields: Mapping, name: str) -> int:
    if name not in fields:
        raise InputError(f"config.json: {name} is missing")
    size = fields[name]
    # Not isinstance: True is an int.
    if type(size) is not int or not 1 <= size <= MAX_SIZE:
        raise InputError(
            f"config.json: {name} is {size!r}, expected a whole number from 1 to {MAX_SIZE:,}"
        )
    return size
