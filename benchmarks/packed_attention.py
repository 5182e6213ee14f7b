"""Attention over packed documents on an NVIDIA GPU: time and error of every way that cuDNN offers.

    python -m benchmarks.packed_attention --rows 32 --documents 300
    python -m benchmarks.packed_attention --rows 16 --context 2048

"causal" ignores documents: the speed to reach. "mask" is what attention.py does. "packed M" gives
cuDNN the start and the length of each document, at most M in a row; JAX has this only in a private
module. Errors are the largest differences from "mask", of the result and of the gradients.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import seconds_of, table
from benchmarks.options import add_integers
from minigpt_jax.attention import segment_mask

REPEATS = 20


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packed_attention",
        description="Attention over packed documents on an NVIDIA GPU.",
    )
    add_integers(parser, rows=32, context=1024, heads=12, head_dim=64, documents=300, rounds=5)
    parser.add_argument(
        "--segments", type=int, nargs="+", default=[8, 32, 128], help="documents of a row at most"
    )
    options = parser.parse_args()
    if jax.default_backend() != "gpu":
        sys.exit("this benchmark needs an NVIDIA GPU")

    arrays, segments = problem(options)
    ways = {name: jax.jit(gradients_of(way)) for name, way in ways_for(segments, options).items()}
    results = {}
    for name, way in ways.items():
        try:
            results[name] = jax.block_until_ready(way(*arrays))
        except Exception as error:
            # A packed layout that this version of cuDNN refuses should not hide the others.
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in results}
    for _ in range(options.rounds):
        for name, own in seconds.items():
            own.append(seconds_of(partial(repeat, ways[name], arrays)) / REPEATS)
    rows = []
    for name, own in seconds.items():
        errors = [
            largest_difference(a, b) for a, b in zip(results[name], results["mask"], strict=True)
        ]
        rows.append(
            [name, f"{statistics.median(own) * 1e3:.3f}", *(f"{error:.1e}" for error in errors)]
        )
    print(table(("forward and backward", "ms", "error of y", "of d_q", "of d_k", "of d_v"), rows))


def problem(options: argparse.Namespace) -> tuple[list[jax.Array], np.ndarray]:
    """q, k, v and the gradient of the result; and segments [B, T] of random documents."""
    shape = (options.rows, options.context, options.heads, options.head_dim)
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
    starts = np.random.default_rng(0).random(shape[:2]) < 1 / options.documents
    return arrays, np.cumsum(starts, axis=1, dtype=np.int32)


def ways_for(segments: np.ndarray, options: argparse.Namespace) -> dict[str, Callable]:
    """Functions of q, k and v, by name."""
    fused = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    ways: dict[str, Callable] = {
        "causal": fused,
        "mask": lambda q, k, v: fused(q, k, v, mask=segment_mask(jnp.asarray(segments))[:, None]),
    }
    for most in options.segments:
        if segments.max() < most:
            ways[f"packed {most}"] = partial(packed, segments=jnp.asarray(segments), most=most)
    return ways


def packed(
    q: jax.Array, k: jax.Array, v: jax.Array, *, segments: jax.Array, most: int
) -> jax.Array:
    """Causal attention within `segments` [B, T], which count from 0; at most `most` in a row."""
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    lengths, offsets = packed_layout(segments, most)
    y: Any = dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=q.shape[-1] ** -0.5,
        mask_type=MaskType.PADDING_CAUSAL,
    )
    return y


def packed_layout(segments: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """Lengths [B, M] and starts [B, M + 1] of the segments of each row, -1 where there is none."""
    lengths = (segments[:, :, None] == jnp.arange(most)[None, None]).sum(1)
    starts = jnp.cumsum(lengths, axis=1) - lengths
    is_used = lengths > 0
    lengths = jnp.where(is_used, lengths, -1)
    starts = jnp.where(is_used, starts, -1)
    return lengths.astype(jnp.int32), jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1).astype(
        jnp.int32
    )


def gradients_of(way: Callable) -> Callable:
    """The result of `way` and its gradients, as a function of q, k, v and the result's gradient."""

    def run(q, k, v, d_y):
        y, pullback = jax.vjp(way, q, k, v)
        return y, *pullback(d_y)

    return run


def repeat(way: Callable, arrays: list[jax.Array]) -> None:
    """Call `way` REPEATS times and wait."""
    jax.block_until_ready([way(*arrays) for _ in range(REPEATS)])


def largest_difference(a: jax.Array, b: jax.Array) -> float:
    """In float32."""
    return float(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max())


def compiled(mesh: jax.sharding.Mesh, _options: argparse.Namespace):
    """For `compile_for_gpu --call benchmarks.packed_attention:compiled`: the way "packed 8"."""
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shape = (32, 1024, 12, 64)
    array = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    segments = jnp.zeros(shape[:2], jnp.int32)
    way = gradients_of(partial(packed, segments=segments, most=8))
    return jax.jit(way), (array,) * 4


if __name__ == "__main__":
    main()
