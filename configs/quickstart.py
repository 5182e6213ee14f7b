"""A model that any CPU trains in minutes, on English text that every machine has already.

    python -m data_tools.python_docs --megabytes 1.5 --out data/python_docs
    python train.py --config configs/quickstart.py

`make demo` runs both. Cost: 46 GFLOP a step, nearly all of it for the 50,257 columns of the
vocabulary: four minutes on two CPU cores (docs/log.md). Expect a validation loss just below 5,
from 10.8 at the start.
"""

from ml_collections import ConfigDict

from configs.pretrain import get_config as pretrain


def get_config() -> ConfigDict:
    """What differs from pretraining: everything is small, and float32, which suits every CPU."""
    c = pretrain()
    c.name = "quickstart"
    c.model.context = 256
    c.model.layers = 4
    c.model.heads = 4
    c.model.embed = 128
    c.compute.dtype = "float32"
    # Small enough for a CPU cache, large enough for efficient matmuls.
    c.loss.chunk = 32
    c.data.folder = "data/python_docs"
    c.data.batch = 4
    c.horizon.steps = 240
    # Small models tolerate a higher learning rate.
    c.schedule.peak = 3e-3
    c.schedule.floor = 3e-4
    c.schedule.warmup = 30
    c.eval.every = 60
    c.eval.rows = 24
    c.eval.prompts = ("Return a new", "The shape of the array")
    c.save.every = 120
    return c
