"""The model: a GPT-2 decoder (Radford et al. 2019) in Flax linen, from token ids to final hidden states.

Letters used everywhere: B batch, T time, D embed, H heads, K head dim, F mlp, V vocabulary, L layers, S cache length.
Weights name their dimensions ("embed", "heads", "mlp", "vocab"); mesh.py decides what that means on devices. The
model stops at hidden states: loss.py and generate.py multiply with `params["wte"]`, the tied embedding, themselves,
each in pieces of the size it needs.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from minigpt_jax.attention import (
    SHARED_SEGMENT,
    attend,
    attend_by_head,
    attend_masked,
    attention_kernel,
    block_length,
    recompute_in_backward,
    swap_time_and_heads,
    write_cache,
)
from minigpt_jax.errors import InputError

INIT_STD = 0.02  # GPT-2's, for every matrix and embedding
LAYER_NORM_EPS = 1e-5  # GPT-2's LayerNorm; Flax's default is another
VOCAB_MULTIPLE = 128  # rows of the vocabulary come in multiples of so many
MATMUL_OUTPUT = "product"  # what `remat` "dots" keeps


@dataclass(frozen=True)
class GPTConfig:
    """What the weights are: everything that a checkpoint must state so that they can be used. Defaults: GPT-2 124M."""

    vocab_size: int = 50257
    context: int = 1024
    layers: int = 12
    heads: int = 12
    embed: int = 768
    dropout: float = 0.0

    def __post_init__(self):
        if self.embed % self.heads:
            raise InputError(
                f"model.embed {self.embed} must be a multiple of model.heads {self.heads}: try {math.ceil(self.embed / self.heads) * self.heads}"
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
        """Rows of the embedding: `vocab_size` rounded up to a multiple of VOCAB_MULTIPLE, which matrix units and tensor meshes divide well."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def parameters(self) -> int:
        """Live parameters: 124,439,808 for GPT-2 small. The padded rows of the embedding do not count."""
        per_layer = 12 * self.embed**2 + 13 * self.embed
        return (
            (self.vocab_size + self.context) * self.embed + self.layers * per_layer + 2 * self.embed
        )

    @property
    def flops_per_token(self) -> float:
        """Forward and backward: 6 per matrix weight (tied embedding included), and 12 L D T for attention (PaLM, appendix B)."""
        weights = 12 * self.layers * self.embed**2 + self.vocab_size * self.embed
        return 6 * weights + 12 * self.layers * self.embed * self.context


class KVCache(NamedTuple):
    """One layer's keys and values of the tokens seen so far, slot s holding position s of each row's own sequence.

    Heads come first, as products want them: another order is copied for every token.
    """

    k: jax.Array | np.ndarray  # [B, H, S, K]
    v: jax.Array | np.ndarray  # [B, H, S, K]


Cache = tuple[KVCache, ...]  # of the L layers


def empty_cache(
    config: GPTConfig, batch: int, dtype: jax.typing.DTypeLike, length: int | None = None
) -> Cache:
    """A cache on the host for `batch` sequences of up to `length` (default: the context) tokens; the caller places it."""
    slots = config.context if length is None else length
    shape = (batch, config.heads, slots, config.head_dim)
    return tuple(
        KVCache(np.zeros(shape, jnp.dtype(dtype)), np.zeros(shape, jnp.dtype(dtype)))
        for _ in range(config.layers)
    )


def unstack(params: dict) -> dict:
    """The parameters that `GPT` takes together with a cache: those of each layer by themselves, "layer_0" on."""
    layers = params["layers"]
    count = len(jax.tree.leaves(layers)[0])
    own = {f"layer_{i}": jax.tree.map(lambda a, i=i: a[i], layers) for i in range(count)}
    return {name: value for name, value in params.items() if name != "layers"} | own


def weight(
    module: nn.Module, name: str, init, shape: tuple[int, ...], names: tuple[str | None, ...]
) -> jax.Array:
    """A parameter of `module` whose dimensions have names for mesh.py."""
    return module.param(name, nn.with_logical_partitioning(init, names), shape)  # pyright: ignore[reportReturnType]


