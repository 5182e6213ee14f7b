"""Count what a GPU starts for each generated token, on a machine without one.

    ../gpu-env/bin/python -m benchmarks.decode_launches
    ../gpu-env/bin/python -m benchmarks.decode_launches --rows 1 --cache 1024

The environment is that of benchmarks/compile_for_gpu.py. With few rows a token takes so little
arithmetic that the time goes into starting kernels (2 us and more for each) and into waiting for
the host, which reads the condition of a loop or a branch unless it is part of a CUDA graph. XLA
writes down what it will start; this counts it. Autotuning needs a device, so there some matmuls
take another kernel, or one more. With `--xla-flags=--xla_gpu_enable_command_buffer=+WHILE` the
whole loop is one CUDA graph.
"""

import argparse
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.compile_for_gpu import BANDWIDTH
from benchmarks.contenders import table
from benchmarks.options import add_integers, model_config
from minigpt_jax.described_gpu import described_gpus, prepare_environment
from minigpt_jax.model_config import GPTConfig

# Bytes of a weight and of a cached number in bfloat16.
WIDTH = 2
# A line of XLA's list: indentation, number, kind, and after the dependencies the kernel's name.
LINE = re.compile(r"(?P<indent> *)(?:\d+: )?(?P<kind>k\w+|body:)(?:.*\]\s+(?P<name>\w+) grid)?")


class Launches(NamedTuple):
    """What one token starts."""

    # Kernels that every token starts, by kind: "matmul", "softmax, LayerNorm", "other".
    kernels: Counter[str]
    # Kernels in branches, of which a token starts some or none (temperature, top-k, top-p).
    in_branches: int
    # Submissions: CUDA graphs, and kernels outside of them.
    submissions: int
    # Conditions that the host reads and waits for: of the loop, and of branches.
    host_reads: int
    # The same in branches.
    host_reads_in_branches: int


def main() -> None:
    """Compile and print the table."""
    options = parse()
    config = model_config(options)
    rows = []
    for count in options.rows:
        launches = compiled_launches(config, count, options)
        bytes_at_least = token_bytes(config, count, options.cache)
        row = [
            str(count),
            str(launches.kernels.total()),
            *(str(launches.kernels[kind]) for kind in ("matmul", "softmax, LayerNorm", "other")),
            str(launches.submissions),
            str(launches.host_reads),
            f"{launches.in_branches}, {launches.host_reads_in_branches}",
            f"{bytes_at_least / 1e6:.0f} MB",
            f"{bytes_at_least / BANDWIDTH[options.card] * 1e6:.0f} us",
        ]
        rows.append(row)
    print(f"{config.parameters:,} parameters, bfloat16, {options.cache} tokens in the cache")
    head = ["rows", "kernels", "matmul", "softmax, LayerNorm", "other", "submissions"]
    head += ["host reads", "in branches", "weights, cache", f"on an {options.card}"]
    print(table(head, rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode_launches",
        description="Count what a GPU starts for each token, on a machine without one.",
    )
    add_integers(parser, layers=12, heads=12, embed=768, context=1024, cache=256)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--card", choices=BANDWIDTH, default="h200", help="for the microseconds")
    parser.add_argument("--xla-flags", default="", help="instead of XLA_FLAGS")
    return parser.parse_args()


def token_bytes(config: GPTConfig, rows: int, cache: int) -> int:
    """The least that a token of each row must read: all weights, keys and values."""
    return WIDTH * (config.parameters + rows * cache * 2 * config.layers * config.embed)


def compiled_launches(config: GPTConfig, rows: int, options: argparse.Namespace) -> Launches:
    """Compile the decode loop for an H100 in a process of its own, and read what it starts."""
    # XLA reads its flags once in a process, and writes the list into the folder that they name.
    import multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        # Inherited by the process.
        prepare_environment()
        os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 {dump} {options.xla_flags}"
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=compile_decode, args=(config, rows, options.cache))
        process.start()
        process.join()
        found = list(Path(folder).glob("*jit_decode*thunk_sequence_after_thunk_passes.txt"))
        if process.exitcode or not found:
            raise RuntimeError("XLA wrote no list of kernels: is this the environment named above?")
        return read_launches(found[0].read_text().splitlines())


