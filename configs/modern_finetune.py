"""The model of configs/modern.py becomes an assistant: three passes over about 50,000 instructions.

    python -m data_tools.instruct --source tatsu-lab/alpaca \\
        --source HuggingFaceH4/instruction-dataset --out data/instruct
    python train.py --config configs/modern_finetune.py

Cost: Alpaca packs into about 4,100 rows, so three passes are about 390 steps of 32 rows, minutes on
one GPU. The size must be that of the pretrained model: configs/modern_finetune.py:d20. The result
was not measured.
"""

from ml_collections import ConfigDict

from configs.finetune import get_config as finetune
from configs.modern import get_config as modern

# Of the pretraining's learning rates (nanochat).
PART_OF_THE_RATE = 0.02


def get_config(size: str = "d12") -> ConfigDict:
    """What differs from finetuning GPT-2: the model, its optimizer and the learning rate."""
    base = modern(size)
    c = finetune()
    c.name = "modern_finetune"
    c.init_from = "runs/modern"
    c.model.update(base.model)
    # Four role markers more, as in configs/finetune.py.
    c.model.vocab_size = 50261
    c.optimizer.update(base.optimizer)
    c.optimizer.weight_decay = 0.0
    c.schedule.kind = "linear"
    c.schedule.peak = PART_OF_THE_RATE * base.schedule.peak
    c.schedule.floor = 0.0
    c.schedule.warmup = 0
    return c
