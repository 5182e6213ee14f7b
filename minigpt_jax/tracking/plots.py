"""Draw the curves of a run as SVG, with text in the colour of the page that contains it."""

import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from minigpt_jax.tracking.rates import WindowRates
from minigpt_jax.tracking.records import Columns

# Most points of a curve: more than a plot is wide in pixels, and few enough that the report of the
# longest run stays below a megabyte.
MAX_POINTS = 1000
# The scale is logarithmic where the largest value is more than this many times the smallest.
LOG_SCALE_RATIO = 30
# The moving average covers 1/50 of the run on each side of a point.
AVERAGE_PART = 50
# A placeholder: `_svg` replaces it by the text colour of the page, which the browser decides.
TEXT_COLOR = "#010203"
# Readable on white and on black.
BLUE = "#3b82f6"
ORANGE = "#ea7317"
RED = "#dc2626"
# matplotlib's own type for the names of settings is private.
STYLE: dict[Any, Any] = {
    # Text stays text: it can be searched, and is shown in the reader's own font.
    "svg.fonttype": "none",
    # With a fixed salt for the random ids, the same run makes the same bytes.
    "svg.hashsalt": "report",
    "text.color": TEXT_COLOR,
    "axes.labelcolor": TEXT_COLOR,
    "axes.edgecolor": TEXT_COLOR,
    "xtick.color": TEXT_COLOR,
    "ytick.color": TEXT_COLOR,
    "grid.color": TEXT_COLOR,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
}


def draw_plots(
    steps: Columns, evaluations: list[dict], rates: WindowRates
) -> list[tuple[str, str]]:
    """(title, SVG) of every plot of a run with at least one step."""
    first_tenth = steps["step"][len(steps["step"]) // 10]
    return [
        (
            "Loss",
            _svg("loss per token", lambda axes: _draw_loss(axes, steps, evaluations, first=0)),
        ),
        (
            "Loss, without the first tenth",
            _svg(
                "loss per token",
                lambda axes: _draw_loss(axes, steps, evaluations, first=first_tenth),
            ),
        ),
        ("Learning rate", _svg("learning rate", lambda axes: _draw_rate(axes, steps))),
        ("Gradient norm, before clipping", _svg("norm", lambda axes: _draw_norm(axes, steps))),
        (
            "Throughput, without compilation, saves and other waits",
            _svg("tokens/s", lambda axes: _draw_throughput(axes, rates)),
        ),
    ]


def moving_average(y: np.ndarray) -> np.ndarray:
    """Mean of the finite values around each point, over at most 4% of the run.

    The window shrinks towards the start, where a loss falls so fast that its average would hide its
    first value.
    """
    index = np.arange(len(y))
    half = np.minimum(index, len(y) // AVERAGE_PART)
    begin = index - half
    end = np.minimum(index + half + 1, len(y))
    total = np.concatenate([[0], np.cumsum(np.nan_to_num(y))])
    count = np.concatenate([[0], np.cumsum(np.isfinite(y))])
    num_finite = count[end] - count[begin]
    mean = (total[end] - total[begin]) / np.maximum(num_finite, 1)
    return np.where(num_finite > 0, mean, np.nan)


def _svg(label: str, draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained")
        axes = figure.add_subplot()
        axes.set(xlabel="step", ylabel=label)
        draw(axes)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        text = StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=no_metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT_COLOR, "currentColor")
    # The ids of groups are the same in each plot, and nothing refers to them.
    return re.sub(r' id="[A-Za-z.]+_\d+"', "", svg)


def _draw_loss(axes: Axes, steps: Columns, evaluations: list[dict], first: float) -> None:
    shown = steps["step"] >= first
    _draw_curve(axes, steps["step"], steps["loss"], shown, "training")
    done = [e for e in evaluations if e["step"] >= first]
    if done:
        axes.plot(
            [e["step"] for e in done],
            [e["validation_loss"] for e in done],
            "o-",
            color=ORANGE,
            linewidth=1,
            markersize=2.5,
            label="validation",
        )
    skipped = steps["step"][shown & (steps["skipped"] > 0)]
    if len(skipped):
        # Crosses at the bottom of the plot: y is a part of its height, not a loss.
        x = skipped[_spread(len(skipped))]
        y = np.full(len(x), 0.03)
        transform = axes.get_xaxis_transform()
        axes.plot(x, y, "x", transform=transform, color=RED, label="skipped update")
    # The legend is above the curves, so that it hides none.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0)


def _draw_rate(axes: Axes, steps: Columns) -> None:
    points = _spread(len(steps["step"]))
    axes.plot(steps["step"][points], steps["learning_rate"][points], color=BLUE)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _draw_norm(axes: Axes, steps: Columns) -> None:
    every_step = np.full(len(steps["step"]), True)
    _draw_curve(axes, steps["step"], steps["grad_norm"], every_step)


def _draw_throughput(axes: Axes, rates: WindowRates) -> None:
    if len(rates.step):
        _draw_curve(axes, rates.step, rates.tokens_per_s, np.full(len(rates.step), True))
        axes.set_yscale("linear")
        # A few extreme values must not flatten the curve.
        axes.set_ylim(0, 1.2 * np.percentile(rates.tokens_per_s, 99))
    axes.yaxis.set_major_formatter(EngFormatter())


def _draw_curve(
    axes: Axes, x: np.ndarray, y: np.ndarray, shown: np.ndarray, label: str | None = None
) -> None:
    """Draw the points `shown`: the values as a faint line, their moving average as a strong one.

    The average also uses the points that are not shown.
    """
    average = moving_average(y)[shown]
    x = x[shown]
    y = y[shown]
    outline = _extremes(y)
    points = _spread(len(y))
    axes.plot(x[outline], y[outline], color=BLUE, alpha=0.35, linewidth=0.8)
    axes.plot(x[points], average[points], color=BLUE, label=label)
    positive = y[y > 0]
    if len(positive) and positive.max() > LOG_SCALE_RATIO * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _spread(count: int) -> np.ndarray:
    """Indices of at most MAX_POINTS of `count` points, evenly spread, both ends included."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(int))


def _extremes(y: np.ndarray) -> np.ndarray:
    """Indices of at most MAX_POINTS points that keep the outline of `y`.

    The points are divided into stretches, and the lowest and the highest of each are kept.
    """
    if len(y) <= MAX_POINTS:
        return np.arange(len(y))
    low = np.where(np.isnan(y), np.inf, y)
    high = np.where(np.isnan(y), -np.inf, y)
    stretches = np.array_split(np.arange(len(y)), MAX_POINTS // 2)
    return np.unique([(s[low[s].argmin()], s[high[s].argmax()]) for s in stretches])
