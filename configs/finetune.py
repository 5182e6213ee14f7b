"""The pretrained 124M model becomes an assistant: three passes over about 50,000 instructions.

    python -m data_tools.instruct --source tatsu-lab/alpaca \\
        --source HuggingFaceH4/instruction-dataset --out data/instruct
    python train.py --config configs/finetune.py

Cost: Alpaca packs into about 4,100 rows, so three passes are about 390 steps of 32 rows, a
thousandth of the pretraining. The loss is per supervised token: the answers and the tokens that
end them.
"""

from ml_collections import ConfigDict

from configs.pretrain import get_config as pretrain


def get_config() -> ConfigDict:
    """What differs from pretraining."""
    c = pretrain()
    c.name = "finetune"
    c.init_from = "runs/pretrain"
    # Four role markers more. Their new rows are the mean of all others.
    c.model.vocab_size = 50261
    c.data.folder = "data/instruct"
    # Packed rows, of many conversations each.
    c.data.batch = 32
    # A conversation sees only itself, as when the model is sampled.
    c.data.isolate_documents = True
    c.horizon.steps = 0
    c.horizon.epochs = 3.0
    # Far below pretraining, so that the model adapts but does not forget.
    c.schedule.peak = 5e-5
    c.schedule.floor = 0.0
    c.schedule.warmup = 50
    c.optimizer.weight_decay = 0.0
    c.eval.every = 100
    c.eval.rows = 256
    c.eval.prompts = ("What is photosynthesis?", "Write a short poem about the sea.")
    c.save.every = 100
    return c
