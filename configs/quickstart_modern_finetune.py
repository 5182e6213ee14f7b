"""The model of configs/quickstart_modern.py learns to answer questions about Python.

    python -m data_tools.python_docs --chat-out data/python_chat
    python train.py --config configs/quickstart_modern_finetune.py

`make demo` runs both. Two and a half minutes on two CPU cores. Expect answers that sound right
and end where they should; most of them are wrong.
"""

from ml_collections import ConfigDict

from configs.modern_finetune import get_config as modern_finetune
from configs.quickstart_finetune import get_config as quickstart_finetune
from configs.quickstart_modern import get_config as quickstart_modern


def get_config() -> ConfigDict:
    """What differs from finetuning the quickstart's model."""
    base = quickstart_modern()
    c = quickstart_finetune()
    c.name = "quickstart_modern_finetune"
    c.init_from = "runs/quickstart_modern"
    c.model.architecture = base.model.architecture
    c.model.heads = base.model.heads
    c.optimizer.update(base.optimizer)
    c.optimizer.weight_decay = 0.0
    c.schedule.update(modern_finetune().schedule)
    # Higher than in configs/modern_finetune.py, because the run takes minutes, not days: of 0.3 and
    # 1 times the pretraining's rate the better.
    c.schedule.peak = 0.3 * base.schedule.peak
    return c
