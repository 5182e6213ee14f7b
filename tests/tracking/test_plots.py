"""The plots of a report: complete, the same for the same run, and in the colours of the page."""

import re
from pathlib import Path

import numpy as np

from minigpt_jax.tracking import plots
from tests.tracking.runs import make_run, report_of, step_record

LABELS = {
    "Loss": "loss",
    "Learning rate": "learning rate",
    "Gradient norm": "norm",
    "Throughput": "tokens/s",
}
PLOTS = 5


def test_every_plot_is_there_and_takes_the_text_colour_of_the_page(full_report: str):
    figures = re.findall(
        r'<figure class="panel"><h3>(.*?)</h3>(<svg.*?</svg>)', full_report, re.DOTALL
    )
    # There are two plots of the loss.
    assert len(figures) == PLOTS
    assert {title.split(",")[0] for title, _ in figures} == set(LABELS)
    for title, svg in figures:
        assert LABELS[title.split(",")[0]] in svg and ">step</text>" in svg
        assert "currentColor" in svg and plots.TEXT_COLOR not in svg
    loss = figures[0][1]
    assert ">training</text>" in loss and ">validation</text>" in loss


def test_an_id_has_one_definition_on_the_page(full_report: str):
    definitions = {}
    pattern = r'<(?:path|clipPath) id="([^"]+)"(.*?)(?:/>|</clipPath>)'
    for name, rest in re.findall(pattern, full_report, re.DOTALL):
        assert definitions.setdefault(name, rest) == rest


def test_the_same_run_makes_the_same_plots(tmp_path: Path):
    run = make_run(tmp_path, [step_record(s) for s in range(3)], [])
    first = re.findall("<svg.*?</svg>", report_of(run), re.DOTALL)
    second = re.findall("<svg.*?</svg>", report_of(run), re.DOTALL)
    assert len(first) == PLOTS and first == second


def test_averages_start_at_the_first_value_and_ignore_missing_values():
    y = np.array([11.0] + [3.0] * 399)
    y[200] = np.nan
    average = plots.moving_average(y)
    assert average[0] == 11 and average[200] == 3 and np.isfinite(average).all()
    short = plots.moving_average(np.array([np.nan, 1.0]))
    assert np.isnan(short).tolist() == [True, False]
