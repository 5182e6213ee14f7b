"""Folders of runs as training leaves them, made without training, and the reports of them."""

import json
import math
from pathlib import Path

from minigpt_jax.tracking.report import write_report
from minigpt_jax.tracking.run_log import StepLog

TOKENS_PER_STEP = 1000
FIRST_STEP_SECONDS = 30.0
STEP_SECONDS = 0.5
SECTIONS = ("Summary", "Before and after", "Curves", "Data", "Samples", "Config", "Environment")


def step_record(step: int, **changes) -> dict:
    """What RunLog writes for a step; the first one compiles."""
    seconds = STEP_SECONDS if step else FIRST_STEP_SECONDS
    record = {
        "step": step,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "loss": 3 + 8 / (step + 1),
        "skipped": 0.0,
        "weight": 900.0,
        "batch": "0" * 16,
        "tokens": TOKENS_PER_STEP,
        "seconds": seconds,
        "data_seconds": seconds / 9,
        "save_seconds": 2.0 if step and step % 10 == 0 else 0.0,
        "evaluation_seconds": 60.0 if step == 20 else 0.0,
        "data_wait": 0.1,
        "tokens_per_s": TOKENS_PER_STEP / seconds if step else None,
        "mfu": None,
    }
    return record | changes


def record_of_0_1_0(step: int, **changes) -> dict:
    """What RunLog of version 0.1.0 wrote: the wait for data is a part of the seconds."""
    record = step_record(step, **changes)
    for field in ("tokens", "data_seconds", "save_seconds", "evaluation_seconds"):
        del record[field]
    return record | {"tokens_per_s": TOKENS_PER_STEP / record["seconds"]}


def evaluation_record(step: int, loss: float, text: str = "some text") -> dict:
    """What RunLog writes for an evaluation."""
    return {
        "step": step,
        "train_loss": loss - 0.1,
        "validation_loss": loss,
        "bits_per_byte": loss / 4,
        "samples": [{"prompt": "Once", "text": text}],
    }


def make_run(folder: Path, steps: list[dict], evaluations: list[dict], name: str = "tiny") -> Path:
    """A run's folder with these records."""
    run = folder / name
    run.mkdir()
    for file, records in (("metrics.jsonl", steps), ("evaluations.jsonl", evaluations)):
        log = StepLog(run / file, 0)
        for record in records:
            log.write(record)
        log.close()
    config = {
        "name": name,
        "init_from": "",
        "horizon": {"steps": 4000, "tokens": 0, "epochs": 0.0},
        "optimizer": {"clip": math.inf},
    }
    environment = {"python": "3.99", "packages": {"jax": "9.9.9", "numpy": None}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "environment.json").write_text(json.dumps(environment))
    return run


def report_of(run: Path) -> str:
    """The page of a run, written again; it is complete and has every section."""
    path = write_report(run)
    assert path == run / "report.html"
    assert not list(run.glob("*.tmp"))
    page = path.read_text(encoding="utf-8")
    for section in SECTIONS:
        assert f"<h2>{section}</h2>" in page
    return page
