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
    """All fields, for one of the models in SIZES; the other configs change a few of them.

    The comment right above a field is what `python train.py --help` says of it.
    """
    if size not in SIZES:
        raise ValueError(f"found {size!r}, expected one of {', '.join(SIZES)}")
    c = ConfigDict()
    # The folder of the run is <runs>/<name>.
    c.name = "pretrain"
    # Folder that holds the runs.
    c.runs = "runs"
    # Seed of the initial weights, the order of the rows, and dropout.
    c.seed = 1337
    # Folder of another run, whose newest weights this run begins with, or a GPT-2 or NanoChat of
    # the hub: "owner/name" or "owner/name@revision". "": random weights.
    c.init_from = ""
    # Start from step 0 even if the run exists; its checkpoints are set aside until
    # the first save.
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

    # The shape of the network.
    c.model = ConfigDict()
    # Transformer layers, one after the other.
    c.model.layers = SIZES[size]["layers"]
    # Heads of attention in each layer, which share `embed`: 64 numbers each, as in GPT-2.
    c.model.heads = SIZES[size]["heads"]
    # Width: numbers that stand for each token between the layers; a multiple of `heads`.
    c.model.embed = SIZES[size]["embed"]
    # Token ids in use; the embedding table is padded to a multiple of 128 rows.
    c.model.vocab_size = 50257
    # Tokens in a row: as many as the model can look back on.
    c.model.context = 1024
    # Part of the activations that training sets to zero. 0: one pass over 10 B tokens does not
    # overfit.
    c.model.dropout = 0.0
    # "gpt2", or "nanochat": see configs/modern.py.
    c.model.architecture = "gpt2"

    # How the same numbers are computed: memory and speed.
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
    # "auto": cuDNN's kernel on a GPU, splash attention on a TPU, one head at a time on a CPU.
    c.compute.attention = "auto"

    # The loss is computed in chunks, so that all logits are never in memory.
    c.loss = ConfigDict()
    # Positions whose logits are in memory at the same time.
    c.loss.chunk = 128

    # What a step reads.
    c.data = ConfigDict()
    # Token files that a data tool wrote.
    c.data.folder = "data/fineweb_edu"
    # Several folders in place of data.folder, with their parts of the rows:
    # "data/a=0.7,data/b=0.3". "": only data.folder.
    c.data.mixture = ""
    # Rows per step: 512 x 1024 = 524,288 tokens, the batch of GPT-3 125M.
    c.data.batch = 512
    # Rows that a device computes together. 0: as many as fit into its memory.
    c.data.micro_batch = 0
    # Whether a token sees only its own document. False, as in GPT-2: all documents of its row.
    c.data.isolate_documents = False

    # The length of the run: exactly one of the three is not zero.
    c.horizon = ConfigDict()
    # Updates of the weights. 19,073 of them are 10 B tokens: about one pass over sample-10BT.
    c.horizon.steps = 19_073
    # The same in tokens that are read.
    c.horizon.tokens = 0
    # The same in passes over the training split; it may be a fraction.
    c.horizon.epochs = 0.0

    # How gradients become updates; the settings of GPT-3.
    c.optimizer = ConfigDict()
    # "adamw", or "muon" for the matrices of the layers, with Adam for all other weights.
    c.optimizer.kind = "adamw"
    # Adam's average of gradients: how much of it each step keeps.
    c.optimizer.b1 = 0.9
    # The same for squared gradients. Shorter than Adam's default 0.999: more stable with large
    # batches.
    c.optimizer.b2 = 0.95
    # Added to Adam's divisor, so that it is never zero.
    c.optimizer.eps = 1e-8
    # Pull of the weights towards zero. Applies to matrices and embeddings only.
    c.optimizer.weight_decay = 0.1
    # Largest global norm of the gradient; a larger gradient is scaled down to it.
    c.optimizer.clip = 1.0
    # For "muon" only: its momentum.
    c.optimizer.momentum = 0.95
    # For "muon" only: the learning rate of the embeddings, as a multiple of the matrices' rate.
    c.optimizer.embedding_lr_scale = 1.0
    # The same for the output head, where it is not the embedding.
    c.optimizer.head_lr_scale = 1.0
    # The same for all other weights that Adam trains: scales and biases.
    c.optimizer.vector_lr_scale = 1.0

    # The learning rate of each step.
    c.schedule = ConfigDict()
    # How it falls after the warm-up: "cosine" and "linear" over the whole run, "wsd" at its end,
    # "constant" never.
    c.schedule.kind = "cosine"
    # The highest learning rate; larger models need a lower one.
    c.schedule.peak = 6e-4
    # Steps in which it rises to the peak: 367 M tokens, about GPT-3's 375 M.
    c.schedule.warmup = 700
    # The learning rate at the end: a tenth of the peak.
    c.schedule.floor = 6e-5
    # For "wsd" only: the part of the run in which the learning rate falls.
    c.schedule.decay = 0.2

    # Devices along each axis. -1: all that the other two axes leave.
    c.mesh = ConfigDict()
    # Each has a copy of the model and a part of the batch.
    c.mesh.data = -1
    # The same, but parameters and optimizer state are split over them too: less memory.
    c.mesh.fsdp = 1
    # The matrices of each layer are split over them: for devices with fast links.
    c.mesh.tensor = 1

    # What is recorded while the run trains.
    c.log = ConfigDict()
    # Steps between TensorBoard points, and between printed lines if the output is not a terminal.
    c.log.every = 10
    # Write curves for TensorBoard into the folder of the run.
    c.log.tensorboard = True
    # "trackio" or "wandb": the curves go there too (docs/running.md). "": nowhere.
    c.log.tracker = ""

    # What is measured while the run trains.
    c.eval = ConfigDict()
    # Steps from one evaluation to the next.
    c.eval.every = 250
    # Rows of each split of each folder that it reads, always the same ones: a million tokens.
    c.eval.rows = 1024
    # Texts that are sampled at each evaluation, one for each of the first prompts.
    c.eval.samples = 2
    # Length of a text at most.
    c.eval.sample_tokens = 48
    # What the texts begin with; questions for a chat model.
    c.eval.prompts = ("The mitochondria", "Long ago,")
    # A .parquet or .jsonl file of HellaSwag's validation split, or "Rowan/hellaswag". "": off.
    c.eval.hellaswag = ""
    # Steps from one HellaSwag score to the next, always as part of an evaluation. 0: never.
    c.eval.hellaswag_every = 1000
    # Questions, out of 10,042: enough for a standard error of 1.4%.
    c.eval.hellaswag_rows = 1000

    # Checkpoints.
    c.save = ConfigDict()
    # Steps from one checkpoint to the next: a killed run loses no more.
    c.save.every = 500
    # How many of the newest checkpoints to keep, 1.5 GB each; the best one is kept too.
    c.save.keep = 2
    # Repository of the hub, "owner/name", that gets the weights of the newest save as Hugging
    # Face's files: private if it is new. Uploads run in the background. "": none.
    c.save.push = ""
    return c
