"""The models by the name of their architecture, and what is done the same way for each of them."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.nanochat import NanoChat

AnyModel = GPT | NanoChat
# The tables [V, D] that a model may have.
TABLES = ("wte", "lm_head")


def make_model(config: GPTConfig, **compute: Any) -> AnyModel:
    """The model that `config` describes. `compute`: the other fields of `GPT`."""
    return GPT(config, **compute) if config.is_gpt2 else NanoChat(config, **compute)


def output_head(params: dict) -> Array:
    """The table [V, D] that hidden states are multiplied by: GPT-2's is its embedding."""
    return params["lm_head" if "lm_head" in params else "wte"]


def grow_vocab(params: dict, old_size: int, config: GPTConfig) -> dict:
    """Weights for the larger `config.vocab_size`: new rows are the mean of the `old_size` old ones.

    The mean is no token in particular, so the first answers stay as good as before.
    """
    grown = {name: _grow(params[name], old_size, config) for name in TABLES if name in params}
    return params | grown


def _grow(table: Array, old_size: int, config: GPTConfig) -> Array:
    old_rows = table[:old_size]
    padded = jnp.pad(old_rows, ((0, config.padded_vocab - old_size), (0, 0)))
    ids = jnp.arange(config.padded_vocab)[:, None]
    is_new = (ids >= old_size) & (ids < config.vocab_size)
    return jnp.where(is_new, old_rows.mean(0, keepdims=True), padded)