class Linear(nn.Module):
    """y = x W + b over the last `inputs` dimensions of x, which W lists first; W keeps its true shape and its names."""

    shape: tuple[int, ...]
    names: tuple[str | None, ...]
    inputs: int
    std: float
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x):
        kernel = weight(self, "kernel", nn.initializers.normal(self.std), self.shape, self.names)
        bias = weight(
            self,
            "bias",
            nn.initializers.zeros,
            self.shape[self.inputs :],
            self.names[self.inputs :],
        )
        y = checkpoint_name(jnp.tensordot(x, kernel.astype(self.dtype), self.inputs), MATMUL_OUTPUT)
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


@recompute_in_backward
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last dimension of `x` [B, T, D], in f32 at least."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x - x.mean(-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPS)
    return normal * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(bias, x.shape)


@recompute_in_backward
def gelu(x: jax.Array) -> jax.Array:
    """GPT-2's form of it, with tanh."""
    return nn.gelu(x, approximate=True)


class LayerNorm(nn.Module):
    """Normalise the last dimension; statistics in f32 at least, whatever the compute dtype."""

    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x):
        scale = weight(self, "scale", nn.initializers.ones, x.shape[-1:], ("embed",))
        bias = weight(self, "bias", nn.initializers.zeros, x.shape[-1:], ("embed",))
        return normalise(x, scale, bias).astype(self.dtype)


class Attention(nn.Module):
    """Causal self-attention; with a cache, over everything the cache holds up to each query's position."""

    config: GPTConfig
    dtype: jax.typing.DTypeLike
    implementation: str

    @nn.compact
    def __call__(self, x, positions, segments, cache: KVCache | None):
        c = self.config
        qkv_shape, qkv_names = (c.embed, 3, c.heads, c.head_dim), ("embed", None, "heads", None)
        qkv = Linear(qkv_shape, qkv_names, 1, INIT_STD, self.dtype, name="qkv")(x)
        q, k, v = (qkv[:, :, i] for i in range(3))
        q, k, v = (nn.with_logical_constraint(a, ("batch", None, "heads", None)) for a in (q, k, v))
        visible = (
            None
            if segments is None
            else (segments[:, :, None] == segments[:, None, :])
            | (segments == SHARED_SEGMENT)[:, None, :]
        )
        kernel = attention_kernel(
            self.implementation, self.dtype, jax.sharding.get_abstract_mesh().size
        )
        if cache is not None:
            # Slots are positions, so "causal" alone says what a query may see: anything stale lies ahead of it and is
            # overwritten before it comes into view. A position beyond the cache (padding) is dropped, not clamped.
            cache = KVCache(
                *(
                    write_cache(jnp.asarray(old), new.astype(old.dtype), positions)
                    for old, new in ((cache.k, k), (cache.v, v))
                )
            )
            k, v = cache
            seen = jnp.arange(k.shape[2])[None, None] <= positions[:, :, None]
            y = swap_time_and_heads(
                attend_masked(
                    swap_time_and_heads(q), k.astype(self.dtype), v.astype(self.dtype), seen
                )
            )
        elif kernel == "cudnn":
            mask = None if visible is None else visible[:, None]
            y = jax.nn.dot_product_attention(
                q, k, v, mask=mask, is_causal=True, implementation="cudnn"
            )
        elif kernel == "cpu":
            y = attend_by_head(block_length(x.shape[1]), q, k, v, visible)
        else:
            y = attend(q, k, v, visible)
        std = INIT_STD / math.sqrt(
            2 * c.layers
        )  # each layer adds to the residual twice: keep its variance flat
        return Linear(
            (c.heads, c.head_dim, c.embed), ("heads", None, "embed"), 2, std, self.dtype, name="out"
        )(y), cache


def resolve_compute_dtype(name: str = "auto", platform: str | None = None) -> str:
    """What "auto" means on `platform` (default: this machine's): "float32" on a CPU, otherwise "bfloat16".

    Steps in bfloat16 were measured to take longer on a CPU.
    """
    if name != "auto":
        return name
    return "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"


class MLP(nn.Module):
    """Two layers, four times as wide inside, with GPT-2's tanh form of GELU."""

    config: GPTConfig
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x):
        c = self.config
        std = INIT_STD / math.sqrt(2 * c.layers)
        x = Linear((c.embed, c.mlp), ("embed", "mlp"), 1, INIT_STD, self.dtype, name="up")(x)
        x = nn.with_logical_constraint(gelu(x), ("batch", None, "mlp"))
        return Linear((c.mlp, c.embed), ("mlp", "embed"), 1, std, self.dtype, name="down")(x)


