"""Each kernel must compute the same attention, and "auto" must choose one that the device has."""

from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from minigpt_jax import attention, tpu_attention
from minigpt_jax.attention import SHARED_SEGMENT, attention_kernel, choose_kernel, segment_mask
from minigpt_jax.errors import InputError
from minigpt_jax.hardware import Device
from minigpt_jax.sharding import AXIS_RULES, make_mesh
from minigpt_jax.tpu_attention import attend_with_splash

BLOCK = 5


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """Attention in blocks of 5 positions: a row of 17 takes four blocks, the last one shorter."""
    monkeypatch.setattr(attention, "MIN_BLOCK", BLOCK)


@pytest.mark.parametrize(
    ("implementation", "dtype", "platform", "capability", "kernel"),
    [
        ("auto", "bfloat16", "gpu", "9.0", "cudnn"),
        ("auto", jnp.bfloat16, "gpu", "9.0", "cudnn"),
        ("auto", "float32", "gpu", "9.0", "xla"),
        # A T4, and a GPU that is not NVIDIA's.
        ("auto", "bfloat16", "gpu", "7.5", "xla"),
        ("auto", "bfloat16", "gpu", "gfx90a", "xla"),
        ("auto", "bfloat16", "tpu", "", "splash"),
        ("auto", "float32", "tpu", "", "splash"),
        ("splash", "bfloat16", "tpu", "", "splash"),
        ("xla", "bfloat16", "tpu", "", "xla"),
        ("auto", "bfloat16", "cpu", "", "cpu"),
        ("auto", "float32", "cpu", "", "cpu"),
        ("xla", "bfloat16", "gpu", "9.0", "xla"),
        ("xla", "float32", "cpu", "", "xla"),
        ("cudnn", "bfloat16", "gpu", "8.0", "cudnn"),
    ],
)
def test_auto_chooses_a_kernel_that_the_device_supports(
    implementation, dtype, platform, capability, kernel
):
    device = Device(platform, capability)
    assert choose_kernel(implementation, dtype, 1, device) == kernel
    on_many_devices = "xla" if kernel == "cpu" else kernel
    assert choose_kernel(implementation, dtype, 2, device) == on_many_devices


@pytest.mark.parametrize(
    ("kernel", "dtype", "device"),
    [
        ("cudnn", "bfloat16", Device("cpu")),
        ("cudnn", "float32", Device("gpu", "9.0")),
        ("cudnn", "bfloat16", Device("gpu", "7.5")),
        ("cudnn", "bfloat16", Device("tpu")),
        ("splash", "bfloat16", Device("cpu")),
        ("splash", "bfloat16", Device("gpu", "9.0")),
    ],
)
def test_a_kernel_is_refused_where_it_cannot_run(kernel: str, dtype: str, device: Device):
    needed = "NVIDIA GPU" if kernel == "cudnn" else "a TPU"
    message = (
        rf"attention={kernel} .*{device.platform}.* needs .*{needed}.*; try compute\.attention"
    )
    with pytest.raises(InputError, match=message):
        choose_kernel(kernel, dtype, 1, device)


def test_the_kernel_is_chosen_for_the_first_device(monkeypatch):
    device = SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert attention_kernel("auto", "bfloat16", devices=8) == "cudnn"


@pytest.mark.parametrize("length", [3, 17])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_head_at_a_time_is_the_same_attention(length, documents, dtype):
    draw = np.random.default_rng(length)
    q, k, v, d_y = (jnp.asarray(draw.normal(size=(2, length, 3, 8)), dtype) for _ in range(4))
    mask = None
    if documents:
        mask = segment_mask(jnp.asarray(np.sort(draw.integers(0, 3, (2, length)))))

    @jax.jit
    def results_and_gradients(q, k, v, d_y):
        def run(attend):
            y, pull_back = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
            return y, *pull_back(d_y)

        return run(attention.attend_by_head), run(attention.attend_in_blocks)

    for found, expected in zip(*results_and_gradients(q, k, v, d_y), strict=True):
        assert found.dtype == expected.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(found, np.float32),
            np.asarray(expected, np.float32),
            atol=2e-6 if dtype == jnp.float32 else 5e-2,
        )


def test_a_segment_attends_to_itself_and_to_the_shared_segment():
    mask = segment_mask(jnp.array([[SHARED_SEGMENT, 1, 1, 2]]))
    assert mask[0].astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [1, 0, 0, 1],
    ]


@pytest.mark.parametrize(("documents", "data", "tensor"), [(False, 1, 1), (True, 2, 2)])
def test_splash_attention_is_the_same_attention(documents, data, tensor, monkeypatch):
    interpreted = partial(splash_attention.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", interpreted)
    # Padded to three blocks.
    length = 2 * tpu_attention.MIN_BLOCK + 1
    draw = np.random.default_rng(1)
    q, k, v, d_y = (draw.normal(size=(2, length, 2, 8)).astype(np.float32) for _ in range(4))
    segments = jnp.asarray(np.sort(draw.integers(0, 3, (2, length)))) if documents else None
    mask = None if segments is None else segment_mask(segments)

    def run(attend):
        y, pull_back = jax.vjp(attend, q, k, v)
        return y, *pull_back(jnp.asarray(d_y))

    mesh = make_mesh(data, 1, tensor, devices=jax.devices()[: data * tensor])
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(AXIS_RULES)):
        splash = jax.jit(partial(run, lambda *qkv: attend_with_splash(*qkv, segments)))
        found = splash()
        assert ("shard_map" in str(splash.trace().jaxpr)) == (mesh.size > 1)
    expected = jax.jit(partial(run, lambda *qkv: attention.attend_by_head(*qkv, mask)))()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
