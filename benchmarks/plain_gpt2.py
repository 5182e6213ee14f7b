"""GPT-2 in plain PyTorch as a careful user writes it today: the strongest rival of our step.

SDPA attention, a padded embedding, autocast to bfloat16, a fused AdamW with decay on matrices only,
and clipping. It is not part of the product: benchmarks compare with it.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from minigpt_jax.model import INIT_STD
from minigpt_jax.model_config import GPTConfig


class Layer(nn.Module):
    """One pre-LayerNorm layer."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = config.heads
        self.ln_1 = nn.LayerNorm(config.embed)
        self.qkv = nn.Linear(config.embed, 3 * config.embed)
        self.out = nn.Linear(config.embed, config.embed)
        self.ln_2 = nn.LayerNorm(config.embed)
        self.up = nn.Linear(config.embed, config.mlp)
        self.down = nn.Linear(config.mlp, config.embed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] to [B, T, D]."""
        rows, length, width = x.shape
        q, k, v = self.qkv(self.ln_1(x)).split(width, dim=2)
        q, k, v = (a.view(rows, length, self.heads, -1).transpose(1, 2) for a in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(functional.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class PlainGPT2(nn.Module):
    """Token ids [B, T] and targets [B, T] to the mean loss."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab, config.embed)
        self.wpe = nn.Embedding(config.context, config.embed)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.embed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_residual = name.endswith(("out.weight", "down.weight"))
                scale = math.sqrt(2 * config.layers) if is_residual else 1
                nn.init.normal_(parameter, std=INIT_STD / scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy in nats."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        logits = functional.linear(self.ln_f(x), self.wte.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as configs/pretrain.py has it: decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
