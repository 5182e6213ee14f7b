"""Compile the training step for a Cloud TPU that is not here, and print what it needs.

    python3.11 -m venv ../tpu-env
    ../tpu-env/bin/pip install "jax[tpu]" -r requirements.txt
    ../tpu-env/bin/python -m benchmarks.compile_for_tpu --rows 8
    ../tpu-env/bin/python -m benchmarks.compile_for_tpu --mesh 2,2,1 --rows 8
    ../tpu-env/bin/python -m benchmarks.compile_for_tpu --config.compute.attention=xla

Run it in the project's folder. JAX's library for TPUs compiles for a described slice, so nothing
runs: memory and kernels are decisions of the compiler. No real TPU has confirmed them.

The config is configs/pretrain.py unless --config names another, and its fields can be changed as in
train.py; rows, micro-batches and mesh are those of the options.
"""

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from re import findall
from typing import Any
from unittest.mock import patch

from benchmarks.compile_for_gpu import train_step
from minigpt_jax import hardware
from minigpt_jax.config import parse as parse_config


def main() -> None:
    """Compile, and print memory and the kernels that Pallas gave."""
    options = parse()
    sizes = tuple(int(size) for size in options.mesh.split(","))
    with described_tpus(options.slice, math.prod(sizes)) as devices:
        from minigpt_jax.sharding import make_mesh

        function, arguments = train_step(make_mesh(*sizes, devices=devices), options)
        began = time.perf_counter()
        compiled = function.lower(*arguments).compile()
        seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    gigabytes = [memory.argument_size_in_bytes / 1e9, memory.temp_size_in_bytes / 1e9]
    print(
        f"compiled in {seconds:.0f} s; one {devices[0].device_kind} needs {sum(gigabytes):.2f} GB: "
        f"{gigabytes[0]:.2f} of arguments, {gigabytes[1]:.2f} of temporaries"
    )
    for kernel, calls in mosaic_kernels(compiled.as_text()).items():
        print(f"{calls:4d} x  {kernel}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_for_tpu",
        description="Compile the training step for a Cloud TPU that is not here.",
    )
    parser.add_argument("--mesh", default="1,1,1", help="data,fsdp,tensor (default: 1,1,1)")
    parser.add_argument("--rows", type=int, default=8, help="of a micro-batch on each device")
    parser.add_argument("--accum", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--scatter-each", action="store_true", help="see gradients.sum_gradients")
    parser.add_argument("--slice", default="v5e:2x2", help="kind and chips (default: v5e:2x2)")
    parser.add_argument("--config", default="configs/pretrain.py", help="default: %(default)s")
    options, fields = parser.parse_known_args()
    options.config = parse_config([sys.argv[0], "--config", options.config, *fields])
    return options


@contextmanager
def described_tpus(topology: str, number: int) -> Iterator[list[Any]]:
    """The first `number` devices of a slice such as "v5e:2x2", to compile for.

    Inside of the context this package takes them for the devices of this machine. To be entered
    before JAX is imported.
    """
    settings = {
        # JAX need not look for a TPU, nor libtpu ask Google's cloud which one this machine has.
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Without its device a compiled program cannot be read back.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    with patch.dict(os.environ, settings):
        import jax
        from jax.experimental import topologies

        devices = topologies.get_topology_desc(topology, platform="tpu").devices[:number]
        with (
            patch.object(jax, "default_backend", lambda: "tpu"),
            patch.object(hardware, "this_device", lambda: hardware.Device("tpu")),
        ):
            yield devices


def mosaic_kernels(text: str) -> Counter[str]:
    """How often a compiled program calls each kernel of Pallas, by its name."""
    return Counter(
        name
        for line in text.splitlines()
        if 'custom_call_target="tpu_custom_call"' in line
        for name in findall(r"%([\w-]+?)(?:\.\d+)* = ", line)
    )


if __name__ == "__main__":
    main()
