"""Command-line options that several benchmarks have."""

import argparse

from minigpt_jax.model_config import GPTConfig


def add_integers(parser: argparse.ArgumentParser, **defaults: int) -> None:
    """An option for each name, with its default."""
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")


def model_config(options: argparse.Namespace) -> GPTConfig:
    """The model that --layers, --heads, --embed and --context describe."""
    return GPTConfig(
        layers=options.layers, heads=options.heads, embed=options.embed, context=options.context
    )
