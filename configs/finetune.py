"""The pretrained 124M model becomes an assistant: three passes over about 50,000 instructions.

    python -m data_tools.instruct --source tatsu-lab/alpaca --source HuggingFaceH4/instruction-dataset --out data/instruct
    python train.py --config configs/finetune.py

Cost: Alpaca packs into some 4,100 rows, so three passes are some 390 steps of 32 rows, a thousandth of the pretraining.
The loss it prints is per supervised token: answers and the marks that end them.
"""

from ml_collections import ConfigDict

from configs.pretrain import get_config as pretrain


def get_config() -> ConfigDict:
    """What differs from pretraining."""
    c = pretrain()
    c.name = "finetune"
    c.init_from = "runs/pretrain"
    c.model.vocab_size = 50261  # four role markers; their rows begin as the mean of all others
    c.data.folder = "data/instruct"
    c.data.batch = 32  # packed rows of many conversations each
    c.data.isolate_documents = (
        True  # several conversations share a row: each sees what it will see when sampled
    )
    c.horizon.steps, c.horizon.epochs = 0, 3.0
    c.schedule.peak, c.schedule.floor = 5e-5, 0.0  # far below pretraining: adapt, do not forget
    c.schedule.warmup = 50
    c.optimizer.weight_decay = 0.0
    c.eval.every = c.save.every = 100
    c.eval.rows = 256
    c.eval.prompts = ("What is photosynthesis?", "Write a short poem about the sea.")
    return c
