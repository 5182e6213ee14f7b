"""Prepare text with datatrove's executors: each of their tasks writes one part.

    pip install datatrove                 # tested: 0.10.1
    python -m examples.datatrove_parts my_texts/ data/parts data/mine --tasks 8

This runs the tasks on the machine that it is started on. Any other executor of datatrove runs the
same function; only the next lines differ, and --merge joins the parts when all are there. On a real
Slurm or Ray cluster they are untested:

    step = partial(write_part, recipe, folder, 16)
    some = {"tasks": 8, "cpus_per_task": 16, "skip_completed": False}
    SlurmPipelineExecutor([step], time="02:00:00", partition="cpu", **some).run()
    RayPipelineExecutor([step], **some).run()
"""

import argparse
from functools import partial
from pathlib import Path

from data_tools.encoders import cores
from data_tools.fast_tokenizer import FastTokenizer
from data_tools.folder_lock import lock
from data_tools.join_parts import join_parts
from data_tools.make_parts import make_part
from data_tools.recipe import Recipe
from minigpt_jax.runtime.files import user_path
from minigpt_jax.runtime.program import exit_cleanly


def write_part(
    recipe: Recipe, folder: Path, workers: int, data: object, rank: int, world_size: int
) -> None:
    """A step of a pipeline: part number `rank` of `world_size`, on `workers` cores."""
    make_part(recipe, folder, rank, world_size, workers=workers, fast_tokenizer=FastTokenizer())


def main() -> None:
    """Write the parts of one source, as many at a time as there are cores, and join them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("parts", type=user_path)
    parser.add_argument("out", type=user_path)
    parser.add_argument("--tasks", type=int, default=8)
    options = parser.parse_args()
    # Not before the help is printed: it takes long, and may be missing.
    from datatrove.executor import LocalPipelineExecutor

    LocalPipelineExecutor(
        [partial(write_part, Recipe([options.source]), options.parts, 1)],
        tasks=options.tasks,
        workers=min(options.tasks, cores()),
        logging_dir=str(options.parts / "logs"),
        # A part that is there is not made again; one that was deleted is.
        skip_completed=False,
    ).run()
    with lock(options.out):
        join_parts(options.parts, options.out)


if __name__ == "__main__":
    exit_cleanly(main)
