"""GPT-2 (Radford et al. 2019) in Flax linen, from tokens to hidden states.

The letters B, T, D, ... are those of layers.py; nanochat.py is the other model. Both stop at hidden
states: loss.py and decoding.py multiply them by a table of the vocabulary, each in pieces of the
size it needs. GPT-2's is its embedding, `params["wte"]`.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Int

from minigpt_jax.attention import KVCache, attend, attend_with_cache
from minigpt_jax.functional import dropout, gelu, layer_norm
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

# GPT-2's standard deviation for every matrix and embedding.
INIT_STD = 0.02

Rows = Int[Array, " B"]


class LayerNorm(nn.Module):
    """`layer_norm` with parameters."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Hidden) -> tuple[Hidden, Hidden]:
        """`x`, which the residual connection must use (see `layer_norm`), and the normalised x."""
        shape = x.shape[-1:]
        scale = param_with_axes(self, "scale", nn.initializers.ones, shape, ("embed",))
        bias = param_with_axes(self, "bias", nn.initializers.zeros, shape, ("embed",))
        return layer_norm(x, scale, bias, self.dtype)


class Attention(nn.Module):
    """Causal self-attention with several heads; with a cache, over everything in the cache."""

    config: GPTConfig
    dtype: DTypeLike
    implementation: str

    @nn.compact
    def __call__(
        self, x: Hidden, cache: KVCache | None, positions: Indices, segments: Indices | None
    ) -> tuple[Hidden, KVCache | None]:
        c = self.config
        shape = (c.embed, 3, c.heads, c.head_dim)
        qkv = Linear(shape, ("embed", None, "heads", None), 1, INIT_STD, self.dtype, name="qkv")(x)
        # The gradient of a split is one concatenation; of three slices, three padded sums.
        q, k, v = (
            nn.with_logical_constraint(jnp.squeeze(part, 2), ("batch", None, "heads", None))
            for part in jnp.split(qkv, 3, axis=2)
        )
        if cache is None:
            y = attend(q, k, v, segments, self.implementation)
        else:
            y, cache = attend_with_cache(q, k, v, cache, positions)
        # Each layer adds to the residual stream twice: a smaller start keeps its variance flat.
        std = INIT_STD / math.sqrt(2 * c.layers)
        shape = (c.heads, c.head_dim, c.embed)
        out = Linear(shape, ("heads", None, "embed"), 2, std, self.dtype, name="out")
        return out(y), cache


class MLP(nn.Module):
    """Two layers with GELU between them, four times as wide inside."""

    config: GPTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        c = self.config
        std = INIT_STD / math.sqrt(2 * c.layers)
        x = Linear((c.embed, c.mlp), ("embed", "mlp"), 1, INIT_STD, self.dtype, name="up")(x)
        x = nn.with_logical_constraint(gelu(x), ("batch", None, "mlp"))
        return Linear((c.mlp, c.embed), ("mlp", "embed"), 1, std, self.dtype, name="down")(x)


class Block(nn.Module):
    """One layer of the pre-LayerNorm transformer: x + attention, then + MLP."""

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
        dropout_rows: Rows | None,
    ) -> tuple[Hidden, KVCache | None]:
        attention = Attention(self.config, self.dtype, self.attention, name="attention")
        mlp = MLP(self.config, self.dtype, name="mlp")
        x, y = LayerNorm(self.dtype, name="ln_1")(x)
        y, cache = attention(y, cache, positions, segments)
        x = x + drop(self, y, self.config.dropout, dropout_rows)
        x, y = LayerNorm(self.dtype, name="ln_2")(x)
        x = x + drop(self, mlp(y), self.config.dropout, dropout_rows)
        return nn.with_logical_constraint(x, ("batch", None, None)), cache


def drop(module: nn.Module, x: Hidden, rate: float, rows: Rows | None) -> Hidden:
    """`dropout` of `x` with a random key of `module`; without `rows` just `x`."""
    return x if rows is None else dropout(x, rate, module.make_rng("dropout"), rows)


class GPT(nn.Module):
    """Token ids to hidden states.

    `config` is the shape of the weights; the other fields change only how results are computed.
    `remat` trades memory for time: "none" keeps all activations for the backward pass, "dots" the
    results of matmuls, "full" only what lies between layers. `unroll` layers are compiled as one
    piece, see `layers_per_piece`; more than 1 takes back what `remat` saves. `attention`: "auto",
    "cudnn", "splash" or "xla", see `attention_kernel`.
    """

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
        dropout_rows: Rows | None = None,
    ) -> tuple[Hidden, Cache | None]:
        """Hidden states after the final LayerNorm, and the cache (if any) with these tokens.

        `positions`: 0..T-1 by default. The caller checks that they are inside the context.
        `segments`: tokens attend only to their own segment and to SHARED_SEGMENT; not together with
        a cache. With a cache the parameters are those of `unstack`. `dropout_rows`: the number of
        each row in the whole batch, for dropout, which also needs a random key named "dropout".
        """
        c = self.config
        init = nn.initializers.normal(INIT_STD)
        wte = param_with_axes(self, "wte", init, (c.padded_vocab, c.embed), ("vocab", "embed"))
        wpe = param_with_axes(self, "wpe", init, (c.context, c.embed), (None, "embed"))
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        # Rounded after the lookup, so that the gradient of a token is a sum in f32.
        x = wte[tokens].astype(self.dtype) + wpe[positions].astype(self.dtype)
        x = nn.with_logical_constraint(x, ("batch", None, None))
        x = drop(self, x, c.dropout, dropout_rows)
        if cache is None:
            x = scan_layers(self, Block, x, positions, segments, dropout_rows)
        else:
            x, cache = loop_over_layers(self, Block, x, cache, positions, None, None)
        _, y = LayerNorm(self.dtype, name="ln_f")(x)
        return y, cache
