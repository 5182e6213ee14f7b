"""The quickstart model learns to answer questions about Python. `make demo` runs it.

    python -m data_tools.python_docs --out data/python_docs --chat-out data/python_chat
    python train.py --config configs/quickstart_finetune.py
"""

from configs.quickstart import get_config as quickstart
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the quickstart, as configs/finetune.py differs from configs/pretrain.py."""
    c = quickstart()
    c.name = "quickstart_finetune"
    c.init_from = "runs/quickstart"
    c.model.vocab_size = 50261
    c.data.folder = "data/python_chat"
    c.data.isolate_documents = True
    c.horizon.steps, c.horizon.epochs = 150, 0.0
    c.schedule.peak, c.schedule.floor, c.schedule.warmup = 1e-3, 1e-4, 10
    c.optimizer.weight_decay = 0.0
    c.eval.every = c.save.every = 50
    c.eval.prompts = ("What does len do?", "What does os.path.join do?")
    return c
