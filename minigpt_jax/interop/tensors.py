"""What the conversions of both models do with tensors: names, checks, rows that pad a table."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from minigpt_jax.architectures import TABLES
from minigpt_jax.errors import InputError
from minigpt_jax.model_config import GPTConfig


def without_prefix(
    tensors: Mapping[str, np.ndarray], prefix: str, buffers: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The tensors without `prefix` in their names, and without those that end with `buffers`.

    Raises InputError where a tensor occurs twice.
    """
    short = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if len(short) < len(tensors):
        raise InputError(f"found the same tensors twice, with and without the prefix {prefix!r}")
    return {name: tensor for name, tensor in short.items() if not name.endswith(buffers)}


def check_tensors(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for a tensor that is missing, unknown, of another shape or not finite."""
    for name in sorted(shapes.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "none"
        expected = shapes.get(name, "none")
        if found != expected:
            raise InputError(f"tensor {name}: found {found}, expected {expected}")
        if not np.isfinite(as_f32(tensors[name])).all():
            raise InputError(f"tensor {name}: found values that are not finite")


def as_f32(tensor: np.ndarray) -> np.ndarray:
    """The same numbers in f32, without a copy where they are."""
    return np.asarray(tensor).astype(np.float32, copy=False)


def with_vocab_size(params: dict, config: GPTConfig, vocab_size: int) -> tuple[dict, GPTConfig]:
    """The model with the first `vocab_size` rows of its tables, and zeros where they are padded."""
    config = replace(config, vocab_size=vocab_size)
    tables = {name: _padded(params[name], config) for name in TABLES if name in params}
    return params | tables, config


def _padded(table: np.ndarray, config: GPTConfig) -> np.ndarray:
    rows = table[: config.vocab_size]
    return np.pad(rows, ((0, config.padded_vocab - len(rows)), (0, 0)))
