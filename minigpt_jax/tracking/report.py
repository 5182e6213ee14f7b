"""Show a run on one page that opens anywhere, without a network: runs/<name>/report.html.

train.py writes the page when it ends; `python -m minigpt_jax.report RUN` writes it again, also
while the run continues.
"""

from pathlib import Path

import numpy as np

from minigpt_jax.errors import InputError, RunError, first_line, os_error_text
from minigpt_jax.mixture import rows_of_each
from minigpt_jax.runtime.files import atomic_write, shell_word
from minigpt_jax.tracking import page
from minigpt_jax.tracking.durations import format_duration
from minigpt_jax.tracking.rates import REPORT_WINDOW, WindowRates, window_rates
from minigpt_jax.tracking.records import (
    Columns,
    RunRecords,
    best_evaluation,
    losses_by_folder,
    read_records,
)


def write_report(run: Path) -> Path:
    """Write the page of the run in folder `run` from its records; returns its path.

    Raises InputError if there is no such run or its records are damaged, RunError if the page
    cannot be written.
    """
    records = read_records(run)
    try:
        text = report_page(records)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{run}: config.json, environment.json, data.json, evaluations.jsonl or answers.json "
            f"is not what this program writes ({error!r}): restore it, or delete it to report "
            "without it"
        ) from error
    path = run / "report.html"
    try:
        # A prompt from the command line may hold bytes that are not text.
        atomic_write(path, lambda file: file.write(text.encode(errors="replace")))
    except OSError as error:
        raise RunError(f"cannot write {path} ({os_error_text(error)})") from None
    return path


def try_report(run: Path) -> tuple[Path | None, str | None]:
    """(path of the page, None), or (None, what is wrong and how to write the page later).

    For the end of a training, which no failure of its report may hide.
    """
    try:
        return write_report(run), None
    except Exception as error:
        return None, (
            f"the report could not be written: {first_line(error)}; "
            f"to write it later: python -m minigpt_jax.report {shell_word(run)}"
        )


def report_page(records: RunRecords) -> str:
    """The page as HTML."""
    steps = records.steps
    evaluations = records.evaluations
    rates = window_rates(steps)
    curves = page.paragraph("No step is recorded yet.")
    if len(steps["step"]):
        # Imported here, so that train.py does not wait for matplotlib when it starts.
        from minigpt_jax.tracking.plots import draw_plots

        curves = page.figures(draw_plots(steps, evaluations, rates))
    sections = {
        "Summary": summary(steps, evaluations, rates, records.config) + left_out(rates),
        "Before and after": f"{before_and_after(evaluations)}\n{answers(records.answers)}",
        "Curves": curves,
        "Data": data(records),
        "Samples": samples(evaluations),
        "Config": page.settings(records.config),
        "Environment": page.settings(records.environment),
    }
    return page.document(records.name, sections)


def summary(steps: Columns, evaluations: list[dict], rates: WindowRates, config: dict) -> str:
    """The numbers that are asked for first, each with a note on what it means."""
    losses = steps["loss"][np.isfinite(steps["loss"])]
    last_loss = losses[-1] if len(losses) else None
    seconds = steps["seconds"] + steps["data_seconds"]
    training_seconds = np.nansum(seconds)
    tokens = np.nansum(steps["tokens"])
    learned = np.nansum(steps["weight"])
    waited = None
    if training_seconds:
        waited = np.nansum(steps["data_wait"] * seconds) / training_seconds
    skipped = int((steps["skipped"] > 0).sum())
    best = best_evaluation(evaluations)
    last = evaluations[-1] if evaluations else {}

    boxes = [
        ("Steps done", f"{len(steps['step']):,}", f"horizon: {_horizon(config)}"),
        ("Last loss", _number(last_loss), "on its training batch"),
        ("Best validation loss", _number(best.get("validation_loss")), _when(best)),
        ("Last validation loss", _number(last.get("validation_loss")), _when(last)),
        ("Bits per byte", _number(last.get("bits_per_byte"), ".3f"), "of validation text, last"),
        ("Tokens seen", f"{tokens:,.0f}", f"{learned:,.0f} of them have loss weight"),
        ("Training time", format_duration(training_seconds), "without evaluations and saving"),
        ("Throughput", _number(_median(rates.tokens_per_s), ",.0f"), "tokens/s, median"),
        ("MFU", _number(_median(rates.mfu), ".1%"), "share of peak FLOP/s, median"),
        ("Waiting for data", _number(waited, ".1%"), "of the training time"),
        ("Saving", _total(steps["save_seconds"]), "the devices waited for it between steps"),
        ("Evaluations", _total(steps["evaluation_seconds"]), "the devices waited between steps"),
        ("Skipped updates", f"{skipped:,}", "loss or gradient not finite"),
    ]
    return page.facts(boxes)