def compile_decode(config: GPTConfig, rows: int, cache_length: int) -> None:
    """Compile the decode loop; XLA's flags say where it writes what it decided."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from minigpt_jax.decoding import DecodeState, decode, empty_cache, prepare_for_decoding
    from minigpt_jax.model import GPT
    from minigpt_jax.sampling import Occurrences, sampling_params
    from minigpt_jax.sharding import make_mesh, replicated

    def arguments():
        variables = GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        params = nn.unbox(variables["params"])
        state = DecodeState(
            cache=jax.tree.map(jnp.asarray, empty_cache(config, rows, jnp.bfloat16, cache_length)),
            last=jnp.zeros(rows, jnp.int32),
            length=jnp.zeros(rows, jnp.int32),
            occurrences=jax.tree.map(jnp.asarray, Occurrences.none(rows, config)),
            done=jnp.zeros(rows, bool),
        )
        settings = jax.tree.map(jnp.asarray, sampling_params(rows, config))
        prepared = prepare_for_decoding(params, config, jnp.bfloat16)[1]
        return prepared, state, settings, jnp.zeros(2, jnp.int32), jnp.int32(0), jnp.int32(0)

    with described_gpus("h100", 1) as devices:
        whole = replicated(make_mesh(devices=devices))
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole),
            jax.eval_shape(arguments),
        )
        model = GPT(config, dtype=jnp.bfloat16, attention="xla")
        decode.lower(model, *abstract).compile()


def read_launches(lines: Sequence[str]) -> Launches:
    """Count in XLA's list of what the program of a block of tokens starts."""
    kernels = Counter()
    in_branches = 0
    submissions = 0
    host_reads = 0
    reads_in_branches = 0
    for kind, name, enclosing in in_token_loop(lines):
        in_graph = "kCommandBuffer" in enclosing
        if "kConditional" in enclosing:
            # The loops in branches have a fixed length, which the host knows.
            reads_in_branches += kind == "kConditional" and not in_graph
            in_branches += kind not in ("kWhile", "kConditional", "kCommandBuffer")
        elif kind in ("kWhile", "kConditional"):
            host_reads += not in_graph
        else:
            submissions += not in_graph
            if kind != "kCommandBuffer":
                kernels[kernel_kind(kind, name)] += 1
    return Launches(kernels, in_branches, submissions, host_reads, reads_in_branches)


def in_token_loop(lines: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """(kind, name, enclosing kinds) of the first loop and of everything in its condition and body.

    The loop of a decode program is the first: loops of the filters are inside it.
    """
    # (indentation, kind) of what the current line is in.
    around: list[tuple[int, str]] = []
    loop = None
    for line in lines:
        found = LINE.match(line)
        if not found or found["kind"] == "body:":
            continue
        indent = len(found["indent"])
        if loop is not None and indent <= loop:
            return
        while around and around[-1][0] >= indent:
            around.pop()
        kind = found["kind"]
        if loop is None and kind == "kWhile":
            loop = indent
        if loop is not None:
            yield kind, found["name"] or "", [outer for _, outer in around]
        if kind in ("kCommandBuffer", "kConditional", "kWhile"):
            around.append((indent, kind))


def kernel_kind(kind: str, name: str) -> str:
    """The column in which a kernel is counted."""
    if "Cublas" in kind or kind == "kGemm" or "gemm" in name:
        return "matmul"
    # Fusions that XLA compiles with Triton have no other name.
    return "softmax, LayerNorm" if re.fullmatch(r"fusion(_\d+)?", name) else "other"


if __name__ == "__main__":
    main()
