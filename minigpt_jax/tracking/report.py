"""Show a run on one page that opens anywhere, without a network and years later: runs/<name>/report.html.

    python -m minigpt_jax.report runs/pretrain

train.py writes the page when it ends; the command writes it anew, at any time, also while the run is still going.
"""

import argparse
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from minigpt_jax.errors import InputError, RunError, exit_cleanly
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.tracking.run_log import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Columns = dict[
    str, np.ndarray
]  # field of metrics.jsonl -> its value at each step, NaN where there is none

_FIELDS = (
    "step",
    "loss",
    "grad_norm",
    "learning_rate",
    "weight",
    "skipped",
    "seconds",
    "data_wait",
    "tokens_per_s",
    "mfu",
)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_POINTS = 1000  # of a curve: more than a plot has pixels, and few enough that the longest run makes a page below a megabyte
_WIDE = 30  # ratio of largest to smallest value from which a logarithmic scale shows more
_INK = (
    "#010203"  # stands for the page's own text colour, which is known only where the page is read
)
_BLUE, _ORANGE, _RED = "#3b82f6", "#ea7317", "#dc2626"  # readable on white and on black
_STYLE_OF_PLOTS: dict[Any, Any] = {  # matplotlib's own type for the names is private
    "svg.fonttype": "none",  # text stays text: searchable, and in the reader's own font
    "svg.hashsalt": "report",  # the same run makes the same bytes
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}
_STYLE_OF_PAGE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #646b73; --line: #dfe3e7; --page: #fff; --panel: #f6f7f9 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --faint: #9aa2ab; --line: #343a41; --page: #15181b; --panel: #1d2125 } }
@media print { :root { --ink: #000; --faint: #444; --line: #ccc; --page: #fff; --panel: #fff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1160px; padding: 16px; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 8px 0 0; font-size: 28px; overflow-wrap: anywhere }
h2 { margin: 36px 0 12px; font-size: 20px; break-after: avoid }
h3 { margin: 0 0 6px; font-size: 15px }
p, .faint { color: var(--faint) }
.grid { display: grid; gap: 12px }
.facts { grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)) }
.plots { grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)) }
.sections { columns: 340px; column-gap: 12px }
.sections .panel { margin-bottom: 12px }
.panel { min-width: 0; margin: 0; padding: 12px; border: 1px solid var(--line); border-radius: 8px; background: var(--panel); break-inside: avoid }
.facts b { display: block; font-size: 18px; font-variant-numeric: tabular-nums }
.facts span { display: block; font-size: 13px; line-height: 1.35 }
svg { display: block; width: 100%; height: auto }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 3px 12px 3px 0; border-top: 1px solid var(--line); text-align: left; vertical-align: top }
th { color: var(--faint); font-weight: normal }
td { overflow-wrap: anywhere }
.numbers td { overflow-wrap: normal }
tr:first-child > * { border-top: 0 }
.sample { margin: 8px 0; padding-left: 12px; border-left: 3px solid var(--line); white-space: pre-wrap; overflow-wrap: anywhere }
.sample b { display: block }
summary { cursor: pointer; margin: 12px 0 }
@media print { .plots { grid-template-columns: 1fr 1fr } }
"""


def environment() -> dict:
    """What this process runs on, for environment.json: time, command line, software, devices and the commit of the code."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": {
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "code": _code(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # some builders ship packages without their metadata
        return None


def _code() -> dict:
    """Commit of this code and whether tracked files differ from it, None for both outside of a git checkout."""
    root = Path(__file__).parents[1]
    # Git itself looks upwards: for an installed package it would name the commit of whatever project surrounds it.
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        # Without the optional locks, a git command that the user runs at this moment is not disturbed.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (
        OSError,
        subprocess.SubprocessError,
    ):  # no git here, or a checkout that it does not trust
        return None


def write(run: Path) -> Path:
    """Write the page of the run in folder `run` from its records; returns the file.

    Raises InputError where there is no such run or its records are damaged, RunError if the page cannot be written.
    """
    steps = _columns(run / "metrics.jsonl")
    evaluations = _read(run / "evaluations.jsonl", read_jsonl)
    config, surroundings, answers = (
        _read(run / name, _read_json)
        for name in ("config.json", "environment.json", "answers.json")
    )
    page = run / "report.html"
    temporary = page.with_name(page.name + ".tmp")
    try:
        # A prompt from the command line may hold bytes that are no text: they must not cost the page.
        temporary.write_bytes(
            _page(run.resolve().name, steps, evaluations, config, surroundings, answers).encode(
                errors="replace"
            )
        )
        temporary.replace(page)
    except OSError as error:
        raise RunError(
            f"cannot write {page}: {error.strerror}; the run itself is complete without it"
        ) from None
    return page


def _columns(path: Path) -> Columns:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, so there is no run to report: name a folder that train.py wrote, such as runs/pretrain"
        )
    records = _read(path, read_jsonl)
    try:
        columns = {name: np.array([record[name] for record in records], float) for name in _FIELDS}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not the records of a run of ours ({error!r})") from None
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in columns.items()}


