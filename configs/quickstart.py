"""A model that any CPU trains in minutes, on English that every machine already has. `make demo` runs it.

    python -m data_tools.python_docs --megabytes 1.5 --out data/python_docs
    python train.py --config configs/quickstart.py

Cost: 46 GFLOP a step, nearly all of it the 50,257 columns of the vocabulary: four minutes on two CPU cores (docs/log.md).
Expect a validation loss just below 5, from 10.8.
"""

from ml_collections import ConfigDict

from configs.pretrain import get_config as pretrain


def get_config() -> ConfigDict:
    """What differs from the real thing: everything is small, and float32, which every CPU is good at."""
    c = pretrain()
    c.name = "quickstart"
    c.model.context, c.model.layers, c.model.heads, c.model.embed = 256, 4, 4, 128
    c.compute.dtype = "float32"
    c.loss.chunk = 32  # small enough for a CPU cache, large enough for its matrix products
    c.data.folder = "data/python_docs"
    c.data.batch = 4
    c.horizon.steps = 240
    c.schedule.peak, c.schedule.floor, c.schedule.warmup = (
        3e-3,
        3e-4,
        30,
    )  # small models bear a higher rate
    c.eval.every, c.save.every = 60, 120
    c.eval.rows = 24
    c.eval.prompts = ("Return a new", "The shape of the array")
    return c
