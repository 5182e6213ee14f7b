"""Settings that must precede the first JAX array of a training process."""

import os
import sys
from pathlib import Path

import jax

from minigpt_jax.runtime.backend import start_jax
from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
from minigpt_jax.runtime.distributed import join_processes

# A file of the NVIDIA driver.
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
# cublasLt adds biases, and computes GELU, at the end of a matmul: 0.7% more tokens per second on an
# H200 (docs/log.md).
NVIDIA_FLAGS = "--xla_gpu_enable_cublaslt=true"


def set_xla_flags(*, deterministic: bool) -> None:
    """Set what XLA reads when JAX starts; flags that XLA_FLAGS has already are stronger."""
    flags = os.environ.get("XLA_FLAGS", "")
    if NVIDIA_DRIVER.exists():
        # Of equal flags the last counts.
        flags = f"{NVIDIA_FLAGS} {flags}"
    if deterministic:
        flags = f"{flags} --xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = flags


def prepare_jax(runs: Path, *, deterministic: bool) -> None:
    """Set determinism, join the other processes, and keep compiled programs beside `runs`.

    Warns if the machine has an NVIDIA GPU that JAX does not use. Raises InputError if a launcher
    announces processes that cannot be found, and what `start_jax` raises.
    """
    # Read when JAX starts its backend, so this comes first.
    set_xla_flags(deterministic=deterministic)
    join_processes()
    start_jax()
    enable_compilation_cache(runs)
    # Without its CUDA plugin JAX falls back to the CPU.
    if jax.default_backend() == "cpu" and NVIDIA_DRIVER.exists():
        print(
            "warning: this machine has an NVIDIA GPU that JAX does not find; "
            "install the plugin with: make install CUDA=1",
            file=sys.stderr,
        )