def _read(path: Path, reader: Callable):
    try:
        return reader(path)
    except ValueError as error:
        raise InputError(f"{path}: damaged, not JSON ({error})") from None


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


# ---- the page


def _page(
    name: str,
    steps: Columns,
    evaluations: list[dict],
    config: dict,
    surroundings: dict,
    answers: dict,
) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)} - training report</title>
<style>{_STYLE_OF_PAGE}</style>
<h1>{escape(name)}</h1>
<p>Training report, written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC</p>
<h2>Summary</h2>
{_facts(steps, evaluations, config)}
<h2>Before and after</h2>
{_before_and_after(evaluations)}
{_answers(answers)}
<h2>Curves</h2>
{_plots(steps, evaluations)}
<h2>Samples</h2>
{_samples(evaluations)}
<h2>Config</h2>
{_sections(config)}
<h2>Environment</h2>
{_sections(surroundings)}
</html>
"""


def _facts(steps: Columns, evaluations: list[dict], config: dict) -> str:
    """The numbers that one asks for first, each with a note on what it means."""
    losses = steps["loss"][np.isfinite(steps["loss"])]
    seconds, skipped = steps["seconds"].sum(), int((steps["skipped"] > 0).sum())
    tokens = (steps["tokens_per_s"] * steps["seconds"]).sum()
    last, best = (evaluations[-1:] or [{}])[0], _best(evaluations)
    facts = (
        ("Steps done", f"{len(steps['step']):,}", f"horizon: {_horizon(config)}"),
        ("Last loss", _number(losses[-1:].sum() if len(losses) else None), "on its training batch"),
        (
            "Best validation loss",
            _number(best.get("validation_loss")),
            f"after {best['step']:,} steps" if best else "no evaluation yet",
        ),
        (
            "Last validation loss",
            _number(last.get("validation_loss")),
            f"after {last['step']:,} steps" if last else "no evaluation yet",
        ),
        (
            "Bits per byte",
            _number(last.get("bits_per_byte"), ".3f"),
            "of the validation text, last",
        ),
        ("Tokens seen", f"{tokens:,.0f}", f"{np.nansum(steps['weight']):,.0f} of them learned"),
        ("Training time", duration(seconds), "without evaluations and the copies that saves take"),
        ("Throughput", _number(_median(steps["tokens_per_s"]), ",.0f"), "tokens/s, median"),
        ("MFU", _number(_median(steps["mfu"]), ".1%"), "share of peak FLOP/s, median"),
        (
            "Waiting for data",
            _number(
                (steps["data_wait"] * steps["seconds"]).sum() / seconds if seconds else None, ".1%"
            ),
            "of the training time",
        ),
        ("Skipped updates", f"{skipped:,}", "loss or gradient not finite"),
    )
    boxes = (
        f'<div class="panel"><span>{label}</span><b>{value}</b><span class="faint">{escape(note)}</span></div>'
        for label, value, note in facts
    )
    return f'<div class="grid facts">{"".join(boxes)}</div>'


def _horizon(config: dict) -> str:
    """As the config gives it; how many steps an epoch has is written nowhere in the run's folder."""
    return (
        ", ".join(f"{value:,} {unit}" for unit, value in config.get("horizon", {}).items() if value)
        or "unknown"
    )


def _best(evaluations: list[dict]) -> dict:
    finite = [e for e in evaluations if np.isfinite(e["validation_loss"])]
    return min(finite, key=lambda e: e["validation_loss"], default={})


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _number(value: float | None, form: str = ".4f") -> str:
    if value is None:
        return "n/a"
    return format(value, form) if np.isfinite(value) else "not finite"


