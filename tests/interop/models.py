"""Small runs with random weights, made without training: what leaves and enters does not depend on how good it is."""

from pathlib import Path

import numpy as np

from minigpt_jax.interop.gpt2 import from_gpt2
from minigpt_jax.interop.import_gpt2 import write_run
from minigpt_jax.model import GPTConfig
from minigpt_jax.tokenizer import CHAT_VOCAB, TEXT_VOCAB

BASE = GPTConfig(vocab_size=TEXT_VOCAB, context=64, layers=2, heads=2, embed=32)
CHAT = GPTConfig(vocab_size=CHAT_VOCAB, context=64, layers=2, heads=2, embed=32)


def tensors(config: GPTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors under transformers' names; large enough that no two words are equally likely."""
    draw, d = np.random.default_rng(seed), config.embed
    shapes = {
        "wte.weight": (config.vocab_size, d),
        "wpe.weight": (config.context, d),
        "ln_f.weight": (d,),
        "ln_f.bias": (d,),
    }
    for i in range(config.layers):
        shapes |= {
            f"h.{i}.{ln}.{kind}": (d,) for ln in ("ln_1", "ln_2") for kind in ("weight", "bias")
        }
        for name, inputs, outputs in (
            ("attn.c_attn", d, 3 * d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", d, 4 * d),
            ("mlp.c_proj", 4 * d, d),
        ):
            shapes |= {f"h.{i}.{name}.weight": (inputs, outputs), f"h.{i}.{name}.bias": (outputs,)}
    return {
        f"transformer.{name}": (draw.normal(size=shape) * 0.2 + ("ln" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def make_run(folder: Path, config: GPTConfig, seed: int = 0) -> Path:
    """A run with these random weights."""
    folder.mkdir(parents=True)
    write_run(folder, config, from_gpt2(tensors(config, seed), config), "random numbers")
    return folder
