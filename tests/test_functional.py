"""Functions with backward passes of their own: they give what automatic differentiation gives, in
the precision of their input, and keep nothing of the activations' shape in f32.
"""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from minigpt_jax import hardware
from minigpt_jax.functional import (
    LAYER_NORM_EPS,
    RMS_NORM_EPS,
    dropout,
    gelu,
    layer_norm,
    matmul_of_parts,
    relu_squared,
    rms_norm,
    rotate_and_normalise,
)
from minigpt_jax.kernel_choice import (
    MAX_NORM_WIDTH,
    has_kernels,
    loss_kernels,
    norm_kernels,
    rotary_kernels,
)
from minigpt_jax.sharding import make_mesh


def plain_layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return x, centred / jnp.sqrt(variance + LAYER_NORM_EPS) * scale[None, None] + bias[None, None]


def plain_gelu(x):
    return 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def plain_rms_norm(x):
    return x, x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + RMS_NORM_EPS)


def plain_rotation(x, cos, sin):
    """Complex numbers times exp(-i angle), then `plain_rms_norm`."""
    half = x.shape[-1] // 2
    turned = jax.lax.complex(x[..., :half], x[..., half:]) * jax.lax.complex(cos, -sin)
    return plain_rms_norm(jnp.concatenate([turned.real, turned.imag], -1))[1]


def plain_relu_squared(x):
    return jnp.where(x > 0, x * x, 0)


ANGLES = np.random.default_rng(1).normal(size=(2, 8, 1, 2))
NANOCHAT_FUNCTIONS = [
    (rms_norm, plain_rms_norm, (2, 8, 16)),
    (
        lambda x: rotate_and_normalise(x, *rotation(x.dtype)),
        lambda x: plain_rotation(x, *rotation(x.dtype)),
        (2, 8, 3, 4),
    ),
    (relu_squared, plain_relu_squared, (2, 8, 16)),
]


def rotation(dtype) -> tuple[jax.Array, jax.Array]:
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.asarray(np.cos(ANGLES), wide), jnp.asarray(np.sin(ANGLES), wide)


@pytest.fixture(scope="module")
def arrays():
    """x [2, 8, 16], scale, bias, and gradients of the two results."""
    draw = np.random.default_rng(0)
    shapes = (2, 8, 16), (16,), (16,), (2, 8, 16), (2, 8, 16)
    return [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint])
@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)])
def test_layer_norm_and_its_gradients(arrays, dtype, atol, wrap):
    x, scale, bias, *gradients = arrays
    expected, plain_pullback = jax.vjp(plain_layer_norm, x, scale, bias)
    narrow_x, *narrow = (a.astype(dtype) for a in (x, *gradients))
    found, pullback = jax.vjp(wrap(partial(layer_norm, dtype=dtype)), narrow_x, scale, bias)
    results = (*found, *pullback(tuple(narrow)))
    assert [a.dtype for a in results] == [dtype, dtype, dtype, jnp.float32, jnp.float32]
    for a, b in zip(results, (*expected, *plain_pullback(tuple(gradients))), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=atol)


def test_dropout_of_a_row_depends_on_the_key_and_its_number_alone():
    x = jnp.ones((3, 200, 10))
    key = jax.random.key(0)
    found = dropout(x, 0.25, key, jnp.array([5, 7, 5]))
    assert sorted(set(np.unique(found))) == pytest.approx([0, 4 / 3])
    assert found.mean() == pytest.approx(1, abs=0.05)
    assert jnp.array_equal(found[0], found[2]) and not jnp.array_equal(found[0], found[1])
    assert jnp.array_equal(found[1:2], dropout(x[:1], 0.25, key, jnp.array([7])))
    other = dropout(x[:1], 0.25, jax.random.key(1), jnp.array([7]))
    assert not jnp.array_equal(found[1:2], other)


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.02)])
def test_gelu_and_its_gradient(arrays, dtype, atol):
    x, *_, d_y = arrays
    expected, plain_pullback = jax.vjp(plain_gelu, x)
    found, pullback = jax.vjp(gelu, x.astype(dtype))
    (d_x,) = pullback(d_y.astype(dtype))
    assert found.dtype == d_x.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=atol)
    np.testing.assert_allclose(d_x.astype(jnp.float32), plain_pullback(d_y)[0], atol=atol)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-12), (jnp.bfloat16, 0.02)])
@pytest.mark.parametrize(
    ("function", "plain", "shape"), NANOCHAT_FUNCTIONS, ids=["RMSNorm", "rotation", "ReLU squared"]
)
def test_the_functions_of_nanochat_and_their_gradients(function, plain, shape, dtype, tolerance):
    draw = np.random.default_rng(0)
    x = draw.normal(size=shape)
    # Vectors of zeros, and of large and small numbers.
    x[0, 0] = 0
    x[0, 1] *= 1e4
    x[0, 2] *= 1e-4
    with jax.enable_x64(True):
        narrow = jnp.asarray(x, dtype)
        wide = narrow.astype(jnp.float64)
        expected, plain_pullback = jax.vjp(plain, wide)
        found, pullback = jax.vjp(function, narrow)
        gradients = jax.tree.map(lambda a: jnp.asarray(draw.normal(size=a.shape), dtype), found)
        (d_x,) = pullback(gradients)
        (plain_d_x,) = plain_pullback(jax.tree.map(lambda g: g.astype(jnp.float64), gradients))
        results = (*jax.tree.leaves(found), d_x)
        for a, b in zip(results, (*jax.tree.leaves(expected), plain_d_x), strict=True):
            assert a.dtype == dtype
            # Where parts of a gradient cancel, what is left has the error of the parts.
            largest = jnp.abs(b).max(-1, keepdims=True)
            error = jnp.abs(a.astype(jnp.float64) - b)
            assert (error <= tolerance * (largest + 1)).all()


