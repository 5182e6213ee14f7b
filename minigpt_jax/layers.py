"""What both models are built from: linear layers, and the loops over the layers of a model.

Letters used everywhere: B batch, T time, D embed, H heads, K head dim, J half of K, F mlp, V vocab,
L layers, S cache length. Weights name their dimensions ("embed", "heads", "mlp", "vocab"), and
sharding.py maps these names to devices.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from minigpt_jax.attention import KVCache, attention_kernel
from minigpt_jax.functional import is_split, matmul_of_parts
from minigpt_jax.unrolling import layers_per_piece, one_piece_pays

# The name of the results that `remat="dots"` keeps for the backward pass.
MATMUL_OUTPUT = "matmul_output"

Indices = Int[Array, "B T"]
Hidden = Float[Array, "B T D"]
Cache = tuple[KVCache, ...]  # one KVCache for each of the L layers


def param_with_axes(
    module: nn.Module, name: str, init, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> Array:
    """A parameter of `module` whose dimensions have names, for sharding.py."""
    init = nn.with_logical_partitioning(init, axes)
    return module.param(name, init, shape)  # pyright: ignore[reportReturnType]


class Linear(nn.Module):
    """y = x W + b over the last `inputs` dimensions of x, which are the first of W.

    `shape` is the whole shape of W, which is not flattened, and `axes` names each dimension. W
    begins with the standard deviation `std`, b (if `use_bias`) with zeros.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    inputs: int
    std: float
    dtype: DTypeLike
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`x` [..., *inputs] to [..., *outputs]."""
        init = nn.initializers.normal(self.std)
        kernel = param_with_axes(self, "kernel", init, self.shape, self.axes)
        kernel = kernel.astype(self.dtype)
        output_shape = self.shape[self.inputs :]
        before = x.shape[: x.ndim - self.inputs]
        is_whole = not is_split(self.axes)
        if is_whole:
            x = x.reshape(*before, -1)
            y = jnp.matmul(x, kernel.reshape(x.shape[-1], -1))
        else:
            y = matmul_of_parts(x, kernel, self.inputs)
        y = checkpoint_name(y, MATMUL_OUTPUT)
        if self.use_bias:
            axes = self.axes[self.inputs :]
            bias = param_with_axes(self, "bias", nn.initializers.zeros, output_shape, axes)
            bias = bias.astype(self.dtype)
            # A GPU adds a flat bias at the end of its matmul.
            bias = bias.reshape(-1) if is_whole else bias
            y = y + jnp.broadcast_to(bias, y.shape)
        return y.reshape(*before, *output_shape)


def scan_layers(model: Any, block: type[nn.Module], x: Hidden, *shared: Any) -> Hidden:
    """All layers as one program that is compiled once, their parameters stacked [L, ...].

    To be called in `__call__` of `model`, a module with the fields of `GPT`. `block` is the class
    of a layer, and `shared` are the arguments after `x` and the cache, the same for every layer.
    """
    layer: Any = block
    if model.remat != "none":
        keep_matmuls = jax.checkpoint_policies.save_only_these_names(MATMUL_OUTPUT)
        policy = keep_matmuls if model.remat == "dots" else None
        layer = nn.remat(block, policy=policy, prevent_cse=False)
    devices = jax.sharding.get_abstract_mesh().size
    kernel = attention_kernel(model.attention, model.dtype, devices)
    pays = one_piece_pays(model.remat, kernel, is_split(("mlp",)))
    in_axes: Any = (nn.broadcast,) * (1 + len(shared))
    layers = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=model.config.layers,
        unroll=layers_per_piece(model.unroll, model.config.layers, pays),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    # The name keeps the path of the parameters the same whatever `unroll` and `remat` are.
    layers = layers(model.config, model.dtype, model.attention, name="layers")
    return layers(x, None, *shared)[0]


def loop_over_layers(
    model: Any, block: Any, x: Hidden, cache: Cache, *shared: Any
) -> tuple[Hidden, Cache]:
    """One layer after the other, each with its own parameters and its own part of the cache.

    Arguments as in `scan_layers`. A scan would copy the weights and the cache of each layer out of
    a stack, which takes half the time of a token.
    """
    new_cache = []
    for i, layer_cache in enumerate(cache):
        layer = block(model.config, model.dtype, model.attention, name=f"layer_{i}")
        x, layer_cache = layer(x, layer_cache, *shared)
        new_cache.append(layer_cache)
    return x, tuple(new_cache)
