"""The cost of a checkpoint: its checksums, the pause of training, and the time to write it.

    python -m benchmarks.checkpoint --size gpt2 --rounds 3

Fills a whole training state (weights and both moments of AdamW) with random numbers, saves it like
train.py, and prints how long steps must be for the pause to stay below 5% of the time between two
saves.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from configs.pretrain import get_config
from minigpt_jax import optim
from minigpt_jax.checkpoint import Checkpoints, array_fingerprints
from minigpt_jax.model import GPT
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.files import expand_home
from minigpt_jax.sharding import make_mesh
from minigpt_jax.step import TrainState, abstract_state, init_state

# Largest share of the time that saving may take.
MAX_SHARE = 0.05


class SaveTimes(NamedTuple):
    """Seconds of one save."""

    # The checksums alone.
    checksums: float
    # Until `save` returned: training waits for this long.
    pause: float
    # Until the checkpoint was on disk.
    total: float


def main() -> None:
    """Measure and print the table."""
    options = parse()
    c: Any = get_config(options.size)
    config = GPTConfig(**c.model)
    optimizer = optim.make_optimizer(**c.optimizer, dtype=c.compute.dtype)
    mesh = make_mesh()
    model = GPT(config)
    state = random_state(init_state(model, optimizer, 0, mesh))
    meta = {"model": asdict(config), "config": {}, "data": "none", "validation_loss": None}
    # Compiles the checksums.
    array_fingerprints(state)

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoints = Checkpoints(Path(folder), keep=1)
        rounds = [save(checkpoints, state, n, meta) for n in range(1, options.rounds + 1)]
        began = time.perf_counter()
        abstract = abstract_state(model, optimizer, mesh)
        assert checkpoints.restore(abstract, config, lambda meta: None)
        restored = time.perf_counter() - began
        checkpoints.close()

    median = SaveTimes(*map(statistics.median, zip(*rounds, strict=True)))
    size = sum(a.nbytes for a in jax.tree.leaves(state))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    rate = size / median.total / 1e9
    print(f"{options.size}: {size / 1e9:.2f} GB on {devices}; median of {options.rounds}")
    print(f"checksums of all arrays   {median.checksums:7.2f} s")
    print(f"pause of training         {median.pause:7.2f} s, if two steps take as long as writing")
    print(f"until it is on disk       {median.total:7.2f} s, {rate:.2f} GB/s: the longest pause")
    print(f"restored and verified in  {restored:7.2f} s")
    shortest, longest = (
        f"{seconds / MAX_SHARE / c.save.every:.2f} s" for seconds in (median.pause, median.total)
    )
    print(
        f"configs/pretrain.py saves every {c.save.every} steps: with steps of {shortest} (or "
        f"{longest}, with the longest pause) saving takes {MAX_SHARE:.0%} of the time"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint", description="The cost of a checkpoint."
    )
    parser.add_argument("--size", default="gpt2", help="gpt2, gpt2-medium, gpt2-large or gpt2-xl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=expand_home,
        help="where to write (default: the folder for temporary files)",
    )
    return parser.parse_args()


def random_state(state: TrainState) -> TrainState:
    """`state` with random moments: zeros might be written faster."""

    def add_noise(a: jax.Array) -> jax.Array:
        return a + jax.random.normal(jax.random.key(1), a.shape).astype(a.dtype)

    return state.replace(opt_state=jax.tree.map(add_noise, state.opt_state))


def save(checkpoints: Checkpoints, state: TrainState, step: int, meta: dict) -> SaveTimes:
    """Save `state` as that of `step`."""
    state = state.replace(step=jnp.asarray(step, jnp.int32))
    jax.block_until_ready(state)
    began = time.perf_counter()
    array_fingerprints(state)
    checksums = time.perf_counter() - began
    began = time.perf_counter()
    checkpoints.save(state, step, meta)
    pause = time.perf_counter() - began
    checkpoints.wait()
    return SaveTimes(checksums, pause, time.perf_counter() - began)


if __name__ == "__main__":
    main()
