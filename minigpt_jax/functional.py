"""Normalisation, activation functions and a matmul with backward passes of their own.

All but the matmul take little arithmetic and move whole activations, so on a GPU their time is the
bytes they move. What automatic differentiation keeps for the backward pass (f32 arrays of the
activations' shape) would move twice as many. The matmul is for matrices that devices share.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from minigpt_jax.kernel_choice import norm_kernels, rotary_kernels

# GPT-2's; Flax has 1e-6.
LAYER_NORM_EPS = 1e-5
# NanoChat's.
RMS_NORM_EPS = 1e-6

# Queries, keys and values.
Heads = tuple[Float[Array, "B T H K"], Float[Array, "B T H K"], Float[Array, "B T H K"]]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "B T D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"],
    dtype: DTypeLike,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """`x` itself, and LayerNorm (Ba et al. 2016) of it over the last dimension.

    Computed in f32 at least; the result has `dtype`. What follows uses this `x`, so that its
    gradient is added in the pass that computes the gradient of the normalisation. The backward pass
    keeps `x` alone.
    """
    return _layer_norm_forward(x, scale, bias, dtype)[0]


def _layer_norm_forward(x, scale, bias, dtype):
    normal, _ = _normalise(x)
    y = normal * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(bias, x.shape)
    return (x, y.astype(dtype)), (x, scale)


def _normalise(x):
    wide = _widen(x)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    inverse_std = jax.lax.rsqrt(variance + LAYER_NORM_EPS)
    return (wide - mean) * inverse_std, inverse_std


def _layer_norm_backward(_dtype, residuals, gradients):
    x, scale = residuals
    d_x, d_y = gradients
    flat_x, flat_d_y, flat_d_x = (a.reshape(-1, a.shape[-1]) for a in (x, d_y, d_x))
    if kernels := norm_kernels(flat_x):
        flat_d_x, d_scale, d_bias = kernels.layer_norm_backward(
            flat_x, flat_d_y, flat_d_x, scale, LAYER_NORM_EPS
        )
        return flat_d_x.reshape(x.shape), d_scale, d_bias
    normal, inverse_std = _normalise(x)
    d_y = d_y.astype(normal.dtype)
    d_normal = d_y * jnp.broadcast_to(scale, x.shape)
    # The mean and the variance depend on x too: their parts of the gradient are taken off.
    along_mean = d_normal.mean(-1, keepdims=True)
    along_normal = (d_normal * normal).mean(-1, keepdims=True)
    d_x = d_x + inverse_std * (d_normal - along_mean - normal * along_normal)
    others = tuple(range(x.ndim - 1))
    d_scale = (d_y * normal).sum(others).astype(scale.dtype)
    d_bias = d_y.sum(others).astype(scale.dtype)
    return d_x.astype(x.dtype), d_scale, d_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def rms_norm(x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """`x` itself, and RMSNorm (Zhang & Sennrich 2019) of it over the last dimension, unweighted.

    Computed in f32 at least. As with `layer_norm`, what follows uses this `x`, and the backward
    pass keeps `x` alone.
    """
    return _rms_norm_forward(x)[0]


def _rms_norm_forward(x):
    wide = _widen(x)
    return (x, (wide * _inverse_rms(wide)).astype(x.dtype)), x


def _rms_norm_backward(x, gradients):
    d_x, d_y = gradients
    flat_x, flat_d_y, flat_d_x = (a.reshape(-1, a.shape[-1]) for a in (x, d_y, d_x))
    if kernels := norm_kernels(flat_x):
        flat_d_x = kernels.rms_norm_backward(flat_x, flat_d_y, flat_d_x, RMS_NORM_EPS)
        return (flat_d_x.reshape(x.shape),)
    wide = _widen(x)
    inverse = _inverse_rms(wide)
    return ((d_x + _rms_norm_gradient(wide * inverse, inverse, _widen(d_y))).astype(x.dtype),)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def _inverse_rms(x):
    return jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + RMS_NORM_EPS)


def _rms_norm_gradient(y, inverse, d_y):
    """The gradient of the input, from the result `y` and its gradient."""
    # The mean square depends on the input too: its part of the gradient is taken off.
    return inverse * (d_y - y * (d_y * y).mean(-1, keepdims=True))


@jax.custom_vjp
def rotate_and_normalise(
    x: Float[Array, "B T H K"], cos: Float[Array, "B T 1 J"], sin: Float[Array, "B T 1 J"]
) -> Float[Array, "B T H K"]:
    """Rotary positions (Su et al. 2021), then RMSNorm over the last dimension, K = 2 J.

    The halves a and b of a head become a cos + b sin and b cos - a sin: a rotation by minus the
    angle, as NanoChat has it; the usual sign is the other. Computed in f32 at least. The backward
    pass keeps the result, which attention keeps anyway, and one number for each head.
    """
    return _rotate_and_normalise_forward(x, cos, sin)[0]


def _rotate_and_normalise_forward(x, cos, sin):
    wide = _widen(x)
    # A rotation does not change it.
    inverse = _inverse_rms(wide)
    y = (_rotate(wide, cos, sin) * inverse).astype(x.dtype)
    return y, (y, inverse, cos, sin)


def _rotate(x, cos, sin):
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)


def _rotate_and_normalise_backward(residuals, d_y):
    y, inverse, cos, sin = residuals
    d_rotated = _rms_norm_gradient(_widen(y), inverse, _widen(d_y))
    return _rotate(d_rotated, cos, -sin).astype(y.dtype), None, None


rotate_and_normalise.defvjp(_rotate_and_normalise_forward, _rotate_and_normalise_backward)


def queries_keys_values(
    qkv: Float[Array, "B T 3 H K"], cos: Float[Array, "B T 1 J"], sin: Float[Array, "B T 1 J"]
) -> Heads:
    """The three parts of `qkv`, queries and keys after `rotate_and_normalise`."""
    if rotary_kernels(qkv):
        return _heads_by_kernel(qkv, cos, sin)
    q, k, v = (jnp.squeeze(part, 2) for part in jnp.split(qkv, 3, axis=2))
    return rotate_and_normalise(q, cos, sin), rotate_and_normalise(k, cos, sin), v


@jax.custom_vjp
def _heads_by_kernel(qkv, cos, sin):
    """`queries_keys_values`, which reads and writes each array once."""
    return _heads_forward(qkv, cos, sin)[0]


def _heads_forward(qkv, cos, sin):
    kernels = rotary_kernels(qkv)
    assert kernels
    cos, sin = (a.reshape(-1, a.shape[-1]) for a in (cos, sin))
    *heads, inverse = kernels.rotate_heads(_flat_rows(qkv), cos, sin, RMS_NORM_EPS)
    q, k, v = (a.reshape(*qkv.shape[:2], *a.shape[1:]) for a in heads)
    return (q, k, v), (q, k, inverse, cos, sin)


def _heads_backward(residuals, gradients):
    q, k, inverse, cos, sin = residuals
    kernels = rotary_kernels(q)
    assert kernels
    d_qkv = kernels.rotate_heads_backward(
        _flat_rows(q), _flat_rows(k), inverse, cos, sin, tuple(map(_flat_rows, gradients))
    )
    return d_qkv.reshape(*q.shape[:2], *d_qkv.shape[1:]), None, None


_heads_by_kernel.defvjp(_heads_forward, _heads_backward)


def _flat_rows(x):
    return x.reshape(-1, *x.shape[2:])


def dropout(
    x: Float[Array, "B T D"], rate: float, key: Array, rows: Int[Array, " B"]
) -> Float[Array, "B T D"]:
    """Dropout (Srivastava et al. 2014): 0 with probability `rate`, else 1 / (1 - `rate`) times x.

    What a row keeps depends on `key` and its number in `rows` alone, so it is the same however
    devices and micro-batches share the rows.
    """

    def kept(row):
        return jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(kept)(rows), x / (1 - rate), 0)


@jax.custom_vjp
def gelu(x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """GELU (Hendrycks & Gimpel 2016) in GPT-2's form, with tanh.

    The backward pass keeps `x` alone. XLA may then compute GELU at the end of the matmul that makes
    `x`, before the result leaves the processor.
    """
    return nn.gelu(x, approximate=True)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, d_y):
    _, pullback = jax.vjp(partial(nn.gelu, approximate=True), _widen(x))
    (d_x,) = pullback(_widen(d_y))
    return (d_x.astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def relu_squared(x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """max(x, 0) squared (So et al. 2021). Keeps its result alone, whose root is max(x, 0)."""
    return _relu_squared_forward(x)[0]


def _relu_squared_forward(x):
    y = jnp.square(jnp.maximum(x, 0))
    return y, y


def _relu_squared_backward(y, d_y):
    return ((2 * jnp.sqrt(_widen(y)) * d_y).astype(y.dtype),)


relu_squared.defvjp(_relu_squared_forward, _relu_squared_backward)


def is_split(axes: tuple[str | None, ...]) -> bool:
    """Whether XLA splits an array with dimensions of these names over several devices."""
    sizes = jax.sharding.get_abstract_mesh().shape
    # A dimension may be split over several axes of the mesh.
    used = jax.tree.leaves(tuple(nn.logical_to_mesh_axes(axes) or ()))
    return any(sizes.get(axis, 1) > 1 for axis in used)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul_of_parts(
    x: Float[Array, "..."], kernel: Float[Array, "..."], inputs: int
) -> Float[Array, "..."]:
    """`jnp.tensordot(x, kernel, inputs)`, where XLA splits `kernel` over devices.

    What devices add to a result crosses between them in f32 at least, and so does the gradient of
    `x`: one device rounds such a sum once, at its end.
    """
    return _sum_in_f32(x, kernel, inputs)


def _matmul_forward(x, kernel, inputs):
    return matmul_of_parts(x, kernel, inputs), (x, kernel)


def _matmul_backward(inputs, residuals, d_y):
    x, kernel = residuals
    outputs = tuple(range(inputs - kernel.ndim, 0))
    before = tuple(range(x.ndim - inputs))
    d_x = _sum_in_f32(d_y, kernel, (outputs, outputs))
    return d_x, jnp.tensordot(x, d_y, (before, before))


matmul_of_parts.defvjp(_matmul_forward, _matmul_backward)


def _sum_in_f32(a, b, axes):
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.tensordot(a, b, axes, preferred_element_type=wide).astype(a.dtype)


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
