"""How the cost of a training step grows with T, B and L, compared with its FLOPs.

    python -m benchmarks.growth
    python -m benchmarks.growth --layers 12 --heads 12 --embed 768 --batch 8 --dtype bfloat16

The first takes minutes on a CPU (6 layers, width 384, float32), the second is for a GPU. One of T,
B and L varies, the others are fixed. The sizes of an axis take turns, so that a slow minute of the
machine affects all of them; time is the median step, memory is XLA's own account of the compiled
step. Prints Markdown tables and draws them to --plot.
"""

import argparse
import statistics
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import seconds_of
from benchmarks.options import add_integers, model_config
from benchmarks.training import one_device, random_batch, training_step
from minigpt_jax.model import GPT
from minigpt_jax.runtime.files import user_path
from minigpt_jax.step import init_state

SIZES = {"T": (256, 512, 1024, 2048, 4096), "B": (1, 2, 4, 8, 16), "L": (2, 4, 8, 16, 24)}
OPTIONS = {"T": "context", "B": "batch", "L": "layers"}
# Growth of the time that is not marked: so many times the growth of the FLOPs.
ALLOWED = 1.3
COLUMNS = (
    "ms per step",
    "us per token",
    "GFLOP/s",
    "memory",
    "time, FLOPs, memory: times the row above",
    "time / FLOPs per doubling",
)


class Cost(NamedTuple):
    """The cost of one step of one size."""

    size: int
    tokens: int
    flops: float
    seconds: float
    # Bytes of state, batch and everything in between.
    memory: int


class Step:
    """A compiled training step with its state."""

    def __init__(self, options: argparse.Namespace):
        config = model_config(options)
        mesh = one_device()
        model = GPT(config, dtype=jnp.dtype(options.dtype))
        optimizer, step = training_step(model, mesh, loss_chunk=options.loss_chunk)
        self.tokens = options.batch * config.context
        self.flops = self.tokens * config.flops_per_token
        self._batch = random_batch(1, options.batch, config.context, mesh)
        self._state = init_state(model, optimizer, 0, mesh)
        self._step = step.lower(self._state, self._batch).compile()
        account = self._step.memory_analysis()
        self.memory = account.argument_size_in_bytes + account.temp_size_in_bytes
        self()

    def __call__(self) -> None:
        """Run one step to its end."""
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(metrics)


def main() -> None:
    """Measure, print the tables, draw the plot."""
    options = parse()
    print(
        f"{options.layers} layers, width {options.embed}, T={options.context}, B={options.batch}, "
        f"{options.dtype}; the first column varies"
    )
    costs = {axis: measure(axis, options) for axis in options.axes}
    if options.plot:
        draw(costs, options.plot)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description="How the cost of a step grows."
    )
    add_integers(parser, layers=6, heads=6, embed=384, context=256, batch=4, rounds=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--loss-chunk", type=int, default=128)
    parser.add_argument("--axes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--plot", type=user_path, help="an .svg or .png file")
    return parser.parse_args()


def measure(axis: str, options: argparse.Namespace) -> list[Cost]:
    """The costs along an axis; prints them as a table."""
    steps = {}
    for size in SIZES[axis]:
        own = argparse.Namespace(**vars(options) | {OPTIONS[axis]: size})
        steps[size] = Step(own)
    seconds = {size: [] for size in steps}
    for _ in range(options.rounds):
        for size, step in steps.items():
            seconds[size].append(seconds_of(step))
    costs = [
        Cost(size, step.tokens, step.flops, statistics.median(seconds[size]), step.memory)
        for size, step in steps.items()
    ]
    print(f"\n| {axis} | {' | '.join(COLUMNS)} |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    print(f"| {' | '.join([*own_cells(costs[0]), '', ''])} |")
    for before, cost in pairwise(costs):
        print(f"| {' | '.join([*own_cells(cost), *growth_cells(before, cost)])} |")
    return costs


def own_cells(cost: Cost) -> list[str]:
    """Cells of a table about one size."""
    return [
        str(cost.size),
        f"{cost.seconds * 1e3:,.0f}",
        f"{cost.seconds / cost.tokens * 1e6:,.0f}",
        f"{cost.flops / cost.seconds / 1e9:,.0f}",
        f"{cost.memory / 1e9:.2f} GB",
    ]


def growth_cells(before: Cost, cost: Cost) -> list[str]:
    """Cells of a table that compare a size with the one before it."""
    time_ratio = cost.seconds / before.seconds
    flops_ratio = cost.flops / before.flops
    memory_ratio = cost.memory / before.memory
    excess = (time_ratio / flops_ratio) ** (1 / np.log2(cost.size / before.size))
    mark = " !" if excess > ALLOWED else ""
    return [f"{time_ratio:.2f}, {flops_ratio:.2f}, {memory_ratio:.2f}", f"{excess:.2f}{mark}"]


def draw(costs: dict[str, list[Cost]], path: Path) -> None:
    """A column for each axis: time per token with what its FLOPs predict, and memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(costs), 5.4), layout="constrained")
    grid = figure.subplots(2, len(costs), squeeze=False)
    for (axis, own), (above, below) in zip(costs.items(), grid.T, strict=True):
        sizes = [c.size for c in own]
        per_token = np.array([c.seconds / c.tokens * 1e6 for c in own])
        flops = np.array([c.flops / c.tokens for c in own])
        predicted = flops * (per_token[0] / flops[0])
        above.plot(sizes, per_token, "o-", label="measured")
        above.plot(sizes, predicted, "--", color="gray", label="as its FLOPs grow")
        below.plot(sizes, [c.memory / 1e9 for c in own], "o-")
        for axes, label in ((above, "microseconds per token"), (below, "memory, GB")):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(s) for s in sizes])
            axes.set_xlabel(axis)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        above.legend(frameon=False)
    figure.savefig(path)
    print(f"\nplot: {path}")


if __name__ == "__main__":
    main()