def _before_and_after(evaluations: list[dict]) -> str:
    if not evaluations:
        return "<p>No evaluation yet.</p>"
    columns = {"first": evaluations[0], "best": _best(evaluations), "last": evaluations[-1]}
    shown = {title: e for title, e in columns.items() if e}
    rows = [["", *(f"{title}, after {e['step']:,} steps" for title, e in shown.items())]]
    for label, field in (
        ("Loss on validation text", "validation_loss"),
        ("Loss on training text", "train_loss"),
        ("Bits per byte", "bits_per_byte"),
    ):
        rows.append([label, *(_number(e[field]) for e in shown.values())])
    if any("hellaswag" in e for e in shown.values()):
        rows.append(["HellaSwag", *(_number(e.get("hellaswag"), ".1%") for e in shown.values())])
    return f'<div class="panel numbers">{_table(rows)}</div>'


def _answers(record: dict) -> str:
    """What `python -m minigpt_jax.evals answers` found, "" where it was not asked."""
    if not record:
        return ""
    columns = {
        title: record[name]
        for name, title in (("before", "before finetuning"), ("finetuned", "finetuned"))
        if name in record
    }
    fields = (
        ("End by themselves", "ended"),
        ("Leak marks", "leaked"),
        ("Repeated 4-word runs", "repetition"),
        ("Distinct", "distinct"),
    )
    rows = [
        ["", *columns],
        *([label, *(f"{c[field]:.1%}" for c in columns.values())] for label, field in fields),
    ]
    rows.append(
        ["Loss per token of the hoped-for answers", *(_number(c["loss"]) for c in columns.values())]
    )
    what = f"{record['answers']:,} answers of up to {record['tokens']} tokens to {record['source']}, after {record['step']:,} steps"
    return f'<h3>Answers</h3><p>{escape(what)}</p><div class="panel numbers">{_table(rows)}</div>'


def _samples(evaluations: list[dict]) -> str:
    """What the model wrote, newest first: progress is read against the newest, and the rest is many pages."""
    written = [
        f"<h3>After {e['step']:,} steps</h3>{''.join(map(_sample, e['samples']))}"
        for e in reversed(evaluations)
        if e["samples"]
    ]
    if not written:
        return "<p>No sample was written.</p>"
    older = (
        f"<details><summary>{len(written) - 1} earlier evaluations</summary>{''.join(written[1:])}</details>"
        if written[1:]
        else ""
    )
    return f'<div class="panel">{written[0]}{older}</div>'


def _sample(sample: dict) -> str:
    return f'<div class="sample"><b>{escape(sample["prompt"])}</b>{escape(sample["text"])}</div>'


def _sections(settings: dict) -> str:
    """A table for each section of `settings`, and before them one for the fields that belong to none."""
    if not settings:
        return "<p>Not recorded.</p>"
    tables = {"general": {k: v for k, v in settings.items() if not isinstance(v, dict)}}
    tables |= {k: v for k, v in settings.items() if isinstance(v, dict)}
    panels = (
        f'<div class="panel"><h3>{escape(title)}</h3>{_table([[name, _setting(value)] for name, value in fields.items()])}</div>'
        for title, fields in tables.items()
    )
    return f'<div class="sections">{"".join(panels)}</div>'


def _setting(value) -> str:
    return value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(rows: list[list[str]]) -> str:
    lines = (
        f"<tr><th>{escape(head)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for head, *cells in rows
    )
    return f"<table>{''.join(lines)}</table>"


# ---- the plots


