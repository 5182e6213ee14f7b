"""Keep compiled programs on disk, so that a run that goes on, a chat or a server starts without compiling again."""

import os
from contextlib import suppress
from pathlib import Path

import jax


def enable_compilation_cache(runs: Path) -> None:
    """Keep what JAX compiles in `runs`/.compiled, or where JAX_COMPILATION_CACHE_DIR says; nowhere if that cannot be written."""
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        folder = (runs / ".compiled").absolute()
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):  # JAX would complain about every program
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0.0
    )  # the many small programs count too
