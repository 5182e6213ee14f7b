"""The second model: NanoChat (Karpathy 2025), which `NanoChatForCausalLM` of transformers loads.

What differs from GPT-2 (model.py): positions are rotations of queries and keys, which are
normalised after it; RMSNorm without weights, after the embedding too; ReLU squared in place of
GELU; no biases; a head of its own (`params["lm_head"]`), whose logits loss.py caps. Everything that
adds to the residual stream begins with zeros.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from minigpt_jax.attention import KVCache, attend, attend_with_cache
from minigpt_jax.functional import queries_keys_values, relu_squared, rms_norm
from minigpt_jax.layers import (
    Cache,
    Hidden,
    Indices,
    Linear,
    loop_over_layers,
    param_with_axes,
    scan_layers,
)
from minigpt_jax.model_config import GPTConfig

ROTARY_BASE = 10_000
# RMSNorm follows, so this sets only how much of an embedding one update changes.
EMBEDDING_STD = 1.0
# Times 1 / sqrt(inputs), of the matrices that do not begin with zeros (modded-nanogpt).
LINEAR_STD = 0.5

# Cosines and sines of the angles of each position.
Rotation = tuple[Float[Array, "B T 1 J"], Float[Array, "B T 1 J"]]


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys."""

    config: GPTConfig
    dtype: DTypeLike
    implementation: str

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        cache: KVCache | None,
        positions: Indices,
        segments: Indices | None,
        rotation: Rotation,
    ) -> tuple[Hidden, KVCache | None]:
        c = self.config
        std = LINEAR_STD / math.sqrt(c.embed)
        shape = (c.embed, 3, c.heads, c.head_dim)
        axes = ("embed", None, "heads", None)
        qkv = Linear(shape, axes, 1, std, self.dtype, use_bias=False, name="qkv")(x)
        # Before, so that what follows uses the very arrays that the backward pass keeps.
        qkv = nn.with_logical_constraint(qkv, ("batch", None, None, "heads", None))
        q, k, v = queries_keys_values(qkv, *rotation)
        if cache is None:
            y = attend(q, k, v, segments, self.implementation)
        else:
            y, cache = attend_with_cache(q, k, v, cache, positions)
        shape = (c.heads, c.head_dim, c.embed)
        axes = ("heads", None, "embed")
        return Linear(shape, axes, 2, 0.0, self.dtype, use_bias=False, name="out")(y), cache


class MLP(nn.Module):
    """Two layers with ReLU squared between them, four times as wide inside."""

    config: GPTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        c = self.config
        std = LINEAR_STD / math.sqrt(c.embed)
        up = Linear((c.embed, c.mlp), ("embed", "mlp"), 1, std, self.dtype, False, name="up")
        down = Linear((c.mlp, c.embed), ("mlp", "embed"), 1, 0.0, self.dtype, False, name="down")
        # Before, so that `down` uses the very array that the backward pass keeps.
        x = nn.with_logical_constraint(up(x), ("batch", None, "mlp"))
        return down(relu_squared(x))


class Block(nn.Module):
    """One layer: x + attention, then + MLP, each of the normalised x."""

    config: GPTConfig
    dtype: DTypeLike
    attention: str

    @nn.compact
    def __call__(
        self,
        x: Hidden,
        cache: KVCache | None,
        positions: Indices,
        segments: Indices | None,
        rotation: Rotation,
    ) -> tuple[Hidden, KVCache | None]:
        attention = Attention(self.config, self.dtype, self.attention, name="attention")
        x, y = rms_norm(x)
        y, cache = attention(y, cache, positions, segments, rotation)
        x, y = rms_norm(x + y)
        x = x + MLP(self.config, self.dtype, name="mlp")(y)
        return nn.with_logical_constraint(x, ("batch", None, None)), cache


class NanoChat(nn.Module):
    """Token ids to hidden states. The fields are those of `GPT`."""

    config: GPTConfig
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"

    @nn.compact
    def __call__(
        self,
        tokens: Indices | Int[np.ndarray, "B T"],
        positions: Indices | None = None,
        segments: Indices | None = None,
        cache: Cache | None = None,
    ) -> tuple[Hidden, Cache | None]:
        """Hidden states after the final RMSNorm, and the cache. Arguments as those of `GPT`."""
        c = self.config
        axes = ("vocab", "embed")
        init = nn.initializers.normal(EMBEDDING_STD)
        wte = param_with_axes(self, "wte", init, (c.padded_vocab, c.embed), axes)
        # The head, for loss.py and decoding.py.
        param_with_axes(self, "lm_head", nn.initializers.zeros, (c.padded_vocab, c.embed), axes)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        # Once for all layers.
        rotation = rotations(positions, c.head_dim, self.dtype)
        # Rounded after the lookup, so that the gradient of a token is a sum in f32.
        x = wte[tokens].astype(self.dtype)
        _, x = rms_norm(nn.with_logical_constraint(x, ("batch", None, None)))
        if cache is None:
            x = scan_layers(self, Block, x, positions, segments, rotation)
        else:
            x, cache = loop_over_layers(self, Block, x, cache, positions, None, rotation)
        _, y = rms_norm(x)
        return y, cache


def rotations(positions: Indices, head_dim: int, dtype: DTypeLike) -> Rotation:
    """Cosines and sines of the rotary angles p / base^(2 i / K) of position p, in f32 at least."""
    wide = jnp.promote_types(dtype, jnp.float32)
    frequencies = ROTARY_BASE ** (-jnp.arange(0, head_dim, 2, dtype=wide) / head_dim)
    angles = positions[:, :, None, None].astype(wide) * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)
