"""GPT-2 124M from scratch on 10 B tokens of FineWeb-Edu: the recipe that reaches the original's quality.

    python -m data_tools.fineweb --source HuggingFaceFW/fineweb-edu --name sample-10BT --out data/fineweb_edu
    python train.py --config configs/pretrain.py                  (or configs/pretrain.py:gpt2-medium, gpt2-large, gpt2-xl)

Cost: 8.5e18 FLOPs. At 40% of an H200's or H100's 989 TFLOP/s that is 6 hours on one GPU, at 40% of an A100's 312
TFLOP/s 19 hours; eight GPUs take an eighth. (Arithmetic, not a measurement: docs/log.md holds what was measured.)
Expect a validation loss of about 3.3, where OpenAI's own GPT-2 124M has 3.29 on this text.
"""

from ml_collections import ConfigDict

SIZES = {
    "gpt2": {"layers": 12, "heads": 12, "embed": 768},
    "gpt2-medium": {"layers": 24, "heads": 16, "embed": 1024},
    "gpt2-large": {"layers": 36, "heads": 20, "embed": 1280},
    "gpt2-xl": {"layers": 48, "heads": 25, "embed": 1600},
}


def get_config(size: str = "gpt2") -> ConfigDict:
    """Every field there is, for a model of SIZES; the other configs change a few of them."""
    c = ConfigDict()
    c.name = "pretrain"  # the run lives in <runs>/<name>
    c.runs = "runs"
    c.seed = 1337  # initial weights, order of rows, dropout
    c.init_from = ""  # a run whose newest weights to start from
    c.fresh = False  # start anew where a run exists: removes its checkpoints
    c.accept_changes = (
        False  # go on although the config or the data differ from those of the checkpoint
    )
    c.deterministic = False  # bit-for-bit repeatable on a GPU too; a CPU always is
    c.profile = False  # write a profiler trace of ten steps to <run>/profile

    c.model = ConfigDict(SIZES[size])
    c.model.vocab_size = 50257  # live ids; the table itself is padded to a multiple of 128
    c.model.context = 1024
    c.model.dropout = 0.0  # one pass over 10 B tokens does not overfit

    c.compute = ConfigDict()
    c.compute.dtype = "auto"  # of products: bfloat16, float32 on a CPU; parameters, optimizer, LayerNorm and softmax stay float32
    c.compute.remat = "none"  # "dots" or "full" when memory is short
    c.compute.unroll = 1  # layers compiled as one piece; more takes more memory than the plan says
    c.compute.attention = "auto"  # cuDNN's fused kernel on a GPU, one head at a time on a CPU

    c.loss = ConfigDict()
    c.loss.chunk = 128  # positions whose logits are in memory at once

    c.data = ConfigDict()
    c.data.folder = "data/fineweb_edu"
    c.data.batch = 512  # sequences a step: 512 x 1024 = 524,288 tokens, the batch of GPT-3 125M
    c.data.micro_batch = 0  # sequences per device at once; 0: derived from the device's memory
    c.data.isolate_documents = False  # packed documents may see each other, as in GPT-2

    c.horizon = ConfigDict()  # exactly one of the three is not zero
    c.horizon.steps = 19_073  # 10 B tokens: about one pass over sample-10BT
    c.horizon.tokens = 0
    c.horizon.epochs = 0.0

    c.optimizer = ConfigDict()  # GPT-3's
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.95  # a shorter memory than Adam's default: steadier in large batches
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 0.1  # matrices and embeddings only
    c.optimizer.clip = 1.0  # global norm of the gradient

    c.schedule = ConfigDict()
    c.schedule.kind = "cosine"
    c.schedule.peak = 6e-4
    c.schedule.warmup = 700  # 367 M tokens: about GPT-3's 375 M
    c.schedule.floor = 6e-5  # a tenth of the peak
    c.schedule.decay = 0.2  # "wsd" only: the part of the run in which the rate falls

    c.mesh = ConfigDict()  # -1: all devices that the others leave
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    c.log = ConfigDict()
    c.log.every = (
        10  # steps between lines on a terminal that is none, and between TensorBoard points
    )
    c.log.tensorboard = True

    c.eval = ConfigDict()
    c.eval.every = 250
    c.eval.rows = 1024  # a million tokens
    c.eval.samples = 2  # texts printed at each evaluation
    c.eval.sample_tokens = 48
    c.eval.prompts = ("The mitochondria", "Long ago,")
    c.eval.hellaswag = ""  # a .parquet or .jsonl file of HellaSwag's validation split, or "Rowan/hellaswag"; "": off
    c.eval.hellaswag_every = (
        1000  # steps from one to the next, always as part of an evaluation; 0: never
    )
    c.eval.hellaswag_rows = 1000  # of 10,042: enough for a standard error of 1.4%

    c.save = ConfigDict()
    c.save.every = 500
    c.save.keep = 2  # newest ones; the best is kept too. 1.5 GB each
    return c
