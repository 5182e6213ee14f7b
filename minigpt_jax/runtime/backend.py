"""Start JAX's devices, or say in one line why they cannot be used here.

Without this, the first array of a program would fail, wherever that is: while a checkpoint is read,
for example, which is not to blame.
"""

import jax

from minigpt_jax.errors import InputError, RunError, first_line


def start_jax() -> None:
    """Start JAX's devices.

    Raises InputError for environment variables that JAX does not know or that would change what a
    checkpoint holds, RunError where a device cannot be used.
    """
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise InputError(
            "JAX_ENABLE_X64 is set: it would turn weights, which are float32, into float64. Unset "
            'it (in a program: jax.config.update("jax_enable_x64", False))'
        )
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.devices()
    # JAX asserts that there is a device: JAX_PLATFORMS=cuda without a GPU has none.
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error) if str(error) else "this machine has no such device"
        if platforms and "list of known backends" in reason:
            raise InputError(
                f"JAX_PLATFORMS={platforms}: {reason}. For an NVIDIA GPU: make install CUDA=1"
            ) from None
        asked = f"JAX_PLATFORMS={platforms}: " if platforms else ""
        raise RunError(
            f"{asked}JAX cannot start its devices ({reason}). Nothing was changed. To use a CPU: "
            "JAX_PLATFORMS=cpu"
        ) from error
