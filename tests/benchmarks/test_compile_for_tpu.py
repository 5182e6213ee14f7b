"""A TPU that is not here is compiled for, where its library is; the kernels are counted."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from benchmarks.compile_for_tpu import described_tpus, mosaic_kernels
from minigpt_jax.attention import attend


def test_kernels_of_pallas_are_counted_by_name():
    text = """
      %splash_mha_fwd.3.1 = (bf16[8]) custom-call(%a), custom_call_target="tpu_custom_call"
      %splash_mha_fwd.2 = (bf16[8]) custom-call(%a), custom_call_target="tpu_custom_call"
      %splash_mha_dq = bf16[8] custom-call(%a), custom_call_target="tpu_custom_call"
      %pad.1 = bf16[8] custom-call(%splash_mha_dq), custom_call_target="Pad"
    """
    assert mosaic_kernels(text) == {"splash_mha_fwd": 2, "splash_mha_dq": 1}


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("length", "width", "dtype"),
    [
        (1024, 64, jnp.bfloat16),
        (200, 96, jnp.float32),
        (640, 80, jnp.bfloat16),
        (1024, 100, jnp.bfloat16),
        (2048, 8, jnp.float32),
        (4096, 256, jnp.float32),
    ],
)
def test_attention_compiles_for_a_tpu(length: int, width: int, dtype):
    pytest.importorskip("libtpu")
    with described_tpus("v5e:2x2", 1) as devices:
        sharding = SingleDeviceSharding(devices[0])
        q = jax.ShapeDtypeStruct((2, length, 2, width), dtype, sharding=sharding)
        segments = jax.ShapeDtypeStruct((2, length), jnp.int32, sharding=sharding)

        def gradients(q, k, v, segments):
            return jax.vjp(lambda *qkv: attend(*qkv, segments, "auto"), q, k, v)[1](q)

        text = jax.jit(gradients).lower(q, q, q, segments).compile().as_text()
    assert sum(mosaic_kernels(text).values()) == 3