def left_out(rates: WindowRates) -> str:
    """A note where the records claim more than the devices can do; "" for all others."""
    if not rates.steps_above_peak:
        return ""
    text = (
        f"The records of {rates.steps_above_peak:,} steps claim a rate above the peak of the "
        "devices, because the time between two steps was measured late. The rates shown are those "
        f"of at least {REPORT_WINDOW} steps together."
    )
    if rates.windows_above_peak:
        text += f" {rates.windows_above_peak:,} of these are above the peak too and are left out."
    return page.paragraph(text)


def before_and_after(evaluations: list[dict]) -> str:
    """The first, the best and the last evaluation side by side."""
    if not evaluations:
        return page.paragraph("No evaluation yet.")
    candidates = {
        "first": evaluations[0],
        "best": best_evaluation(evaluations),
        "last": evaluations[-1],
    }
    columns = {title: e for title, e in candidates.items() if e}
    rows = [["", *(f"{title}, after {e['step']:,} steps" for title, e in columns.items())]]
    for label, field in (
        ("Loss on validation text", "validation_loss"),
        ("Loss on training text", "train_loss"),
        ("Bits per byte", "bits_per_byte"),
    ):
        rows.append([label, *(_number(e[field]) for e in columns.values())])
    for folder in losses_by_folder(evaluations[-1]):
        losses = (_number(losses_by_folder(e).get(folder)) for e in columns.values())
        rows.append([f"Loss on validation text of {folder}", *losses])
    if any("hellaswag" in e for e in columns.values()):
        accuracies = (_number(e.get("hellaswag"), ".1%") for e in columns.values())
        rows.append(["HellaSwag", *accuracies])
    return page.number_table(rows)


def data(records: RunRecords) -> str:
    """How much of each folder the run has read, in the steps that are recorded."""
    sources = records.data.get("sources", [])
    if not sources:
        return page.paragraph("Not recorded.")
    steps = records.steps["step"]
    rows_read = int(steps[-1] + 1) * records.data["batch"] if len(steps) else 0
    shares = [source["share"] for source in sources]
    table = [["", "part of the rows", "rows", "rows read", "epochs"]]
    for source, count in zip(sources, rows_of_each(rows_read, shares), strict=True):
        part = f"{source['share'] / sum(shares):.4g}"
        epochs = f"{count / source['rows']:.2f}"
        table.append([source["folder"], part, f"{source['rows']:,}", f"{count:,}", epochs])
    return page.number_table(table)


def answers(record: dict) -> str:
    """The result of `python -m minigpt_jax.evals answers`; "" if there is none."""
    if not record:
        return ""
    titles = {"before": "before finetuning", "finetuned": "finetuned"}
    columns = {title: record[name] for name, title in titles.items() if name in record}
    rows = [["", *columns]]
    for label, field in (
        ("End before the limit", "ended"),
        ("Contain role markers", "leaked"),
        ("Repeated sequences of 4 words", "repetition"),
        ("Distinct", "distinct"),
    ):
        rows.append([label, *(f"{column[field]:.1%}" for column in columns.values())])
    losses = (_number(column["loss"]) for column in columns.values())
    rows.append(["Loss per token of the reference answers", *losses])
    description = (
        f"{record['answers']:,} answers of up to {record['tokens']} tokens to {record['source']}, "
        f"after {record['step']:,} steps"
    )
    return f"<h3>Answers</h3>{page.paragraph(description)}{page.number_table(rows)}"


def samples(evaluations: list[dict]) -> str:
    """The generated texts, newest first."""
    return page.samples(
        [
            (f"After {e['step']:,} steps", e["samples"])
            for e in reversed(evaluations)
            if e["samples"]
        ]
    )


def _horizon(config: dict) -> str:
    # In the unit of the config: the number of steps in an epoch is not recorded.
    given = [f"{value:,} {unit}" for unit, value in config.get("horizon", {}).items() if value]
    return ", ".join(given) or "unknown"


def _when(evaluation: dict) -> str:
    return f"after {evaluation['step']:,} steps" if evaluation else "no evaluation yet"


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _total(seconds: np.ndarray) -> str:
    known = seconds[np.isfinite(seconds)]
    return format_duration(known.sum()) if len(known) else "n/a"


def _number(value: float | None, form: str = ".4f") -> str:
    if value is None:
        return "n/a"
    return format(value, form) if np.isfinite(value) else "not finite"
