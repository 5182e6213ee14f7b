"""What each part of the modern recipe gives: small models trained by four recipes on the same rows.

    python -m data_tools.python_docs --megabytes 1.5 --out data/python_docs
    python -m benchmarks.recipes --out runs/recipes                  two CPU cores: two hours
    python -m data_tools.fineweb --source openstax/ --out data/openstax
    python -m benchmarks.recipes --plain configs/pretrain.py --modern configs/modern.py \\
        --steps 163 --out runs/recipes --config.data.folder=data/openstax \\
        --config.data.batch=64                                      on a GPU, one pass over 10.7 M

Each recipe is the one before it with a part of the modern config. Its learning rate is chosen
among several with a seed of its own; then it trains with other seeds. A run that stops early has
not let its learning rate fall, so "the same loss with fewer tokens" is a run whose horizon is
shorter. Finished runs stay in --out: the command goes on where it was stopped. Other arguments are
those of train.py, for all runs.
"""

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contenders import ROOT, table
from minigpt_jax.config import flatten, parse
from minigpt_jax.runtime.files import user_path
from minigpt_jax.tracking.records import read_records

TUNING_SEED = 1
SEEDS = (11, 12, 13)
# Learning rates that are tried, as multiples of a config's; more if the best is the first or last.
FACTORS = (0.5, 1.0, 2.0)
MOST_RATES = 6
# The longest warm-up, as a part of the steps.
WARMUP = 1 / 8
# Of the loss in a plot: steps that are averaged.
SMOOTHING = 12
HEAD = ("recipe", "rate", "steps", "of plain", "validation loss", "its range", "below plain")


class Recipe(NamedTuple):
    """A recipe with its learning rate."""

    name: str
    # What differs from the plain config.
    fields: Mapping[str, Any]
    rate: float


class Trainer(NamedTuple):
    """Trains with a plain config and changes of it, and keeps the results in the folder `out`."""

    config: str
    # The fields of that config.
    plain: Mapping[str, Any]
    out: Path
    arguments: Sequence[str]

    def loss(self, recipe: Recipe, steps: int, seed: int) -> float:
        """The validation loss at the end of a run of so many steps."""
        run = self.run_folder(recipe, steps, seed)
        if self.final_loss(run, steps) is None:
            self.train(run, recipe, steps, seed)
            # The records are enough.
            shutil.rmtree(run / "checkpoints")
        found = self.final_loss(run, steps)
        if found is None:
            raise RuntimeError(f"{run}: stopped before its end")
        print(f"{run.name}: {found:.4f}", flush=True)
        return found

    def run_folder(self, recipe: Recipe, steps: int, seed: int) -> Path:
        """Names a run by all that tells it from the others."""
        words = recipe.name.replace("+ ", "").replace(" ", "_")
        everything = json.dumps([self.config, self.plain, [*self.arguments], {**recipe.fields}])
        digest = hashlib.sha256(everything.encode()).hexdigest()[:8]
        return self.out / f"{words}-{recipe.rate:g}-{steps}-{seed}-{digest}"

    def final_loss(self, run: Path, steps: int) -> float | None:
        """The loss of a finished run, None of another."""
        if not (run / "metrics.jsonl").exists():
            return None
        evaluations = read_records(run).evaluations
        is_finished = evaluations and evaluations[-1]["step"] == steps
        return evaluations[-1]["validation_loss"] if is_finished else None

    def train(self, run: Path, recipe: Recipe, steps: int, seed: int) -> None:
        """Run train.py."""
        warmup = min(self.plain["schedule.warmup"], int(WARMUP * steps))
        settings = (
            {"schedule.warmup": warmup}
            | dict(recipe.fields)
            | {
                "runs": run.parent,
                "name": run.name,
                "fresh": True,
                "seed": seed,
                "schedule.peak": recipe.rate,
                "horizon.steps": steps,
                "eval.every": steps,
                "eval.samples": 0,
                "save.every": steps,
                "log.every": steps,
            }
        )
        fields = [f"--config.{field}={value}" for field, value in settings.items()]
        command = [sys.executable, "train.py", f"--config={self.config}", *self.arguments, *fields]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{run.name}:\n{done.stdout}{done.stderr}")

    def tuned(self, name: str, fields: Mapping[str, Any], rates: Sequence[float], steps: int):
        """The recipe with the one of `rates` that has the lowest loss."""
        losses: dict[float, float] = {}

        def measure(rate: float) -> None:
            losses[rate] = self.loss(Recipe(name, fields, rate), steps, TUNING_SEED)

        def best() -> float:
            return min(losses, key=losses.__getitem__)

        for rate in rates:
            measure(rate)
        # The best must lie between others.
        while best() in (min(losses), max(losses)) and len(losses) < MOST_RATES:
            measure(best() / 2 if best() == min(losses) else best() * 2)
        return Recipe(name, fields, best())


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes",
        description="What each part of the modern recipe gives.",
    )
    add = parser.add_argument
    add("--plain", default="configs/quickstart.py", help="default: %(default)s")
    add("--modern", default="configs/quickstart_modern.py", help="default: %(default)s")
    add("--steps", type=int, default=240, help="of the plain recipe (default: %(default)s)")
    add(
        "--fractions",
        type=float,
        nargs="+",
        default=[0.3, 0.42],
        help="horizons of the recipes with Muon, as parts of --steps (default: %(default)s)",
    )
    add("--out", type=user_path, required=True, help="folder for the runs")
    add("--plot", type=user_path, help="draw the losses to this file")
    options, arguments = parser.parse_known_args()
    plain, modern = (
        flatten(parse(["train.py", f"--config={file}", *arguments]).to_dict())
        for file in (options.plain, options.modern)
    )
    trainer = Trainer(options.plain, plain, options.out, arguments)
    recipes = climb(trainer, plain, modern, options.steps)
    report(trainer, recipes, options)


