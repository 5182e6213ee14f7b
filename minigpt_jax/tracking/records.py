"""Read what a run has recorded, for its report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import read_jsonl

# Field of metrics.jsonl -> its value at each step, NaN where there is none.
Columns = dict[str, np.ndarray]

FIELDS = (
    "step",
    "loss",
    "grad_norm",
    "learning_rate",
    "weight",
    "skipped",
    # Time of the step without waits for data, saves and evaluations; and the share (0 to 1) of the
    # time with waits for data that was spent in these.
    "seconds",
    "data_wait",
    # Null where the time of the step is not known: the first step is compiled.
    "tokens_per_s",
    # Model FLOPs utilisation: the share of the devices' peak FLOP/s; null where that is unknown.
    "mfu",
)
# Fields that the records of version 0.1.0 lack.
NEWER_FIELDS = (
    "tokens",
    # Seconds before the step in which the devices waited.
    "data_seconds",
    "save_seconds",
    "evaluation_seconds",
)


class RunRecords(NamedTuple):
    """The records in a run's folder. All but `steps` are empty where their file does not exist."""

    name: str
    steps: Columns
    evaluations: list[dict]
    config: dict
    environment: dict
    data: dict
    answers: dict


def read_records(run: Path) -> RunRecords:
    """The records in the folder `run`. Raises InputError if there are none or a file is damaged."""
    return RunRecords(
        name=run.resolve().name,
        steps=_read_steps(run / "metrics.jsonl"),
        evaluations=_read(run / "evaluations.jsonl", read_jsonl),
        config=_read(run / "config.json", _read_json),
        environment=_read(run / "environment.json", _read_json),
        data=_read(run / "data.json", _read_json),
        answers=_read(run / "answers.json", _read_json),
    )


def best_evaluation(evaluations: list[dict]) -> dict:
    """The evaluation with the lowest validation loss; {} if none is finite."""
    finite = [e for e in evaluations if np.isfinite(e["validation_loss"])]
    return min(finite, key=lambda e: e["validation_loss"], default={})


def losses_by_folder(evaluation: dict) -> dict[str, float]:
    """The validation losses of the folders of a mixture; {} of other data."""
    start = "validation_loss/"
    return {k.removeprefix(start): v for k, v in evaluation.items() if k.startswith(start)}


def _read_steps(path: Path) -> Columns:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, so there is no run to report: name a folder that train.py "
            "wrote, such as runs/pretrain"
        )
    records = _read(path, read_jsonl)
    for record in records:
        for name in FIELDS:
            if name not in record:
                raise InputError(
                    f"{path}: not the records of a minigpt_jax run: the line of step "
                    f"{record['step']} has no {name!r}: name a folder that train.py wrote, or "
                    "delete the line to report without it"
                )
    try:
        records = [_with_newer_fields(record) for record in records]
        columns = {
            name: np.array([record[name] for record in records], float)
            for name in FIELDS + NEWER_FIELDS
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not the records of a minigpt_jax run ({error!r}): name a folder that "
            "train.py wrote"
        ) from None
    # The means and limits of the plots leave out NaN, but not infinite values.
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in columns.items()}


def _with_newer_fields(record: dict) -> dict:
    """The record of a step; one of version 0.1.0 in today's form.

    Its seconds hold the wait for data, a part of which the devices spent computing: how large a
    part is not known, so it stays in. Times of saves and evaluations were not recorded.
    """
    tokens = record["seconds"] * (record["tokens_per_s"] or np.nan)
    of_before = {"tokens": tokens, "data_seconds": 0.0}
    return dict.fromkeys(NEWER_FIELDS) | of_before | record


def _read(path: Path, reader: Callable):
    try:
        return reader(path)
    except ValueError as error:
        raise InputError(
            f"{path}: damaged, not JSON ({error}): restore it, or delete it to report without it "
            "(which is possible for all files but metrics.jsonl)"
        ) from None


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}
