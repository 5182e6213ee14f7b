"""The modern recipe: 162M parameters from scratch, a sixth of the tokens of GPT-2's recipe.

    python -m data_tools.fineweb --source HuggingFaceFW/fineweb-edu --name sample-10BT \\
        --out data/fineweb_edu
    python train.py --config configs/modern.py

What differs from configs/pretrain.py: the model is NanoChat, which transformers 5 loads
(docs/recipes.md compares it with GPT-2), and the matrices of its layers are trained with Muon. A
step costs the same FLOPs. Another size: configs/modern.py:d20, 522M parameters.

Cost: 1.5e18 FLOPs, an hour on one H200 or H100 at 40% of its 989 TFLOP/s; d20 3.1e19 FLOPs, 22
hours. Expected: on FineWeb a run with this recipe reached 3.28 after these 1.7 B tokens, where
GPT-2's needs 10 B (docs/recipes.md names the sources). Not measured: FineWeb-Edu, and d20.
"""

from ml_collections import ConfigDict

from configs.pretrain import get_config as pretrain

# Heads of 128 (nanochat's ablations: better than 64). The name is the number of layers.
SIZES = {
    "d12": {"layers": 12, "heads": 6, "embed": 768},
    "d20": {"layers": 20, "heads": 10, "embed": 1280},
}
STEPS = {
    # 1.7 B tokens.
    "d12": 3250,
    # 10 B tokens: one pass over sample-10BT, 19 for each parameter.
    "d20": 19_073,
}


def get_config(size: str = "d12") -> ConfigDict:
    """What differs from pretraining GPT-2, for one of SIZES."""
    if size not in SIZES:
        raise ValueError(f"found {size!r}, expected one of {', '.join(SIZES)}")
    c = pretrain()
    c.name = "modern"
    c.model.update(SIZES[size])
    c.model.architecture = "nanochat"
    c.horizon.steps = STEPS[size]

    # The numbers of modded-nanogpt's optimizer track, which were found for d12.
    c.optimizer.kind = "muon"
    c.optimizer.momentum = 0.95
    c.optimizer.weight_decay = 0.05
    # Of Adam, for the tables: rare tokens need short averages.
    c.optimizer.b1 = 0.8
    c.optimizer.b2 = 0.95
    c.optimizer.eps = 1e-10
    # No clipping, as in that recipe.
    c.optimizer.clip = 1e6
    # No warm-up: what adds to the residual stream begins with zeros. Then the rate falls to zero
    # over the last 70% of the run.
    c.schedule.kind = "wsd"
    c.schedule.warmup = 0
    c.schedule.decay = 0.7
    c.schedule.floor = 0.0
    # Of Muon, whose updates are scaled by sqrt(max(1, outputs / inputs)): the same for any width.
    c.schedule.peak = 0.025
    # Of Adam: 0.7 for the embedding and 0.004 for the head at width 768; for other widths, as in
    # nanochat, they go with 1 / sqrt(width).
    factor = (768 / c.model.embed) ** 0.5 / c.schedule.peak
    c.optimizer.embedding_lr_scale = 0.7 * factor
    c.optimizer.head_lr_scale = 0.004 * factor
    return c
