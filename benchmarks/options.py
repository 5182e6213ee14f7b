"""Command-line options that several benchmarks have."""

import argparse
import dataclasses

from minigpt_jax.model_config import GPTConfig

# The size of NanoChat's heads.
MODERN_HEAD = 128


def add_integers(parser: argparse.ArgumentParser, **defaults: int) -> None:
    """An option for each name, with its default."""
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")


def model_config(options: argparse.Namespace) -> GPTConfig:
    """The model that --layers, --heads, --embed and --context describe."""
    return GPTConfig(
        layers=options.layers, heads=options.heads, embed=options.embed, context=options.context
    )


def modern(config: GPTConfig) -> GPTConfig:
    """NanoChat in the size of `config`, with heads of MODERN_HEAD."""
    heads = max(1, config.embed // MODERN_HEAD)
    return dataclasses.replace(config, architecture="nanochat", heads=heads)
