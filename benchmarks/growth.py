"""How the cost of a training step grows with T, B and L: a doubling should cost no more than its FLOPs say.

    python -m benchmarks.growth                      6 layers, 384 wide, float32: minutes on any CPU
    python -m benchmarks.growth --layers 12 --heads 12 --embed 768 --batch 8 --dtype bfloat16       on a GPU

One of T, B and L varies, the others stay. The sizes of an axis take turns, so that a slow minute of the machine meets
all of them; time is the median step, memory what XLA's account of the compiled step says. It prints Markdown
tables and draws them to --plot.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs.pretrain import get_config
from minigpt_jax import optim
from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.sharding import AXES, batch_sharding
from minigpt_jax.step import Batch, init_state, make_train_step

SIZES = {"T": (256, 512, 1024, 2048, 4096), "B": (1, 2, 4, 8, 16), "L": (2, 4, 8, 16, 24)}
NAMES = {"T": "context", "B": "batch", "L": "layers"}
ALLOWED = 1.3  # times the ratio of the FLOPs
HORIZON = 10_000  # of the schedule: what matters is that its values are not zero


class Cost(NamedTuple):
    """Of one step of one size."""

    size: int
    tokens: int
    flops: float
    seconds: float
    memory: int  # bytes: state, batch and everything in between


def main() -> None:
    """Measure, print the tables, draw the plot."""
    options = parse()
    print(
        f"{options.layers} layers, {options.embed} wide, T={options.context}, B={options.batch}, {options.dtype}; what varies is in the first column"
    )
    costs = {axis: measure(axis, options) for axis in options.axes}
    if options.plot:
        draw(costs, options.plot)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description="How the cost of a step grows."
    )
    for name, value in {
        "layers": 6,
        "heads": 6,
        "embed": 384,
        "context": 256,
        "batch": 4,
        "rounds": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--loss-chunk", type=int, default=128)
    parser.add_argument("--axes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--plot", type=Path, help="an .svg or .png file")
    return parser.parse_args()


def measure(axis: str, options: argparse.Namespace) -> list[Cost]:
    """The costs along an axis, printed as a table."""
    made = [
        prepare(argparse.Namespace(**vars(options) | {NAMES[axis]: size})) for size in SIZES[axis]
    ]
    seconds = [[] for _ in made]
    for _ in range(options.rounds):
        for own, (_, _, work) in zip(seconds, made, strict=True):
            began = time.perf_counter()
            work()
            own.append(time.perf_counter() - began)
    costs = [
        Cost(size, tokens, flops, statistics.median(own), work.memory)
        for size, own, (tokens, flops, work) in zip(SIZES[axis], seconds, made, strict=True)
    ]
    print(
        f"\n| {axis} | ms a step | us a token | GFLOP/s | memory | time, FLOPs, memory: times those before | time / FLOPs per doubling |\n"
        + "|---" * 7
        + "|"
    )
    for before, cost in zip([None, *costs], costs, strict=False):
        print("| " + " | ".join(row(before, cost)) + " |")
    return costs


def row(before: Cost | None, cost: Cost) -> list[str]:
    """Cells of a table."""
    own = [
        str(cost.size),
        f"{cost.seconds * 1e3:,.0f}",
        f"{cost.seconds / cost.tokens * 1e6:,.0f}",
        f"{cost.flops / cost.seconds / 1e9:,.0f}",
        f"{cost.memory / 1e9:.2f} GB",
    ]
    if before is None:
        return [*own, "", ""]
    time_ratio, flops_ratio, memory_ratio = (
        cost.seconds / before.seconds,
        cost.flops / before.flops,
        cost.memory / before.memory,
    )
    excess = (time_ratio / flops_ratio) ** (1 / np.log2(cost.size / before.size))
    return [
        *own,
        f"{time_ratio:.2f}, {flops_ratio:.2f}, {memory_ratio:.2f}",
        f"{excess:.2f}" + (" !" if excess > ALLOWED else ""),
    ]


class Step:
    """A compiled training step with its state."""

    def __init__(self, config: GPTConfig, options: argparse.Namespace):
        c: Any = get_config()
        model = GPT(config, dtype=jnp.dtype(options.dtype))
        mesh, optimizer = (
            jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES),
            optim.make_optimizer(**c.optimizer),
        )
        schedule = partial(optim.learning_rate, horizon=HORIZON, **c.schedule)
        step = make_train_step(
            model, optimizer, schedule, mesh, seed=0, loss_chunk=options.loss_chunk
        )
        tokens = (
            np.random.default_rng(0)
            .integers(0, 50256, (1, options.batch, config.context + 1))
            .astype(np.uint16)
        )
        self._batch = jax.device_put(
            Batch(tokens, np.ones((1, options.batch, config.context), np.uint8)),
            batch_sharding(mesh),
        )
        self._state = init_state(model, optimizer, 0, mesh)
        self._step = step.lower(self._state, self._batch).compile()
        account = self._step.memory_analysis()
        self.memory = account.argument_size_in_bytes + account.temp_size_in_bytes
        self()

    def __call__(self) -> None:
        """One step, to its end."""
        self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(metrics)


def prepare(options: argparse.Namespace) -> tuple[int, float, Step]:
    """Tokens and FLOPs of a step, and the step."""
    config = GPTConfig(
        layers=options.layers, heads=options.heads, embed=options.embed, context=options.context
    )
    tokens = options.batch * options.context
    return tokens, tokens * config.flops_per_token, Step(config, options)


def draw(costs: dict[str, list[Cost]], path: Path) -> None:
    """A column for each axis: time per token above memory, over what the FLOPs alone would give."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(costs), 5.4), layout="constrained")
    grid = figure.subplots(2, len(costs), squeeze=False)
    for (axis, own), (above, below) in zip(costs.items(), grid.T, strict=True):
        sizes = [c.size for c in own]
        per_token = np.array([c.seconds / c.tokens * 1e6 for c in own])
        floor = np.array([c.flops / c.tokens for c in own])
        above.plot(sizes, per_token, "o-", label="measured")
        above.plot(
            sizes, floor * (per_token[0] / floor[0]), "--", color="gray", label="as its FLOPs grow"
        )
        below.plot(sizes, [c.memory / 1e9 for c in own], "o-")
        for axes, label in ((above, "microseconds a token"), (below, "memory, GB")):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(s) for s in sizes])
            axes.set_xlabel(axis)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        above.legend(frameon=False)
    figure.savefig(path)
    print(f"\ndrawn: {path}")


if __name__ == "__main__":
    main()
