"""Keep compiled programs on disk: a resumed run, a chat or a server then starts faster."""

import os
from contextlib import suppress
from pathlib import Path

import jax


def enable_compilation_cache(runs: Path) -> None:
    """Keep what JAX compiles in `runs`/.compiled, or in JAX_COMPILATION_CACHE_DIR where it is set.

    Without permission to write there, nothing is kept.
    """
    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        folder = (runs / ".compiled").absolute()
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        # JAX would print a warning for every program.
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Programs that compile quickly are kept too: there are many of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
