"""What a run is told: the command line, the config files, what each field may be, and what a resumed run may change.

The only file that knows absl and ml_collections. A section of the config is the keyword arguments of one function, and
train.py is the last to see the whole.
"""

import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from minigpt_jax.errors import InputError

Config = Any  # a ConfigDict, whose fields no type checker can know
INFINITY = math.inf
_OVERRIDE = re.compile(r"--?config\.([\w.]+)")
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
    "model.vocab_size": (2, 65536),
    "model.context": (1, 2**20),
    "model.layers": (1, 1000),
    "model.heads": (1, 1000),
    "model.embed": (1, 2**17),
    "model.dropout": (0.0, 0.99),
    "compute.dtype": ("auto", "float32", "bfloat16"),
    "compute.remat": ("none", "dots", "full"),
    "compute.unroll": (1, 1000),
    "compute.attention": ("auto", "cudnn", "xla"),
    "loss.chunk": (1, 2**20),
    "data.folder": (str,),
    "data.batch": (1, 2**20),
    "data.micro_batch": (0, 2**20),
    "data.isolate_documents": (bool,),
    "horizon.steps": (0, 2**31 - 1),
    "horizon.tokens": (0, 10**15),
    "horizon.epochs": (0.0, 10**6),
    "optimizer.b1": (0.0, 1.0),
    "optimizer.b2": (0.0, 1.0),
    "optimizer.eps": (1e-30, 1.0),
    "optimizer.weight_decay": (0.0, 10.0),
    "optimizer.clip": (1e-6, INFINITY),
    "schedule.kind": ("cosine", "wsd", "linear", "constant"),
    "schedule.peak": (0.0, 10.0),
    "schedule.warmup": (0, 2**31 - 1),
    "schedule.floor": (0.0, 10.0),
    "schedule.decay": (0.0, 1.0),
    "mesh.data": (-1, 2**20),
    "mesh.fsdp": (-1, 2**20),
    "mesh.tensor": (-1, 2**20),
    "log.every": (1, 2**31 - 1),
    "log.tensorboard": (bool,),
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
}
# What a resumed run may change: how far it goes, where it runs (in the precision it began with), what it says and keeps. The rest
# would make it another run.
# (The data themselves are compared by content, so their folder may move.)
MAY_CHANGE_ON_RESUME = (
    "name",
    "runs",
    "fresh",
    "accept_changes",
    "profile",
    "data.folder",
    "data.micro_batch",
    "horizon.",
    "mesh.",
    "log.",
    "eval.",
    "save.",
)