@pytest.mark.parametrize(("kernel_shape", "inputs"), [((16, 3, 2), 1), ((8, 16, 5), 2)])
def test_matmul_of_parts_is_a_tensordot_and_sums_in_float32(arrays, kernel_shape, inputs):
    x = arrays[0].astype(jnp.bfloat16)
    kernel = jnp.ones(kernel_shape, jnp.bfloat16)
    expected, plain_pullback = jax.vjp(lambda x, w: jnp.tensordot(x, w, inputs), x, kernel)
    found, pullback = jax.vjp(lambda x, w: matmul_of_parts(x, w, inputs), x, kernel)
    for a, b in zip((found, *pullback(found)), (expected, *plain_pullback(found)), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b)
    sums = str(jax.make_jaxpr(pullback)(found)) + str(
        jax.make_jaxpr(partial(matmul_of_parts, inputs=inputs))(x, kernel)
    )
    assert sums.count("preferred_element_type=float32") == 2


def test_the_backward_passes_keep_their_input_alone(arrays):
    x, scale, bias, *_ = arrays
    x = x.astype(jnp.bfloat16)

    def kept(function, *arguments):
        _, pullback = jax.eval_shape(partial(jax.vjp, function), *arguments)
        return {(a.shape, a.dtype.type) for a in jax.tree.leaves(pullback)}

    norm = kept(partial(layer_norm, dtype=jnp.bfloat16), x, scale, bias)
    assert norm == {(x.shape, ml_dtypes.bfloat16), (scale.shape, np.float32)}
    only_x = {(x.shape, ml_dtypes.bfloat16)}
    assert kept(gelu, x) == kept(rms_norm, x) == kept(relu_squared, x) == only_x
    heads = x.reshape(2, 8, 4, 4)
    rotated = kept(rotate_and_normalise, heads, *rotation(x.dtype))
    number_per_head = ((2, 8, 4, 1), np.float32)
    angles = (ANGLES.shape, np.float32)
    assert rotated == {(heads.shape, ml_dtypes.bfloat16), number_per_head, angles}


# ---- where the kernels for NVIDIA GPUs run


def rows(dtype=jnp.bfloat16, width: int = 96) -> jax.Array:
    return jnp.zeros((4, width), dtype)


def test_a_cpu_runs_no_kernel_for_gpus():
    assert loss_kernels(rows()) is norm_kernels(rows()) is rotary_kernels(rows()) is None


def test_kernels_run_on_an_ampere_gpu_that_has_whole_rows(monkeypatch):
    device = hardware.Device("gpu", "8.0")
    monkeypatch.setattr(hardware, "this_device", lambda: device)
    assert loss_kernels(rows()) is norm_kernels(rows(jnp.float32)) is not None
    # Float64 would be rounded, and wide rows need too many registers.
    double = np.zeros((4, 96))
    assert loss_kernels(double) is norm_kernels(double) is None
    # Blocks of a kernel have powers of 2.
    assert rotary_kernels(rows(width=64)) and not rotary_kernels(rows(width=96))
    assert norm_kernels(rows(width=MAX_NORM_WIDTH + 1)) is None
    device = hardware.Device("gpu", "7.5")
    assert loss_kernels(rows()) is None


def test_the_environment_turns_the_kernels_off(monkeypatch):
    device = hardware.Device("gpu", "9.0")
    monkeypatch.setattr(hardware, "this_device", lambda: device)
    assert has_kernels(device, tensor=1) and not has_kernels(device, tensor=2)
    assert not has_kernels(hardware.Device("gpu", "gfx90a"), tensor=1)
    monkeypatch.setenv("MINIGPT_TRITON", "0")
    assert loss_kernels(rows()) is norm_kernels(rows()) is None
    assert not has_kernels(device, tensor=1)


def test_kernels_run_only_where_xla_splits_nothing(monkeypatch):
    monkeypatch.setattr(hardware, "this_device", lambda: hardware.Device("gpu", "9.0"))
    mesh = make_mesh(2, 1, 2)
    whole = jax.sharding.PartitionSpec()

    def inside_of_shard_map(axes: set[str]):
        found = []

        def of_device(x):
            found.append(norm_kernels(x))
            return x

        split = jax.shard_map(of_device, in_specs=whole, out_specs=whole, axis_names=axes)
        jax.eval_shape(jax.jit(split), rows())
        return found[0]

    with jax.set_mesh(mesh):
        assert norm_kernels(rows()) is None
        assert inside_of_shard_map({"data", "fsdp"}) is None
        assert inside_of_shard_map({"data", "fsdp", "tensor"}) is not None
