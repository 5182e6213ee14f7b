"""Small runs with random weights, made without training: conversion does not depend on training."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax.interop.gpt2 import from_gpt2
from minigpt_jax.interop.imported_run import write_run
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB, load_tokenizer

BASE = GPTConfig(vocab_size=TEXT_VOCAB, context=64, layers=2, heads=2, embed=32)
CHAT = GPTConfig(vocab_size=CHAT_VOCAB, context=64, layers=2, heads=2, embed=32)


def tensors(config: GPTConfig) -> dict[str, np.ndarray]:
    """Random tensors with transformers' names, so large that no two tokens are equally likely."""
    return dict(_tensors(config))


@cache
def _tensors(config: GPTConfig) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    embed = config.embed
    shapes = {
        "wte.weight": (config.vocab_size, embed),
        "wpe.weight": (config.context, embed),
        "ln_f.weight": (embed,),
        "ln_f.bias": (embed,),
    }
    for i in range(config.layers):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.weight": (embed,), f"h.{i}.{norm}.bias": (embed,)}
        for name, inputs, outputs in (
            ("attn.c_attn", embed, 3 * embed),
            ("attn.c_proj", embed, embed),
            ("mlp.c_fc", embed, 4 * embed),
            ("mlp.c_proj", 4 * embed, embed),
        ):
            shapes |= {f"h.{i}.{name}.weight": (inputs, outputs), f"h.{i}.{name}.bias": (outputs,)}
    return {
        f"transformer.{name}": (draw.normal(size=shape) * 0.2 + ("ln" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def random_run(config: GPTConfig) -> LoadedRun:
    """A run with these tensors, which is not on disk."""
    params = jax.tree.map(jnp.asarray, from_gpt2(tensors(config), config))
    return LoadedRun(params, config, load_tokenizer())


def write_random_run(folder: Path, config: GPTConfig) -> Path:
    """The same run on disk."""
    folder.mkdir(parents=True)
    write_run(folder, config, from_gpt2(tensors(config), config), "random numbers")
    return folder