def parse(argv: Sequence[str]) -> Config:
    """The config that `train.py --config FILE --config.section.field=value ...` asks for. Raises InputError."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        flag_values=values,
        sys_argv=list(argv),
        help_string="a file of configs/, with `get_config()`",
    )
    if any(argument in ("-h", "--help") for argument in argv[1:]):
        print(
            "usage: python train.py --config configs/pretrain.py [--config.section.field=value ...]; the file explains every field"
        )
        sys.exit(0)
    for name in (match[1] for match in map(_OVERRIDE.match, argv[1:]) if match):
        if name not in FIELDS:
            raise InputError(
                f"config field {name}: unknown (configs/pretrain.py explains every field)"
            )
    try:
        rest = values(list(argv))[1:]
        config = values["config"].value
        if not isinstance(config, ConfigDict | None):
            getattr(
                config, "name", None
            )  # where a file could not be loaded, ml_collections says so only when it is used
    except Exception as error:  # a config file is a program, and may raise what it likes
        raise InputError(_first_line(error, _config_file(argv))) from None
    if rest:
        raise InputError(
            f"unexpected argument {rest[0]!r}: overrides look like --config.data.batch=64"
        )
    if config is None:
        raise InputError(
            "say what to train: python train.py --config configs/pretrain.py (or quickstart.py, on a CPU)"
        )
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config() of the config file must return a ConfigDict, found {type(config).__name__}"
        )
    check(config)
    return config


def check(config: Config) -> None:
    """Refuse a missing or unknown field, a value out of range, and fields that contradict each other."""
    found = flatten(config)
    for name in FIELDS.keys() | found.keys():
        if name not in found or name not in FIELDS:
            raise InputError(
                f"config field {name}: {'missing' if name in FIELDS else 'unknown'} (start from configs/pretrain.py)"
            )
        _check_field(name, found[name], FIELDS[name])
    given = [name for name in ("steps", "tokens", "epochs") if config.horizon[name]]
    if len(given) != 1:
        raise InputError(
            f"config.horizon: give exactly one of steps, tokens and epochs, found {' and '.join(given) or 'none'}"
        )
    if config.model.embed % config.model.heads:
        raise InputError(
            f"model.embed {config.model.embed} must be a multiple of model.heads {config.model.heads}"
        )
    if config.schedule.floor > config.schedule.peak:
        raise InputError(
            f"schedule.floor {config.schedule.floor} is above schedule.peak {config.schedule.peak}"
        )


def _check_field(name: str, value, allowed: tuple) -> None:
    first = allowed[0]
    if isinstance(first, type):
        good, expected = isinstance(value, first), first.__name__
    elif isinstance(first, str):
        good, expected = value in allowed, "one of " + ", ".join(allowed)
    else:
        kind = (int,) if isinstance(first, int) else (int, float)
        good = (
            isinstance(value, kind) and not isinstance(value, bool) and first <= value <= allowed[1]
        )
        expected = f"{'a whole number' if kind == (int,) else 'a number'} from {_plain(first)} to {_plain(allowed[1])}"
    if not good:
        raise InputError(f"config field {name}: found {value!r}, expected {expected}")


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def horizon_steps(
    batch: int, context: int, rows: int, *, steps: int, tokens: int, epochs: float
) -> int:
    """Steps of the whole run, given in steps, tokens or epochs of `rows` rows; always at least one."""
    if tokens:
        steps = tokens // (batch * context)
    if epochs:
        steps = int(epochs * rows) // batch
    return max(steps, 1)


def flatten(config: Config) -> dict[str, object]:
    """{"section.field": value} of a config."""
    pairs = json.loads(to_json(config)).items()
    flat = {}
    for name, value in pairs:
        if isinstance(value, dict):
            flat |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            flat[name] = value
    return {name: tuple(v) if isinstance(v, list) else v for name, v in flat.items()}


def to_json(config: Config) -> str:
    """The config as JSON text, for a checkpoint and a report."""
    return json.dumps(config.to_dict())


def config_diff(before: dict, now: Config) -> list[str]:
    """Lines "field: old -> new" for what a resumed run must not change; `before` is the JSON a checkpoint kept."""
    old, new = flatten(ConfigDict(before)), flatten(now)
    names = [
        name
        for name in FIELDS
        if not name.startswith(MAY_CHANGE_ON_RESUME) and old.get(name) != new.get(name)
    ]
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names]


def _config_file(argv: Sequence[str]) -> str:
    """What follows --config on the command line, without the argument of its get_config."""
    joined = " ".join(argv)
    match = re.search(r"--?config[= ](\S+)", joined)
    return match[1].partition(":")[0] if match else "the config file"


def _first_line(error: Exception, file: str) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Traceback" in text:  # the file failed when it was run: its own error is the last line
        return f"{file}: failed when it was read: {lines[-1]}"
    if isinstance(error, flags.Error | KeyError):  # of the command line
        return " ".join(lines[:2])
    if isinstance(error, OSError):
        return f"{file}: {error.strerror or lines[-1]}"
    if isinstance(error, AttributeError) and "get_config" in text:
        return f"{file}: has no get_config() (configs/pretrain.py shows one)"
    return f"{file}: failed when it was read: {type(error).__name__}: {lines[-1] if lines else ''}"