def _plots(steps: Columns, evaluations: list[dict]) -> str:
    if not len(steps["step"]):
        return "<p>No step is recorded yet.</p>"
    late = steps["step"][len(steps["step"]) // 10]
    plots: list[tuple[str, str, Callable[[Axes], None]]] = [
        ("Loss", "loss per token", lambda axes: _draw_loss(axes, steps, evaluations, first=0)),
        (
            "Loss, without the first tenth",
            "loss per token",
            lambda axes: _draw_loss(axes, steps, evaluations, first=late),
        ),
        ("Learning rate", "learning rate", lambda axes: _draw_rate(axes, steps)),
        ("Gradient norm, before clipping", "norm", lambda axes: _draw_gradient(axes, steps)),
        (
            "Throughput, without the first step, which compiles",
            "tokens/s",
            lambda axes: _draw_throughput(axes, steps),
        ),
    ]
    return f'<div class="grid plots">{"".join(_plot(*plot) for plot in plots)}</div>'


def _plot(title: str, label: str, draw: Callable[["Axes"], None]) -> str:
    """The plot that `draw` makes, as SVG that takes its text colour from the page."""
    # Imported here because it takes a second: train.py imports this module when it starts and draws only when it ends.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    with matplotlib.rc_context(_STYLE_OF_PLOTS):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained")
        axes = figure.add_subplot()
        axes.set(xlabel="step", ylabel=label)
        draw(axes)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        text = StringIO()
        figure.savefig(
            text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(
        r' id="[A-Za-z.]+_\d+"', "", svg
    )  # names of groups: the same in each plot, and nothing refers to them
    return f'<figure class="panel"><h3>{title}</h3>{svg}</figure>'


def _draw_loss(axes: "Axes", steps: Columns, evaluations: list[dict], first: float) -> None:
    shown = steps["step"] >= first
    _curve(axes, steps["step"], steps["loss"], shown, "training")
    done = [e for e in evaluations if e["step"] >= first]
    if done:
        axes.plot(
            [e["step"] for e in done],
            [e["validation_loss"] for e in done],
            "o-",
            color=_ORANGE,
            linewidth=1,
            markersize=2.5,
            label="validation",
        )
    skipped = steps["step"][shown & (steps["skipped"] > 0)]
    if len(skipped):
        at = skipped[_spread(len(skipped))]
        axes.plot(
            at,
            np.full(len(at), 0.03),
            "x",
            transform=axes.get_xaxis_transform(),
            color=_RED,
            label="skipped update",
        )
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0
    )  # above the curves, never on them


def _draw_rate(axes: "Axes", steps: Columns) -> None:
    from matplotlib.ticker import StrMethodFormatter

    points = _spread(len(steps["step"]))
    axes.plot(steps["step"][points], steps["learning_rate"][points], color=_BLUE)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _draw_gradient(axes: "Axes", steps: Columns) -> None:
    _curve(axes, steps["step"], steps["grad_norm"], np.isfinite(steps["step"]))


def _draw_throughput(axes: "Axes", steps: Columns) -> None:
    from matplotlib.ticker import EngFormatter

    rest = steps["step"] > steps["step"][0]
    if rest.any():
        speeds = np.where(rest, steps["tokens_per_s"], np.nan)
        _curve(axes, steps["step"], speeds, rest)
        axes.set_yscale("linear")
        axes.set_ylim(0, 1.2 * np.nanpercentile(speeds, 99))
    axes.yaxis.set_major_formatter(EngFormatter())


def _curve(
    axes: "Axes", x: np.ndarray, y: np.ndarray, shown: np.ndarray, label: str | None = None
) -> None:
    """Of the points `shown`, each value as a faint line and their moving average as a strong one."""
    from matplotlib.ticker import StrMethodFormatter

    average = _moving_average(y)[shown]
    x, y = x[shown], y[shown]
    faint, strong = _extremes(y), _spread(len(y))
    axes.plot(x[faint], y[faint], color=_BLUE, alpha=0.35, linewidth=0.8)
    axes.plot(x[strong], average[strong], color=_BLUE, label=label)
    positive = y[y > 0]
    if len(positive) and positive.max() > _WIDE * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _moving_average(y: np.ndarray) -> np.ndarray:
    """Mean of the finite values around each point, over at most 4% of the run.

    The window shrinks towards the start, where a loss falls so fast that its average would hide where it began.
    """
    index = np.arange(len(y))
    half = np.minimum(index, len(y) // 50)
    begin, end = index - half, np.minimum(index + half + 1, len(y))
    total, count = (
        np.concatenate([[0], np.cumsum(values)]) for values in (np.nan_to_num(y), np.isfinite(y))
    )
    known = count[end] - count[begin]
    return np.where(known > 0, (total[end] - total[begin]) / np.maximum(known, 1), np.nan)


def _spread(count: int) -> np.ndarray:
    """Indices of at most _POINTS of `count` points, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, _POINTS)).astype(int))


def _extremes(y: np.ndarray) -> np.ndarray:
    """Indices of at most _POINTS points that keep the outline of `y`: of each stretch its lowest and its highest."""
    if len(y) <= _POINTS:
        return np.arange(len(y))
    low, high = np.where(np.isnan(y), np.inf, y), np.where(np.isnan(y), -np.inf, y)
    stretches = np.array_split(np.arange(len(y)), _POINTS // 2)
    return np.unique([(s[low[s].argmin()], s[high[s].argmax()]) for s in stretches])


def main() -> None:
    """The command line: write the page of one run."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt_jax.report",
        description="Write the page of a run, report.html in its folder.",
    )
    parser.add_argument("run", type=Path, help="folder of the run, such as runs/pretrain")
    print(write(parser.parse_args().run))


if __name__ == "__main__":
    exit_cleanly(main)
