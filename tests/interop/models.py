"""Small runs with random weights, made without training: conversion does not depend on training."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from minigpt_jax.interop.hugging_face import from_tensors, to_config
from minigpt_jax.interop.imported_run import write_run
from minigpt_jax.loaded_run import LoadedRun
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB, load_tokenizer

BASE = GPTConfig(vocab_size=TEXT_VOCAB, context=64, layers=2, heads=2, embed=32)
CHAT = GPTConfig(vocab_size=CHAT_VOCAB, context=64, layers=2, heads=2, embed=32)
NANOCHAT = replace(BASE, architecture="nanochat")
NANOCHAT_CHAT = replace(CHAT, architecture="nanochat")


def tensors(config: GPTConfig) -> dict[str, np.ndarray]:
    """Random tensors with transformers' names, so large that no two tokens are equally likely."""
    return dict(_tensors(config))


@cache
def _tensors(config: GPTConfig) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = gpt2_shapes(config) if config.is_gpt2 else nanochat_shapes(config)
    return {
        name: (draw.normal(size=shape) * 0.2 + ("ln" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def gpt2_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a `GPT2LMHeadModel`."""
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
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def nanochat_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a `NanoChatForCausalLM`."""
    embed = config.embed
    table = (config.vocab_size, embed)
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": table,
        "model.embed_tokens.weight": table,
    }
    for i in range(config.layers):
        layer = f"model.layers.{i}"
        for name in "qkvo":
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (embed, embed)
        shapes[f"{layer}.mlp.fc1.weight"] = (4 * embed, embed)
        shapes[f"{layer}.mlp.fc2.weight"] = (embed, 4 * embed)
    return shapes


def random_run(config: GPTConfig) -> LoadedRun:
    """A run with these tensors, which is not on disk."""
    params = jax.tree.map(jnp.asarray, from_tensors(tensors(config), config))
    return LoadedRun(params, config, load_tokenizer())


def write_random_run(folder: Path, config: GPTConfig) -> Path:
    """The same run on disk."""
    folder.mkdir(parents=True)
    write_run(folder, config, from_tensors(tensors(config), config), "random numbers")
    return folder


def write_source(folder: Path, config: GPTConfig, weights: dict, pieces: int = 1) -> Path:
    """A folder as transformers writes it, with the weights in one file or in several."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_config(config)))
    if pieces == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for piece in range(pieces):
        file = f"model-{piece + 1:05}-of-{pieces:05}.safetensors"
        part = {name: weights[name] for name in sorted(weights)[piece::pieces]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
