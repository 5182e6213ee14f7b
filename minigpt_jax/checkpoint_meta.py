"""The JSON in a checkpoint: add its checksum, read it, and compare it with a model.

It records the model's config, the tokenizer's hash, the training config and the fingerprint of
every array, so that loading a checkpoint needs no flags and everything loaded is verified.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from minigpt_jax.errors import DamageError, InputError, RunError, os_error_text
from minigpt_jax.fingerprints import array_specs
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runtime.files import read_written
from minigpt_jax.tokenizer import load_tokenizer

FORMAT = 1
# What every version wrote.
FIELDS = ("format", "step", "tokenizer", "arrays", "model", "config", "data", "validation_loss")


def with_checksum(meta: dict) -> dict:
    """`meta` and, under "seal", the SHA-256 of its content, which reveals any later change."""
    content = json.dumps(meta, sort_keys=True).encode()
    return meta | {"seal": hashlib.sha256(content).hexdigest()}


@contextmanager
def reads(run: Path, step: int) -> Iterator[None]:
    """What prevents reading a checkpoint is reported by its own name: RunError, not DamageError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{run}: checkpoint {step} cannot be read ({os_error_text(error)}). This is no damage, "
            "and nothing was changed: correct it, then run the same command again"
        ) from error


def read_meta(run: Path, step: int) -> dict:
    """The JSON of a checkpoint.

    Raises DamageError if it is not as it was written, RunError if it cannot be read, InputError if
    another version wrote it.
    """
    # Not read through Orbax, which would wait for all processes: a single one may call this.
    with reads(run, step):
        meta = _unsealed(read_written(run / "checkpoints" / str(step) / "meta" / "metadata"))
    if meta.get("format") != FORMAT:
        raise InputError(
            f"{run}: checkpoint {step} has format {meta.get('format')}, expected {FORMAT}: "
            "use the version that wrote it"
        )
    if meta["tokenizer"] != load_tokenizer().hash:
        raise InputError(
            f"{run}: checkpoint {step} was trained with another tokenizer "
            f"({meta['tokenizer'][:12]}, expected {load_tokenizer().hash[:12]}): "
            "use the version that wrote it"
        )
    missing = [name for name in FIELDS if name not in meta]
    if missing:
        raise InputError(
            f"{run}: checkpoint {step} has no {', '.join(missing)}: use the version that wrote it"
        )
    if meta["step"] != step:
        # A copy under another name: it would count as the newest, or the best, and never be it.
        raise DamageError(f"it holds step {meta['step']}")
    unknown = meta["model"].keys() - {field.name for field in fields(GPTConfig)}
    if unknown:
        # Not damage: another version can use the checkpoint, so it must not be set aside.
        raise InputError(
            f"{run}: the model of checkpoint {step} has the fields {', '.join(sorted(unknown))}, "
            "which this version does not know: use the version that wrote it"
        )
    return meta


def _unsealed(content: bytes) -> dict:
    """The JSON in `content`, compared with its checksum. Raises DamageError."""
    try:
        meta = json.loads(content.decode())
        recorded = meta["seal"]
        fields = {name: value for name, value in meta.items() if name != "seal"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"its meta data cannot be parsed: {error!r}") from None
    if with_checksum(fields)["seal"] != recorded:
        raise DamageError("its meta data changed after they were written")
    return meta


def validation_loss(run: Path, step: int) -> float | None:
    """The validation loss in a checkpoint; infinity if it has none or is damaged.

    None if it cannot be read now: it may be the lowest.
    """
    try:
        loss = read_meta(run, step)["validation_loss"]
    except DamageError:
        return math.inf
    except (RunError, InputError):
        return None
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


def check_arrays(run: Path, meta: dict, abstract, *, only: str = "") -> None:
    """Raises InputError naming the arrays whose shape or dtype differs.

    `abstract` is the tree of all saved arrays, or of those whose path begins with `only`.
    """
    saved = {
        path: _spec_text(entry) for path, entry in meta["arrays"].items() if path.startswith(only)
    }
    wanted = {path: _spec_text(entry) for path, entry in array_specs(abstract).items()}
    differing = [
        f"{path}: {saved.get(path, 'none')} -> {wanted.get(path, 'none')}"
        for path in wanted | saved
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{run}: its checkpoints hold other arrays ({'; '.join(differing[:3])}{more}): set the "
            f"config back, or choose another name with --config.init_from={run}"
        )


def _spec_text(spec: dict) -> str:
    return f"{spec['dtype']}{spec['shape']}"
