"""Compile the training step for NVIDIA GPUs that are not here, and print what it will move.

    python3.12 -m venv ../gpu-env
    ../gpu-env/bin/pip install "jax[cuda12]==0.11.2" -r requirements.txt
    ../gpu-env/bin/python -m benchmarks.compile_for_gpu --rows 32 --config.compute.unroll=12
    ../gpu-env/bin/python -m benchmarks.compile_for_gpu --mesh 8,1,1 --accum 2 --rows 16
    ../gpu-env/bin/python -m benchmarks.compile_for_gpu --call mypackage.somewhere:build
    ../gpu-env/bin/python -m benchmarks.compile_for_gpu --config.model.architecture=nanochat \
        --config.model.heads=6 --config.optimizer.kind=muon

Run it in the project's folder. Its environment (6 GB) is beside the checkout, not in it, because
the tests use the CPU version of JAX. XLA compiles for a described device, so nothing runs: the
figures are decisions of the compiler. Compared with one H200, the memory was correct within 0.1%
(15.43 GB predicted, 15.44 GB used). The milliseconds are a lower limit, bytes divided by bandwidth:
such kernels took about a quarter more there. The speed of matmuls and of attention, and the choices
of autotuning (which is off here), cannot be predicted like this.

The config is configs/pretrain.py unless --config names another, and its fields can be changed as in
train.py; rows, micro-batches and mesh are those of the options. `--call module:function` names a
function of (mesh, options) that returns a jitted function and its abstract arguments; the default
is `train_step`.
"""

import argparse
import importlib
import math
import os
import sys
import time

from benchmarks.compiled_text import Traffic, read_traffic
from minigpt_jax.config import parse as parse_config
from minigpt_jax.described_gpu import COMPILER_OPTIONS, described_gpus, prepare_environment
from minigpt_jax.runtime.files import user_path

# Bytes per second that copies reach, read and written.
BANDWIDTH = {"h100": 3.0e12, "h200": 4.3e12}


def main() -> None:
    """Compile, and print memory and traffic."""
    options = parse()
    # Read by JAX when it is imported, so JAX is imported after these lines.
    prepare_environment()
    os.environ["XLA_FLAGS"] = options.xla_flags
    # What the command line sets is not set again.
    compiler_options = {
        name: value for name, value in COMPILER_OPTIONS.items() if name not in options.xla_flags
    }
    from minigpt_jax.sharding import make_mesh

    sizes = tuple(int(size) for size in options.mesh.split(","))
    build = train_step
    if options.call:
        module, _, name = options.call.partition(":")
        build = getattr(importlib.import_module(module), name)
    with described_gpus(options.card, math.prod(sizes)) as devices:
        function, arguments = build(make_mesh(*sizes, devices=devices), options)
        began = time.perf_counter()
        compiled = function.lower(*arguments).compile(compiler_options=compiler_options)
        seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    arguments_gb = memory.argument_size_in_bytes / 1e9
    temporaries_gb = memory.temp_size_in_bytes / 1e9
    print(
        f"compiled in {seconds:.0f} s; a device needs {arguments_gb + temporaries_gb:.2f} GB: "
        f"{arguments_gb:.2f} of arguments, {temporaries_gb:.2f} of temporaries"
    )
    text = compiled.as_text()
    if options.text:
        options.text.write_text(text)
    report(read_traffic(text), options.card, options.top)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_for_gpu",
        description="Compile the training step for GPUs that are not here.",
    )
    parser.add_argument("--mesh", default="1,1,1", help="data,fsdp,tensor (default: 1,1,1)")
    parser.add_argument("--rows", type=int, default=32, help="of a micro-batch on each device")
    parser.add_argument("--accum", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--scatter-each", action="store_true", help="see gradients.sum_gradients")
    parser.add_argument("--card", choices=BANDWIDTH, default="h200", help="default: h200")
    parser.add_argument("--xla-flags", default="", help="instead of XLA_FLAGS")
    parser.add_argument("--call", help="module:function, instead of the training step")
    parser.add_argument("--top", type=int, default=25, help="kernels to print (default: 25)")
    parser.add_argument("--text", type=user_path, help="where to write the compiled text")
    parser.add_argument("--config", default="configs/pretrain.py", help="default: %(default)s")
    options, fields = parser.parse_known_args()
    options.config = parse_config([sys.argv[0], "--config", options.config, *fields])
    return options


def train_step(mesh, options: argparse.Namespace):
    """The training step of the project and its abstract arguments."""
    from minigpt_jax.compiled_step import step_and_arguments
    from minigpt_jax.sharding import data_parallel_size

    c = options.config
    c.data.batch = options.accum * options.rows * data_parallel_size(mesh)
    return step_and_arguments(c, mesh, options.accum, options.scatter_each)


def report(traffic: Traffic, card: str, top: int) -> None:
    """Print the traffic of kernels and collectives, the `top` largest of each one by one."""
    bandwidth = BANDWIDTH[card]
    total = traffic.totals["other"]
    print(
        f"\nkernels that are neither matmul nor attention: {total / 1e9:.1f} GB read and written, "
        f"at least {total / bandwidth * 1e3:.1f} ms on an {card}"
    )
    for key, moved in traffic.kernels.most_common(top):
        milliseconds = moved / bandwidth * 1e3
        calls = traffic.kernel_calls[key]
        print(f"{moved / 1e9:8.2f} GB {milliseconds:6.2f} ms {calls:4d} x  {'  '.join(key)}")
    print("epilogues of matmuls:", dict(traffic.epilogues))
    if traffic.collectives:
        print(
            f"\nbetween devices: {traffic.collectives.total() / 1e9:.2f} GB per step, "
            f"{traffic.collective_calls.total()} calls (the whole arrays; of n devices in a ring "
            "each sends (n-1)/n of it, twice that for an all-reduce)"
        )
    for key, moved in traffic.collectives.most_common(top):
        calls = traffic.collective_calls[key]
        print(f"{moved / 1e9:8.3f} GB {calls:4d} x  {'  '.join(key)}")


if __name__ == "__main__":
    main()
