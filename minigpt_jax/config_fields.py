"""Every field of a config: its values, what a resumed run may change, and what it was earlier."""

import math

from minigpt_jax.model_config import ARCHITECTURES

REMAT = ("none", "dots", "full")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd", "linear", "constant")

# Every field with its range (both ends included), its choices, or the type that any value may have.
FIELDS: dict[str, tuple] = {
    "name": (str,),
    "runs": (str,),
    "seed": (0, 2**31 - 1),
    "init_from": (str,),
    "fresh": (bool,),
    "accept_changes": (bool,),
    "deterministic": (bool,),
    "profile": (bool,),
    "interrupted_exit_code": (0, 125),
    "model.vocab_size": (2, 65536),
    "model.context": (1, 2**20),
    "model.layers": (1, 1000),
    "model.heads": (1, 1000),
    "model.embed": (1, 2**17),
    "model.dropout": (0.0, 0.99),
    "model.architecture": ARCHITECTURES,
    "compute.dtype": ("auto", "float32", "bfloat16"),
    "compute.remat": REMAT,
    "compute.unroll": (0, 1000),
    "compute.attention": ("auto", "cudnn", "splash", "xla"),
    "loss.chunk": (1, 2**20),
    "data.folder": (str,),
    "data.mixture": (str,),
    "data.batch": (1, 2**20),
    "data.micro_batch": (0, 2**20),
    "data.isolate_documents": (bool,),
    "horizon.steps": (0, 2**31 - 1),
    "horizon.tokens": (0, 10**15),
    "horizon.epochs": (0.0, 10**6),
    "optimizer.kind": OPTIMIZERS,
    "optimizer.b1": (0.0, 0.9999),
    "optimizer.b2": (0.0, 0.9999),
    "optimizer.eps": (1e-30, 1.0),
    "optimizer.weight_decay": (0.0, 10.0),
    "optimizer.clip": (1e-6, math.inf),
    "optimizer.momentum": (0.0, 0.9999),
    "optimizer.embedding_lr_scale": (0.0, 10.0**4),
    "optimizer.head_lr_scale": (0.0, 10.0**4),
    "optimizer.vector_lr_scale": (0.0, 10.0**4),
    "schedule.kind": SCHEDULES,
    "schedule.peak": (0.0, 10.0),
    "schedule.warmup": (0, 2**31 - 1),
    "schedule.floor": (0.0, 10.0),
    "schedule.decay": (0.0, 1.0),
    "mesh.data": (-1, 2**20),
    "mesh.fsdp": (-1, 2**20),
    "mesh.tensor": (-1, 2**20),
    "log.every": (1, 2**31 - 1),
    "log.tensorboard": (bool,),
    "log.tracker": ("", "trackio", "wandb"),
    "eval.every": (1, 2**31 - 1),
    "eval.rows": (1, 2**31 - 1),
    "eval.samples": (0, 100),
    "eval.sample_tokens": (1, 2**20),
    "eval.prompts": (tuple,),
    "eval.hellaswag": (str,),
    "eval.hellaswag_every": (0, 2**31 - 1),
    "eval.hellaswag_rows": (1, 2**31 - 1),
    "save.every": (1, 2**31 - 1),
    "save.keep": (1, 2**31 - 1),
    "save.push": (str,),
}

# What a resumed run may change: how far it trains, on which devices, what it logs and what it
# keeps. Everything else would make it another run. (The data are compared by content, with the
# weights of a mixture, so their folders may move. A name that ends in a dot is a whole section.)
MAY_CHANGE_ON_RESUME = (
    "name",
    "runs",
    "fresh",
    "accept_changes",
    "profile",
    "interrupted_exit_code",
    "compute.unroll",
    "data.folder",
    "data.mixture",
    "data.micro_batch",
    "horizon.",
    "mesh.",
    "log.",
    "eval.",
    "save.",
)

# Fields whose default is not what earlier versions did: a resumed run keeps its own value unless
# the command line names another.
KEPT_UNLESS_NAMED = ("compute.unroll",)

# Fields that name a file or a folder.
PATH_FIELDS = ("runs", "init_from", "data.folder", "eval.hellaswag")

# Field -> the value that does what versions before that field, or before its present default, did.
# A new field or a changed default needs an entry here, so that config files without the field keep
# working and a resumed run is compared with what it did. If the default does something else, it
# needs one in KEPT_UNLESS_NAMED too, so that old runs resume unchanged.
EARLIER: dict[str, object] = {
    "interrupted_exit_code": 0,
    "data.mixture": "",
    "compute.unroll": 1,
    "model.architecture": "gpt2",
    "optimizer.kind": "adamw",
    # Of "muon" alone.
    "optimizer.momentum": 0.95,
    "optimizer.embedding_lr_scale": 1.0,
    "optimizer.head_lr_scale": 1.0,
    "optimizer.vector_lr_scale": 1.0,
    "log.tracker": "",
    "save.push": "",
}


def expected(allowed: tuple) -> str:
    """What a field of FIELDS accepts, in words."""
    first = allowed[0]
    if first is bool:
        return "True or False"
    if isinstance(first, type):
        return {str: "a text", tuple: "a tuple of texts"}[first]
    if isinstance(first, str):
        return "one of " + ", ".join(choice or "''" for choice in allowed)
    noun = "a whole number" if isinstance(first, int) else "a number"
    return f"{noun} from {_format(first)} to {_format(allowed[1])}"


def _format(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
