"""Keep compiled programs on disk, so that a run that goes on, a chat or a server starts without compiling again."""

import os
from pathlib import Path

import jax


def keep_programs(runs: Path) -> None:
    """Keep what JAX compiles in `runs`/.compiled, or where JAX_COMPILATION_CACHE_DIR says; nowhere if that cannot be written."""
    folder = Path(jax.config.jax_compilation_cache_dir or runs / ".compiled").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):  # JAX would complain about every program
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the many small programs count too
