"""GPT-2 124M from scratch on 10 B tokens of FineWeb-Edu, the recipe that reaches GPT-2's quality.

    python -m data_tools.fineweb --source HuggingFaceFW/fineweb-edu --name sample-10BT \\
        --out data/fineweb_edu
    python train.py --config configs/pretrain.py

Other sizes: configs/pretrain.py:gpt2-medium, gpt2-large, gpt2-xl.

Cost: 8.5e18 FLOPs. That is 5.2 hours on one H200 at the speed that was measured (docs/log.md), 6
hours at 40% of an H100's 989 TFLOP/s, 19 hours at 40% of an A100's 312 TFLOP/s; eight GPUs need an
eighth of the time. (All of this is arithmetic.) Expect a validation loss of about 3.3, where
OpenAI's own GPT-2 124M has 3.29 on this text.
"""

from ml_collections import ConfigDict

SIZES = {
    "gpt2": {"layers": 12, "heads": 12, "embed": 768},
    "gpt2-medium": {"layers": 24, "heads": 16, "embed": 1024},
    "gpt2-large": {"layers": 36, "heads": 20, "embed": 1280},
    "gpt2-xl": {"layers": 48, "heads": 25, "embed": 1600},
}


def get_config(size: str = "gpt2") -> ConfigDict:
    """All fields, for one of the models in SIZES; the other configs change a few of them."""
    if size not in SIZES:
        raise ValueError(f"found {size!r}, expected one of {', '.join(SIZES)}")
    c = ConfigDict()
    # The folder of the run is <runs>/<name>.
    c.name = "pretrain"
    c.runs = "runs"
    # Seed of the initial weights, the order of the rows, and dropout.
    c.seed = 1337
    # Folder of another run, whose newest weights this run begins with, or a GPT-2 or NanoChat of
    # the hub: "owner/name" or "owner/name@revision". "": random weights.
    c.init_from = ""
    # Start from step 0 even if the run exists; this removes its checkpoints.
    c.fresh = False
    # Resume even if the config or the data differ from those of the checkpoint.
    c.accept_changes = False
    # Make results on a GPU repeatable bit for bit; on a CPU they always are.
    c.deterministic = False
    # Write a profiler trace of ten steps to <run>/profile.
    c.profile = False
    # Exit code of a run that a signal stopped before its end, after saving. 75 tells Kubernetes and
    # the like to start it again.
    c.interrupted_exit_code = 0

    c.model = ConfigDict(SIZES[size])
    # Token ids in use; the embedding table is padded to a multiple of 128 rows.
    c.model.vocab_size = 50257
    c.model.context = 1024
    # One pass over 10 B tokens does not overfit.
    c.model.dropout = 0.0
    # "gpt2", or "nanochat": see configs/modern.py.
    c.model.architecture = "gpt2"

    c.compute = ConfigDict()
    # For matmuls. "auto" is float32 on a CPU and on NVIDIA GPUs older than Ampere, bfloat16
    # elsewhere. Parameters, optimizer, LayerNorm and softmax are always float32.
    c.compute.dtype = "auto"
    # To save memory, "dots" or "full" recompute activations in the backward pass.
    c.compute.remat = "none"
    # Layers that are compiled as one piece. 0: all (up to 48) where cuDNN computes attention, which
    # is faster; 1 elsewhere, with remat, and with mesh.tensor. With remat more than 1 takes back
    # the memory that remat saves.
    c.compute.unroll = 0
    # "auto": cuDNN's fused kernel on a GPU, one head at a time on a CPU.
    c.compute.attention = "auto"

    c.loss = ConfigDict()
    # Positions whose logits are in memory at the same time.
    c.loss.chunk = 128

    c.data = ConfigDict()
    c.data.folder = "data/fineweb_edu"
    # Rows per step: 512 x 1024 = 524,288 tokens, the batch of GPT-3 125M.
    c.data.batch = 512
    # Rows that a device computes together. 0: as many as fit into its memory.
    c.data.micro_batch = 0
    # Whether a token sees only its own document. False, as in GPT-2: all documents of its row.
    c.data.isolate_documents = False

    # The length of the run: exactly one of the three is not zero.
    c.horizon = ConfigDict()
    # 10 B tokens: about one pass over sample-10BT.
    c.horizon.steps = 19_073
    c.horizon.tokens = 0
    c.horizon.epochs = 0.0

    # The settings of GPT-3.
    c.optimizer = ConfigDict()
    # "adamw", or "muon" for the matrices of the layers, with Adam for all other weights.
    c.optimizer.kind = "adamw"
    c.optimizer.b1 = 0.9
    # A shorter average than Adam's default 0.999: more stable with large batches.
    c.optimizer.b2 = 0.95
    c.optimizer.eps = 1e-8
    # Applies to matrices and embeddings only.
    c.optimizer.weight_decay = 0.1
    # Largest global norm of the gradient.
    c.optimizer.clip = 1.0
    # For "muon" only: its momentum, and the learning rates of Adam's weights, as multiples of the
    # matrices' rate: embeddings, the output head (where it is not the embedding), and the rest.
    c.optimizer.momentum = 0.95
    c.optimizer.embedding_lr_scale = 1.0
    c.optimizer.head_lr_scale = 1.0
    c.optimizer.vector_lr_scale = 1.0

    c.schedule = ConfigDict()
    c.schedule.kind = "cosine"
    c.schedule.peak = 6e-4
    # 367 M tokens: about GPT-3's 375 M.
    c.schedule.warmup = 700
    # A tenth of the peak.
    c.schedule.floor = 6e-5
    # For "wsd" only: the part of the run in which the learning rate falls.
    c.schedule.decay = 0.2

    # Devices along each axis. -1: all that the other two axes leave.
    c.mesh = ConfigDict()
    c.mesh.data = -1
    c.mesh.fsdp = 1
    c.mesh.tensor = 1

    c.log = ConfigDict()
    # Steps between TensorBoard points, and between printed lines if the output is not a terminal.
    c.log.every = 10
    c.log.tensorboard = True

    c.eval = ConfigDict()
    c.eval.every = 250
    # A million tokens.
    c.eval.rows = 1024
    # Texts that are sampled at each evaluation.
    c.eval.samples = 2
    c.eval.sample_tokens = 48
    c.eval.prompts = ("The mitochondria", "Long ago,")
    # A .parquet or .jsonl file of HellaSwag's validation split, or "Rowan/hellaswag". "": off.
    c.eval.hellaswag = ""
    # Steps from one HellaSwag score to the next, always as part of an evaluation. 0: never.
    c.eval.hellaswag_every = 1000
    # Questions, out of 10,042: enough for a standard error of 1.4%.
    c.eval.hellaswag_rows = 1000

    c.save = ConfigDict()
    c.save.every = 500
    # How many of the newest checkpoints to keep, 1.5 GB each; the best one is kept too.
    c.save.keep = 2
    # Repository of the hub, "owner/name", that gets the weights of each save as Hugging Face's
    # files: private if it is new. Uploads run in the background. "": none.
    c.save.push = ""
    return c
