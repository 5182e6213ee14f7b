"""The quickstart model learns to answer questions about Python.

    python -m data_tools.python_docs --chat-out data/python_chat
    python train.py --config configs/quickstart_finetune.py

Cost: two minutes on two CPU cores. Expect answers that sound right and end
where they should; most of them are wrong.
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
    # As high as in pretraining, because the run takes minutes, not days.
    c.schedule.peak = 3e-3
    c.schedule.floor = 1e-4
    c.schedule.warmup = 10
    c.optimizer.weight_decay = 0.0
    c.eval.every = 65
    c.eval.prompts = ("What does len do?", "What does os.path.join do?")
    c.save.every = 65
    return c
