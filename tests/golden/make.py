"""Write what transformers and PyTorch compute to a file, to check parity where neither exists.

    python -m tests.golden.make

A small GPT2LMHeadModel with random weights, in float64: its logits, masked loss and gradients, and
ten steps of AdamW. Nothing here comes from minigpt_jax: names, layout, clipping and schedule are
those of transformers and PyTorch, or are implemented a second time.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

FILE = Path(__file__).with_name("gpt2.npz")
STEPS = 10
# The schedule.
WARMUP = 3
PEAK = 2e-3
FLOOR = 2e-4
# The optimizer.
CLIP = 1.0
DECAY = 0.1
BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8


def inputs(
    seed: int,
    *,
    layers: int = 2,
    heads: int = 3,
    embed: int = 12,
    vocab: int = 61,
    context: int = 12,
    rows: int = 8,
) -> dict:
    """Random weights "before/NAME", "tokens" [steps, B, T+1], "mask" [steps, B, T], and settings.

    No weight that training changes is zero or one: without a bias, a scale or the epsilon, every
    number would be different.
    """
    draw = np.random.default_rng(seed)
    shape = {"layers": layers, "heads": heads, "embed": embed, "vocab": vocab, "context": context}
    settings = shape | {"peak": PEAK, "warmup": WARMUP, "floor": FLOOR}
    found = {name: np.array(value) for name, value in settings.items()}
    for name, parameter in build(found).transformer.named_parameters():
        is_scale = name.endswith("weight") and parameter.ndim == 1
        found[f"before/{name}"] = draw.normal(size=tuple(parameter.shape)) * 0.2 + is_scale
    return found | batches(draw, vocab, STEPS, rows, context)


def batches(draw: np.random.Generator, vocab: int, steps: int, rows: int, context: int) -> dict:
    """Random "tokens" [steps, B, T+1] and "mask" [steps, B, T]."""
    tokens = draw.integers(0, vocab, (steps, rows, context + 1)).astype(np.uint16)
    # Rows of unequal weight: a mean of means would be wrong.
    kept = np.linspace(0.2, 0.9, rows)[:, None]
    mask = (draw.random((steps, rows, context)) < kept).astype(np.uint8)
    mask[:, :, -1] = 1
    return {"tokens": tokens, "mask": mask}


def build(golden: Mapping[str, np.ndarray]) -> GPT2LMHeadModel:
    """The model in float64, without dropout, with the weights that are in `golden`."""
    shape = GPT2Config(
        vocab_size=int(golden["vocab"]),
        n_positions=int(golden["context"]),
        n_embd=int(golden["embed"]),
        n_layer=int(golden["layers"]),
        n_head=int(golden["heads"]),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    model = GPT2LMHeadModel(shape).double()
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            if f"before/{name}" in golden:
                parameter.copy_(torch.tensor(golden[f"before/{name}"]))
    return model


def outcomes(golden: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model and AdamW compute from `inputs`.

    Of the first batch "logits" [B, T, V], "loss" [] and "gradient/NAME"; of the steps "losses",
    "norms" (before clipping) and "rates" [steps], and the last weights "after/NAME".
    """
    model = build(golden)
    # In transformers every matrix and embedding has two dimensions, every bias and scale one.
    parameters = dict(model.transformer.named_parameters())
    groups = [
        {"params": [p for p in parameters.values() if p.ndim == 2], "weight_decay": DECAY},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=ADAM_EPS)
    found = {}
    curves = []
    for i in range(STEPS):
        scores, loss = logits_and_loss(model, golden, i)
        optimizer.zero_grad()
        loss.backward()
        gradients = {name: p.grad for name, p in parameters.items()}
        if i == 0:
            found |= {"logits": numpy(scores), "loss": numpy(loss)}
            found |= {f"gradient/{name}": numpy(g) for name, g in gradients.items()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        for g in gradients.values():
            # Not torch's own clipping, which adds 1e-6 to the norm.
            g.mul_(min(1.0, CLIP / norm))
        for group in optimizer.param_groups:
            group["lr"] = rate(i)
        optimizer.step()
        curves.append((loss.item(), norm, rate(i)))
    found |= dict(zip(("losses", "norms", "rates"), np.array(curves).T, strict=True))
    return found | {f"after/{name}": numpy(p) for name, p in parameters.items()}


def logits_and_loss(
    model: torch.nn.Module, golden: Mapping[str, np.ndarray], step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, T, V] and masked mean loss of a batch."""
    tokens = torch.tensor(golden["tokens"][step].astype(np.int64))
    mask = torch.tensor(golden["mask"][step], dtype=torch.float64)
    scores = model(tokens[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(
        scores.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return scores, (losses * mask.flatten()).sum() / mask.sum()


def rate(step: int) -> float:
    """Learning rate: WARMUP equal steps up to PEAK, then half a cosine down to FLOOR."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    angle = math.pi * (step - WARMUP) / (STEPS - WARMUP)
    return FLOOR + (PEAK - FLOOR) * (1 + math.cos(angle)) / 2


def numpy(tensor: torch.Tensor) -> np.ndarray:
    """A copy that the next step does not change."""
    return tensor.detach().numpy().copy()


def main() -> None:
    """Write the file, and print what is in it."""
    golden = inputs(seed=0)
    golden |= outcomes(golden)
    clipped = golden["norms"] > CLIP
    assert 0 < clipped.sum() < STEPS, f"some steps must be clipped, and some not: {golden['norms']}"
    np.savez(FILE, allow_pickle=False, **golden)
    print(
        f"{FILE.name}: {FILE.stat().st_size:,} bytes; "
        f"loss {golden['losses'][0]:.4f} to {golden['losses'][-1]:.4f}, "
        f"{clipped.sum()} steps clipped"
    )


if __name__ == "__main__":
    main()
