"""Settings that must precede the first JAX array of a training process."""

import os
import sys
from pathlib import Path

import jax

from minigpt_jax.runtime.backend import start_jax
from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
from minigpt_jax.runtime.distributed import join_processes


def prepare_jax(runs: Path, *, deterministic: bool) -> None:
    """Set determinism, join the other processes, and keep compiled programs beside `runs`.

    Warns if the machine has an NVIDIA GPU that JAX does not use. Raises InputError if a launcher
    announces processes that cannot be found, and what `start_jax` raises.
    """
    if deterministic:
        # Read when JAX starts its backend, so this comes first.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
    join_processes()
    start_jax()
    enable_compilation_cache(runs)
    # Without its CUDA plugin JAX falls back to the CPU. The file belongs to the NVIDIA driver.
    if jax.default_backend() == "cpu" and Path("/proc/driver/nvidia/version").exists():
        print(
            "warning: this machine has an NVIDIA GPU that JAX does not find; "
            "install the plugin with: make install CUDA=1",
            file=sys.stderr,
        )
