"""The JSON in a checkpoint: add its checksum, read it, and compare it with a model.

It records the model's config, the tokenizer's hash, the training config and the fingerprint of
every array, so that loading a checkpoint needs no flags and everything loaded is verified.
"""

import hashlib
import json
import math
from dataclasses import asdict, fields
from pathlib import Path

from minigpt_jax.errors import InputError
from minigpt_jax.fingerprints import array_specs
from minigpt_jax.model import GPTConfig
from minigpt_jax.step import TrainState
from minigpt_jax.tokenizer import load_tokenizer

FORMAT = 1
# What reading a damaged checkpoint raises: a lost file, broken JSON, JSON with other content.
DAMAGE_ERRORS = (OSError, ValueError, KeyError, TypeError)


def with_checksum(meta: dict) -> dict:
    """`meta` and, under "seal", the SHA-256 of its content, which reveals any later change."""
    content = json.dumps(meta, sort_keys=True).encode()
    return meta | {"seal": hashlib.sha256(content).hexdigest()}


def read_meta(run: Path, step: int) -> dict:
    """The JSON of a checkpoint.

    Raises one of DAMAGE_ERRORS if it is damaged, InputError if another version wrote it.
    """
    # Not read through Orbax, which would wait for all processes: a single one may call this.
    meta = json.loads((run / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    recorded = meta["seal"]
    content = {name: value for name, value in meta.items() if name != "seal"}
    if with_checksum(content)["seal"] != recorded:
        raise ValueError("its meta data changed after they were written")
    if meta["format"] != FORMAT:
        raise InputError(
            f"{run}: checkpoint {step} has format {meta['format']}, expected {FORMAT}: "
            "use the version that wrote it"
        )
    if meta["tokenizer"] != load_tokenizer().hash:
        raise InputError(
            f"{run}: checkpoint {step} was trained with another tokenizer "
            f"({meta['tokenizer'][:12]}, expected {load_tokenizer().hash[:12]}): "
            "use the version that wrote it"
        )
    unknown = meta["model"].keys() - {field.name for field in fields(GPTConfig)}
    if unknown:
        # Not damage: another version can use the checkpoint, so it must not be set aside.
        raise InputError(
            f"{run}: the model of checkpoint {step} has the fields {', '.join(sorted(unknown))}, "
            "which this version does not know: use the version that wrote it"
        )
    return meta


def validation_loss(run: Path, step: int) -> float:
    """The validation loss in a checkpoint; infinity if there is none or it cannot be read."""
    try:
        loss = read_meta(run, step)["validation_loss"]
    except (*DAMAGE_ERRORS, InputError):
        return math.inf
    return loss if loss is not None and math.isfinite(loss) else math.inf


def check_architecture(run: Path, meta: dict, config: GPTConfig) -> None:
    """Raises InputError naming every field of the model config that differs."""
    # Fields that were added after the checkpoint was written get their defaults, which do what
    # earlier versions did.
    saved = asdict(GPTConfig(**meta["model"]))
    wanted = asdict(config)
    differing = [
        f"{name} {value} -> {wanted[name]}"
        for name, value in saved.items()
        if value != wanted[name]
    ]
    if differing:
        raise InputError(
            f"{run}: its checkpoints hold another model ({', '.join(differing)}): "
            "choose another name, or set these back"
        )


def check_arrays(run: Path, meta: dict, abstract: TrainState) -> None:
    """Raises InputError naming the arrays whose shape or dtype differs."""
    saved = {path: _spec_text(entry) for path, entry in meta["arrays"].items()}
    wanted = {path: _spec_text(entry) for path, entry in array_specs(abstract).items()}
    differing = [
        f"{path}: {saved.get(path, 'none')} -> {wanted.get(path, 'none')}"
        for path in wanted | saved
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{run}: its checkpoints hold other arrays ({'; '.join(differing[:3])}{more}): "
            "choose another name, or set them back"
        )


def _spec_text(spec: dict) -> str:
    return f"{spec['dtype']}{spec['shape']}"
