"""The quickstart model learns to answer questions about Python. `make demo` runs it.

    python -m data_tools.python_docs --chat-out data/python_chat
    python train.py --config configs/quickstart_finetune.py

Cost: two minutes on two CPU cores. Expect answers that sound right, end by themselves, and mostly are not right.
"""

from ml_collections import ConfigDict

from configs.quickstart import get_config as quickstart


def get_config() -> ConfigDict:
    """What differs from the quickstart, as configs/finetune.py differs from configs/pretrain.py."""
    c = quickstart()
    c.name = "quickstart_finetune"
    c.init_from = "runs/quickstart"
    c.model.vocab_size = 50261
    c.data.folder = "data/python_chat"
    c.data.isolate_documents = True
    c.horizon.steps = 130
    c.schedule.peak, c.schedule.floor, c.schedule.warmup = (
        3e-3,
        1e-4,
        10,
    )  # as high as before: it has minutes, not days
    c.optimizer.weight_decay = 0.0
    c.eval.every = c.save.every = 65
    c.eval.prompts = ("What does len do?", "What does os.path.join do?")
    return c
