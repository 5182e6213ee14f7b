"""A model that any CPU trains in minutes, on English text that every machine has already.

    python -m data_tools.python_docs --megabytes 1.5 --out data/python_docs
    python train.py --config configs/quickstart.py

It takes four minutes on two CPU cores (docs/log.md): a step costs 46 GFLOP, nearly all of it for
the logits of the 50,257 tokens in the vocabulary. The validation loss falls from 10.8 to just below
5.
`make demo` takes configs/quickstart_modern.py, which ends at 3.5.
"""

from ml_collections import ConfigDict

from configs.pretrain import get_config as pretrain


def get_config() -> ConfigDict:
    """The pretraining config, made small, and in float32, which suits every CPU."""
    c = pretrain()
    c.name = "quickstart"
    c.model.context = 256
    c.model.layers = 4
    c.model.heads = 4
    c.model.embed = 128
    c.compute.dtype = "float32"
    # The logits of a chunk must fit into a CPU cache, but tiny chunks make slow matmuls.
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