def climb(trainer: Trainer, plain: dict, modern: dict, steps: int) -> list[Recipe]:
    """The four recipes, each with the best of several learning rates."""

    def part(section: str) -> dict[str, Any]:
        changed = {name: value for name, value in modern.items() if value != plain[name]}
        return {name: v for name, v in changed.items() if name.startswith(f"{section}.")}

    def around(rate: float) -> list[float]:
        return [factor * rate for factor in FACTORS]

    rate = plain["schedule.peak"]
    modern_rate = modern["schedule.peak"]
    schedule = part("schedule")
    muon = schedule | part("optimizer")
    recipes = [trainer.tuned("plain", {}, around(rate), steps)]
    # Published: three times the rate.
    faster = around(2 * recipes[0].rate)
    recipes.append(trainer.tuned("+ rates and schedule", schedule, faster, steps))
    # GPT-2's embedding is its head too, so the rates of NanoChat's two tables do not suit it.
    adam_rate = recipes[1].rate / modern_rate
    tied = dict.fromkeys(
        ("optimizer.embedding_lr_scale", "optimizer.head_lr_scale", "optimizer.vector_lr_scale"),
        adam_rate,
    )
    recipes.append(trainer.tuned("+ Muon", muon | tied, around(modern_rate), steps))
    all_parts = muon | part("model")
    recipes.append(trainer.tuned("+ architecture", all_parts, around(modern_rate), steps))
    return recipes


def report(trainer: Trainer, recipes: Sequence[Recipe], options: argparse.Namespace) -> None:
    """Train with all seeds, print the table and draw the plot."""
    rows = []
    plain_loss = None
    for recipe in recipes:
        with_muon = "Muon" in recipe.name or "architecture" in recipe.name
        for fraction in (1.0, *options.fractions) if with_muon else (1.0,):
            steps = int(fraction * options.steps)
            losses = [trainer.loss(recipe, steps, seed) for seed in SEEDS]
            mean = statistics.mean(losses)
            plain_loss = mean if plain_loss is None else plain_loss
            rows.append(
                (
                    recipe.name,
                    f"{recipe.rate:g}",
                    f"{steps}",
                    f"{steps / options.steps:.0%}",
                    f"{mean:.4f}",
                    f"{min(losses):.4f} to {max(losses):.4f}",
                    f"{plain_loss - mean:+.4f}",
                )
            )
    print(table(HEAD, rows))
    if options.plot:
        plot(options.plot, trainer, recipes, options.steps)


def plot(path: Path, trainer: Trainer, recipes: Sequence[Recipe], steps: int) -> None:
    """Draw the training loss of each recipe, the mean over the seeds, against its steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for recipe in recipes:
        runs = [trainer.run_folder(recipe, steps, seed) for seed in SEEDS]
        losses = np.mean([read_records(run).steps["loss"] for run in runs], axis=0)
        smooth = np.convolve(losses, np.ones(SMOOTHING) / SMOOTHING, mode="valid")
        axes.plot(np.arange(SMOOTHING, steps + 1), smooth, label=recipe.name)
    axes.set_xlabel("step")
    axes.set_ylabel(f"training loss, mean of {SMOOTHING} steps")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)
    print(f"plot: {path}")


if __name__ == "__main__":
    main()
