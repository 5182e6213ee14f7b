"""Compile for NVIDIA GPUs that are not here: JAX's CUDA plugin needs their description alone.

Nothing runs on them. Memory, text and collectives of a compiled program are decisions of the
compiler, so they are known without a device; times are not. Autotuning is off, because it times
kernels, so a device that is here may get other ones.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from minigpt_jax import hardware
from minigpt_jax.errors import InputError, first_line

# For `lowered.compile(compiler_options=...)`. Without autotuning XLA would take Triton's matmuls,
# whose default tiles are poor.
COMPILER_OPTIONS = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_enable_cublaslt": True,
}
CUDNN_VERSION = 91000


class Description(NamedTuple):
    """What XLA must know of a GPU."""

    name: str
    # The first digit of its compute capability. The second is 0 in all of DESCRIPTIONS.
    capability: int
    cores: int
    # Of one core: f32 units, and bytes of shared memory.
    units: int
    shared_memory: int
    clock_ghz: float
    cache: int  # bytes
    bandwidth: int  # bytes per second
    memory: int  # bytes


# As XLA describes them itself, in its folder xla/backends/gpu/target_config/specs. By the names
# of hardware.ACCELERATORS.
_A100 = Description(
    name="NVIDIA A100-SXM4-80GB",
    capability=8,
    cores=108,
    units=64,
    shared_memory=167_936,
    clock_ghz=1.41,
    cache=41_943_040,
    bandwidth=2_039_040_000_000,
    memory=85_100_068_864,
)
_H100 = Description(
    name="NVIDIA H100 80GB HBM3",
    capability=9,
    cores=132,
    units=128,
    shared_memory=233_472,
    clock_ghz=1.98,
    cache=52_428_800,
    bandwidth=3_352_320_000_000,
    memory=84_942_979_072,
)
DESCRIPTIONS = {
    "a100-40gb": _A100._replace(
        name="NVIDIA A100-SXM4-40GB", bandwidth=1_555_200_000_000, memory=42_331_013_120
    ),
    "a100-80gb": _A100,
    "h100": _H100,
    "h200": _H100._replace(name="NVIDIA H200", bandwidth=4_800_000_000_000, memory=151_397_597_184),
}


def target_config(gpu: Description) -> str:
    """`gpu` as XLA reads it: the text form of its GpuTargetConfigProto."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.cache}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory}
  # CUDA keeps 1 KiB of a core for itself.
  shared_memory_per_block_optin: {gpu.shared_memory - 1024}
  cuda_compute_capability {{ major: {gpu.capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  # Without the versions XLA puts neither matmuls nor branches into CUDA graphs.
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{gpu.name}"
"""


def prepare_environment() -> None:
    """Set what JAX reads when it is imported: that it need not look for a GPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # Without its device a compiled program cannot be read back.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


@contextmanager
def described_gpus(card: str, number: int) -> Iterator[list[Any]]:
    """`number` devices of the kind `card` to compile for.

    Inside of the context JAX and this package take them for the devices of this machine. Raises
    InputError where there is no description of `card`, or where JAX cannot use one.
    """
    if card not in DESCRIPTIONS:
        raise InputError(
            f"--device {card}: it can be compiled for only where there is one; anywhere, for "
            f"{', '.join(DESCRIPTIONS)}"
        )
    import jax

    gpu = DESCRIPTIONS[card]
    with ExitStack() as stack:
        try:
            devices = _described_devices(gpu, number)
            for replacement in _replacements(gpu):
                stack.enter_context(replacement)
        except NotImplementedError:
            raise InputError(
                "JAX's CUDA plugin, which compiles for GPUs, is not installed: make install CUDA=1"
            ) from None
        except (AttributeError, ImportError) as error:
            raise InputError(
                f"jax {jax.__version__} cannot compile for a GPU that is not here "
                f"({first_line(error)}): use jax 0.10 or 0.11, or a machine with the GPU"
            ) from None
        yield devices


def _described_devices(gpu: Description, number: int) -> list[Any]:
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="cuda", target_config=target_config(gpu), topology=f"1x1x{number}"
    ).devices


def _replacements(gpu: Description) -> list[AbstractContextManager]:
    """What JAX and this package would ask a GPU, answered for `gpu`."""
    import jax
    from jax._src import xla_bridge
    from jax._src.cudnn import fused_attention_stablehlo as attention

    known = xla_bridge.canonicalize_platform
    device = hardware.Device("gpu", f"{gpu.capability}.0")

    def canonicalize(platform: str) -> str:
        # Without a device JAX does not know that "gpu" means CUDA (jax-ml/jax#23971).
        try:
            return known(platform)
        except RuntimeError:
            return "cuda"

    return [
        patch.object(xla_bridge, "canonicalize_platform", canonicalize),
        patch.object(attention, "check_cudnn_version", lambda *_, **__: CUDNN_VERSION),
        patch.object(attention, "check_compute_capability", lambda *_, **__: True),
        patch.object(jax, "default_backend", lambda: "gpu"),
        patch.object(hardware, "this_device", lambda: device),
    ]
