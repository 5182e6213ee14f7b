"""The quickstart with the modern recipe."""

from ml_collections import ConfigDict

from configs.quickstart import get_config as quickstart


def get_config() -> ConfigDict:
    """What differs from the quickstart."""
    c = quickstart()
    c.name = "quickstart_modern"
    c.model.architecture = "nanochat"
    c.model.heads = 2
    c.optimizer.kind = "muon"
    c.optimizer.b1 = 0.8
    c.optimizer.eps = 1e-10
    c.optimizer.weight_decay = 0.05
    c.optimizer.clip = 1e6
    c.optimizer.embedding_rate = 28.0
    c.optimizer.head_rate = 0.16
    c.schedule.kind = "wsd"
    c.schedule.decay = 0.7
    c.schedule.peak = 0.025
    c.schedule.floor = 0.0
    c.schedule.warmup = 0
    return c
