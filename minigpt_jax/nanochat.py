"""NanoChat (Karpathy 2025), exactly the model of transformers' `NanoChatForCausalLM`.

Against GPT-2 (model.py), it has
- rotary positions in every layer instead of a table, then RMSNorm of queries and keys;
- RMSNorm without weights instead of LayerNorm, also after the embedding;
- ReLU squared instead of GELU, and no biases and no dropout;
- an output head of its own, `params["lm_head"]`, whose logits loss.py caps;
- zeros as the first values of this head and of both projections into the residual stream.
"""

import math
from functools import partial

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
# RMSNorm follows, so this only decides how large an update is beside the embedding.
EMBEDDING_STD = 1.0
# Matrices that do not begin with zeros have the standard deviation LINEAR_GAIN / sqrt(inputs)
# (modded-nanogpt).
LINEAR_GAIN = 0.5

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
        std = LINEAR_GAIN / math.sqrt(c.embed)
        shape = (c.embed, 3, c.heads, c.head_dim)
        axes = ("embed", None, "heads", None)
        qkv = Linear(shape, axes, 1, std, self.dtype, use_bias=False, name="qkv")(x)
        # On qkv, not on its parts: attention then uses the very arrays that the backward pass
        # keeps.
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
        std = LINEAR_GAIN / math.sqrt(c.embed)
        linear = partial(Linear, inputs=1, dtype=self.dtype, use_bias=False)
        up = linear((c.embed, c.mlp), ("embed", "mlp"), std=std, name="up")
        down = linear((c.mlp, c.embed), ("mlp", "embed"), std=0.0, name="down")
        # On this array, not on the square: `down` then uses the very array that the backward pass
        # keeps.
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
        x = x + y
        x, y = rms_norm(x)
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
        x = nn.with_logical_constraint(x, ("batch", None, None))
        # The normalised embedding begins the residual stream.
        _, x = rms_norm(x)
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
