"""The model: a GPT-2 decoder (Radford et al. 2019) in Flax linen, from tokens to hidden states.

Letters used everywhere: B batch, T time, D embed, H heads, K head dim, F mlp, V vocab, L layers,
S cache length. Weights name their dimensions ("embed", "heads", "mlp", "vocab"), and sharding.py
maps these names to devices. The model stops at hidden states: loss.py and generate.py multiply
them by `params["wte"]`, the tied embedding, each in pieces of the size it needs.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from minigpt_jax import hardware
from minigpt_jax.attention import KVCache, attend, attend_with_cache, attention_kernel
from minigpt_jax.errors import InputError
from minigpt_jax.functional import dropout, gelu, is_split, layer_norm, matmul_of_parts
from minigpt_jax.unrolling import layers_per_piece, one_piece_pays

# GPT-2's standard deviation for every matrix and embedding.
INIT_STD = 0.02
# The embedding has a multiple of so many rows: matrix units and meshes divide it well.
VOCAB_MULTIPLE = 128
# The name of the results that `remat="dots"` keeps for the backward pass.
MATMUL_OUTPUT = "matmul_output"

Indices = Int[Array, "B T"]
Hidden = Float[Array, "B T D"]
Rows = Int[Array, " B"]
Cache = tuple[KVCache, ...]  # one KVCache for each of the L layers


@dataclass(frozen=True)
class GPTConfig:
    """The shape of the model, which every checkpoint states. Defaults: GPT-2 124M."""

    vocab_size: int = 50257
    context: int = 1024
    layers: int = 12
    heads: int = 12
    embed: int = 768
    dropout: float = 0.0

    def __post_init__(self):
        if self.embed % self.heads:
            multiple = math.ceil(self.embed / self.heads) * self.heads
            raise InputError(
                f"model.embed {self.embed} must be a multiple of model.heads {self.heads}: "
                f"try {multiple}"
            )

    @property
    def head_dim(self) -> int:
        """K = D / H."""
        return self.embed // self.heads

    @property
    def mlp(self) -> int:
        """F = 4 D, the width inside an MLP."""
        return 4 * self.embed

    @property
    def padded_vocab(self) -> int:
        """V, the rows of the embedding: `vocab_size` rounded up to a multiple of VOCAB_MULTIPLE."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def dimensions(self) -> dict[str, int]:
        """Sizes of the dimensions of weights that a mesh may split."""
        vocab = self.padded_vocab
        return {"embed": self.embed, "heads": self.heads, "mlp": self.mlp, "vocab": vocab}

    @property
    def parameters(self) -> int:
        """Their number, without the rows that pad the embedding: 124,439,808 for GPT-2 124M."""
        embeddings = (self.vocab_size + self.context) * self.embed
        per_layer = 12 * self.embed**2 + 13 * self.embed
        return embeddings + self.layers * per_layer + 2 * self.embed

    @property
    def flops_per_token(self) -> int:
        """Of a forward and a backward pass (PaLM, appendix B).

        6 for each weight of a matrix (the tied embedding included), and 12 L D T for attention.
        """
        weights = 12 * self.layers * self.embed**2 + self.vocab_size * self.embed
        return 6 * weights + 12 * self.layers * self.embed * self.context


def resolve_compute_dtype(name: str = "auto", device: hardware.Device | None = None) -> str:
    """`name`, but for "auto": "bfloat16" where `device` multiplies it fast, else "float32".

    `device`: that of this machine by default.
    """
    if name != "auto":
        return name
    return "bfloat16" if (device or hardware.this_device()).has_bfloat16 else "float32"


def param_with_axes(
    module: nn.Module, name: str, init, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> Array:
    """A parameter of `module` whose dimensions have names, for sharding.py."""
    init = nn.with_logical_partitioning(init, axes)
    return module.param(name, init, shape)  # pyright: ignore[reportReturnType]


class Linear(nn.Module):
    """y = x W + b over the last `inputs` dimensions of x, which are the first of W.

    `shape` is the whole shape of W, which is not flattened, and `axes` names each dimension.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    inputs: int
    std: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`x` [..., *inputs] to [..., *outputs]."""
        init = nn.initializers.normal(self.std)
        kernel = param_with_axes(self, "kernel", init, self.shape, self.axes)
        output_shape = self.shape[self.inputs :]
        output_axes = self.axes[self.inputs :]
        bias = param_with_axes(self, "bias", nn.initializers.zeros, output_shape, output_axes)
        kernel = kernel.astype(self.dtype)
        bias = bias.astype(self.dtype)
        before = x.shape[: x.ndim - self.inputs]
        if is_split(self.axes):
            y = matmul_of_parts(x, kernel, self.inputs)
        else:
            # A GPU adds a flat bias at the end of its matmul.
            bias = bias.reshape(-1)
            x = x.reshape(*before, -1)
            y = jnp.matmul(x, kernel.reshape(x.shape[-1], len(bias)))
        y = checkpoint_name(y, MATMUL_OUTPUT)
        y = y + jnp.broadcast_to(bias, y.shape)
        return y.reshape(*before, *output_shape)


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
    "cudnn" or "xla", see `attention_kernel`.
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
            x = self._scan_layers(x, positions, segments, dropout_rows)
        else:
            x, cache = self._loop_over_layers(x, positions, cache)
        _, y = LayerNorm(self.dtype, name="ln_f")(x)
        return y, cache

    def _scan_layers(self, x, positions, segments, dropout_rows) -> Hidden:
        """All layers as one program that is compiled once, their parameters stacked [L, ...]."""
        block = Block
        if self.remat != "none":
            keep_matmuls = jax.checkpoint_policies.save_only_these_names(MATMUL_OUTPUT)
            policy = keep_matmuls if self.remat == "dots" else None
            block = nn.remat(Block, policy=policy, prevent_cse=False)
        devices = jax.sharding.get_abstract_mesh().size
        kernel = attention_kernel(self.attention, self.dtype, devices)
        pays = one_piece_pays(self.remat, kernel, is_split(("mlp",)))
        # Positions, segments and rows are the same for every layer, and there is no cache.
        broadcast: Any = (nn.broadcast,) * 4
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=broadcast,
            length=self.config.layers,
            unroll=layers_per_piece(self.unroll, self.config.layers, pays),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        # The name keeps the path of the parameters the same whatever `unroll` and `remat` are.
        layers = layers(self.config, self.dtype, self.attention, name="layers")
        return layers(x, None, positions, segments, dropout_rows)[0]

    def _loop_over_layers(self, x, positions, cache) -> tuple[Hidden, Cache]:
        """One layer after the other, each with its own parameters and its own part of the cache.

        A scan would copy the weights and the cache of each layer out of a stack, which takes half
        the time of a token.
        """
        new_cache = []
        for i, layer_cache in enumerate(cache):
            block = Block(self.config, self.dtype, self.attention, name=f"layer_{i}")
            x, layer_cache = block(x, layer_cache, positions, None, None)
            new_cache.append(layer_cache)
        return x, tuple(new_cache)


def grow_vocab(params: dict, old_size: int, config: GPTConfig) -> dict:
    """Weights for the larger `config.vocab_size`: new rows are the mean of the `old_size` old ones.

    The mean is no token in particular, so the first answers stay as good as before.
    """
    old_rows = params["wte"][:old_size]
    padded = jnp.pad(old_rows, ((0, config.padded_vocab - old_size), (0, 0)))
    ids = jnp.arange(config.padded_vocab)[:, None]
    is_new = (ids >= old_size) & (ids < config.vocab_size)
    return params | {"wte": jnp.where(is_new, old_rows.mean(0, keepdims=True), padded)}
