"""Fingerprints of arrays: what a checkpoint records, so that a damaged file is never loaded.

The fingerprint of an array is its shape, its dtype and a checksum. The checksum is the sum over all
elements of (bits as uint32) x (an odd number that depends on the position), modulo 2^32. Any single
flipped bit changes it, because the product of 2^k and an odd number is not 0 modulo 2^32. Sharding
and the number of processes do not change it, because the order of such a sum does not matter.
"""

import jax
import jax.numpy as jnp

from minigpt_jax.errors import DamageError


def array_specs(tree) -> dict[str, dict]:
    """{path: {"shape", "dtype"}} of every array of a pytree."""
    specs = {}
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        specs[name] = {"shape": list(array.shape), "dtype": array.dtype.name}
    return specs


def array_fingerprints(tree) -> dict[str, dict]:
    """{path: {"shape", "dtype", "checksum"}} of every array of a pytree."""
    checksums = jax.device_get(_checksums(jax.tree.leaves(tree)))
    fingerprints = array_specs(tree)
    for fingerprint, checksum in zip(fingerprints.values(), checksums, strict=True):
        fingerprint["checksum"] = int(checksum)
    return fingerprints


def verify_arrays(tree, recorded: dict[str, dict]) -> None:
    """Compare arrays with their `recorded` fingerprints.

    Raises DamageError naming the first array that differs or holds a value that is not finite.
    """
    for path, found in array_fingerprints(tree).items():
        if recorded.get(path) != found:
            raise DamageError(f"array {path}: found {found}, saved was {recorded.get(path)}")
    finite = jax.device_get(_all_finite(jax.tree.leaves(tree)))
    for path, is_finite in zip(array_specs(tree), finite, strict=True):
        if not is_finite:
            raise DamageError(f"array {path}: holds values that are not finite")


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(array).all() for array in arrays]


@jax.jit
def _checksums(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(array) for array in arrays]


def _checksum(array: jax.Array) -> jax.Array:
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    position = jnp.zeros((), jnp.uint32)
    stride = 1
    for axis in reversed(range(array.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        # A larger stride does not fit uint32, and the sum is modulo 2^32 anyway.
        position = position + index * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)