class Block(nn.Module):
    """One layer of the pre-LayerNorm transformer: x + attention, then + MLP."""

    config: GPTConfig
    dtype: jax.typing.DTypeLike
    attention: str
    deterministic: bool

    @nn.compact
    def __call__(self, x, cache, positions, segments):
        dropout = nn.Dropout(self.config.dropout, deterministic=self.deterministic)
        normal = LayerNorm(self.dtype, name="ln_1")(x)
        y, cache = Attention(self.config, self.dtype, self.attention, name="attention")(
            normal, positions, segments, cache
        )
        x = x + dropout(y)
        y = MLP(self.config, self.dtype, name="mlp")(LayerNorm(self.dtype, name="ln_2")(x))
        x = nn.with_logical_constraint(x + dropout(y), ("batch", None, None))
        return x, cache


class GPT(nn.Module):
    """Token ids to hidden states. The config says what the weights are, the other fields only how to compute.

    `remat` trades memory for time: "none" keeps all activations, "dots" the matrix products, "full" only what lies
    between layers. `unroll` layers are compiled as one piece: more may be faster to run, is slower to compile, and lets
    XLA keep what it should compute again, so it takes more memory than the plan says.
    `attention`: "auto", "cudnn" (NVIDIA, 16 bit) or "xla": see `attention_kernel`.
    """

    config: GPTConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"

    @nn.compact
    def __call__(
        self,
        tokens,
        positions=None,
        segments=None,
        cache: Cache | None = None,
        deterministic: bool = True,
    ):
        """Hidden states [B, T, D] after the final LayerNorm, and the cache with these tokens added (None stays None).

        With a cache the parameters are those of `unstack`: a scan over a stack copies each layer's weights and cache before
        it uses them, which is nothing beside a batch of long rows and half the time of a single token.

        `tokens` [B, T]; `positions` [B, T] (default 0..T-1); `segments` [B, T]: tokens see only their own segment
        and SHARED_SEGMENT ones (not together with a cache). Positions beyond the context are not checked here: callers do, on the
        host. With dropout and `deterministic=False` it needs a "dropout" key.
        """
        c = self.config
        init = nn.initializers.normal(INIT_STD)
        wte = weight(self, "wte", init, (c.padded_vocab, c.embed), ("vocab", "embed"))
        wpe = weight(self, "wpe", init, (c.context, c.embed), (None, "embed"))
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = wte.astype(self.dtype)[tokens] + wpe.astype(self.dtype)[positions]
        x = nn.with_logical_constraint(x, ("batch", None, None))
        x = nn.Dropout(c.dropout, deterministic=deterministic)(x)
        if cache is None:
            x = self._scan(x, positions, segments, deterministic)
        else:
            x, cache = self._step(x, positions, cache)
        return LayerNorm(self.dtype, name="ln_f")(x), cache

    def _scan(self, x, positions, segments, deterministic):
        """All layers as one that is compiled once."""
        block = Block
        if self.remat != "none":
            policy = (
                jax.checkpoint_policies.save_only_these_names(MATMUL_OUTPUT)
                if self.remat == "dots"
                else None
            )
            block = nn.remat(Block, policy=policy, prevent_cse=False)
        # One set of parameters [L, ...] whatever `unroll` and `remat` are: `name` keeps their path the same.
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.config.layers,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, self.dtype, self.attention, deterministic, name="layers")
        return layers(x, None, positions, segments)[0]

    def _step(self, x, positions, cache: Cache):
        """Layer after layer, each with its own parameters and its own part of the cache."""
        grown = []
        for i, own in enumerate(cache):
            x, own = Block(
                self.config, self.dtype, self.attention, deterministic=True, name=f"layer_{i}"
            )(x, own, positions, None)
            grown.append(own)
        return x, tuple(grown)


def grow_vocab(params: dict, old: int, new: GPTConfig) -> dict:
    """Weights with `new.vocab_size` live rows instead of `old`; the added ones start as the mean of the others.

    The mean is a point the model treats as no word in particular, so the first answers are not thrown off.
    """
    table = params["wte"]
    live = table[:old]
    rows = jnp.arange(new.padded_vocab)[:, None]
    padded = jnp.pad(live, ((0, new.padded_vocab - old), (0, 0)))
    return params | {
        "wte": jnp.where(
            (rows >= old) & (rows < new.vocab_size), live.mean(0, keepdims=True), padded
        )
    }
