"""Write what transformers' NanoChat computes to a file, to check parity where it does not exist.

    python -m tests.golden.make_nanochat

A small NanoChatForCausalLM with random weights, in float64: its logits, masked loss and gradients.
transformers computes three things in float32 whatever the dtype of the model is: RMSNorm, the
rotary angles and the softmax of eager attention. Here they are computed in float64. Nothing comes
from minigpt_jax.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from transformers import NanoChatConfig, NanoChatForCausalLM
from transformers.models.nanochat import modeling_nanochat

from tests.golden.make import batches, logits_and_loss, numpy

FILE = Path(__file__).with_name("nanochat.npz")


def inputs(
    seed: int,
    *,
    layers: int = 2,
    heads: int = 3,
    embed: int = 12,
    vocab: int = 61,
    context: int = 12,
    rows: int = 4,
) -> dict:
    """Random weights "before/NAME", "tokens" [1, B, T+1], "mask" [1, B, T], and the shape."""
    draw = np.random.default_rng(seed)
    shape = {"layers": layers, "heads": heads, "embed": embed, "vocab": vocab, "context": context}
    found = {name: np.array(value) for name, value in shape.items()}
    found["architecture"] = np.array("nanochat")
    for name, parameter in build(found).named_parameters():
        # Logits of several units: the cap of 15 changes them.
        std = 1.0 if name == "lm_head.weight" else 0.3
        found[f"before/{name}"] = draw.normal(size=tuple(parameter.shape)) * std
    return found | batches(draw, vocab, 1, rows, context)


def build(golden: Mapping[str, np.ndarray]) -> NanoChatForCausalLM:
    """The model in float64, with the weights that are in `golden`."""
    embed = int(golden["embed"])
    shape = NanoChatConfig(
        vocab_size=int(golden["vocab"]),
        hidden_size=embed,
        intermediate_size=4 * embed,
        num_hidden_layers=int(golden["layers"]),
        num_attention_heads=int(golden["heads"]),
        max_position_embeddings=int(golden["context"]),
        bos_token_id=None,
        eos_token_id=None,
        # The default is 1, and the embedding of that token would have no gradient.
        pad_token_id=None,
        attn_implementation="eager",
    )
    model = NanoChatForCausalLM(shape).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"before/{name}" in golden:
                parameter.copy_(torch.tensor(golden[f"before/{name}"]))
    return model


def outcomes(golden: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model computes from `inputs`: "logits" [B, T, V], "loss" [] and "gradient/NAME"."""
    model = build(golden)
    with all_in_float64():
        scores, loss = logits_and_loss(model, golden, 0)
        loss.backward()
    gradients = {f"gradient/{name}": numpy(p.grad) for name, p in model.named_parameters()}
    return {"logits": numpy(scores), "loss": numpy(loss)} | gradients


@contextmanager
def all_in_float64() -> Iterator[None]:
    """Inside, transformers' NanoChat computes nothing in float32."""
    functional = torch.nn.functional
    softmax = functional.softmax
    norm, rotary = modeling_nanochat.NanoChatRMSNorm, modeling_nanochat.NanoChatRotaryEmbedding
    with (
        patch.object(norm, "forward", lambda self, x: self._norm(x)),
        patch.object(rotary, "forward", rotary_in_float64),
        patch.object(functional, "softmax", lambda x, dim, dtype: softmax(x, dim=dim)),
    ):
        yield


def rotary_in_float64(
    self: modeling_nanochat.NanoChatRotaryEmbedding, x: torch.Tensor, position_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each [B, T, K]: the same formula, in another dtype."""
    size = self.config.hidden_size // self.config.num_attention_heads
    exponents = torch.arange(0, size, 2, dtype=x.dtype) / size
    frequencies = self.config.rope_parameters["rope_theta"] ** -exponents
    angles = position_ids[..., None].to(x.dtype) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def main() -> None:
    """Write the file, and print what is in it."""
    golden = inputs(seed=0)
    golden |= outcomes(golden)
    largest = np.abs(golden["logits"]).max()
    assert largest > 7, f"the cap must matter, but no logit is above {largest:.1f}"
    np.savez(FILE, allow_pickle=False, **golden)
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes; loss {golden['loss']:.4f}")


if __name__ == "__main__":
    main()
