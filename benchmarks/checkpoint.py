"""What a checkpoint costs a run: its checksums, the pause of training, and the time until it is on disk.

    python -m benchmarks.checkpoint --size gpt2 --rounds 3

Fills a whole training state (weights and both AdamW moments) with random numbers, saves it as train.py does, and says how
long steps must be for the pause to stay below 5% of the time between two saves.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from configs.pretrain import get_config
from minigpt_jax import optim
from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.fingerprints import array_fingerprints
from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.sharding import make_mesh
from minigpt_jax.step import TrainState, abstract_state, init_state


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint", description="What a checkpoint costs a run."
    )
    parser.add_argument("--size", default="gpt2", help="gpt2, gpt2-medium, gpt2-large or gpt2-xl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", help="where to write (default: the system's folder for temporary files)"
    )
    options = parser.parse_args()
    c: Any = get_config(options.size)
    config, optimizer, mesh = (
        GPTConfig(**c.model),
        optim.make_optimizer(**c.optimizer),
        make_mesh(),
    )
    model = GPT(config)
    state = init_state(model, optimizer, 0, mesh)
    state = state.replace(
        opt_state=jax.tree.map(
            lambda a: a + jax.random.normal(jax.random.key(1), a.shape).astype(a.dtype),
            state.opt_state,
        )
    )
    size = sum(a.nbytes for a in jax.tree.leaves(state))
    meta = {"model": asdict(config), "config": {}, "data": "none", "validation_loss": None}
    array_fingerprints(state)  # compiles
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoints = Checkpoints(Path(folder), keep=1)
        rounds = [measure(checkpoints, state, n, meta) for n in range(1, options.rounds + 1)]
        began = time.perf_counter()
        assert checkpoints.restore(
            abstract_state(model, optimizer, mesh), config, lambda meta: None
        )
        restored = time.perf_counter() - began
        checkpoints.close()
    checksum, pause, written = map(statistics.median, zip(*rounds, strict=True))
    print(
        f"{options.size}: state of {size / 1e9:.2f} GB on {jax.device_count()} x {jax.devices()[0].device_kind}; median of {options.rounds}"
    )
    print(f"checksums of all arrays   {checksum:7.2f} s")
    print(
        f"pause of training a save  {pause:7.2f} s (checksums and the copy off the device) where two steps take as long as the writing,"
    )
    print(
        f"until it is on disk       {written:7.2f} s, {size / written / 1e9:.2f} GB/s: the pause where they take no time at all"
    )
    print(f"restored and verified in  {restored:7.2f} s")
    steps = " or ".join(f"{time / 0.05 / c.save.every:.2f} s" for time in (pause, written))
    print(
        f"configs/pretrain.py saves every {c.save.every} steps: steps of {steps} or longer keep that below 5%"
    )


def measure(
    checkpoints: Checkpoints, state: TrainState, step: int, meta: dict
) -> tuple[float, float, float]:
    """Seconds for the checksums alone, until `save` returned, and until the checkpoint was committed."""
    moved = state.replace(step=jnp.asarray(step, jnp.int32))
    jax.block_until_ready(moved)
    began = time.perf_counter()
    array_fingerprints(moved)
    checksum, began = time.perf_counter() - began, time.perf_counter()
    checkpoints.save(moved, step, meta)
    pause = time.perf_counter() - began
    checkpoints.wait()
    return checksum, pause, time.perf_counter() - began


if __name__ == "__main__":
    main()
