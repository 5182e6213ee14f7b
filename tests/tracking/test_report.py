"""The report shows what the records hold, for every run that can exist, and loads nothing."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minigpt_jax.errors import InputError, RunError
from minigpt_jax.tracking.report import write_report
from tests.tracking.runs import (
    evaluation_record,
    make_run,
    record_of_0_1_0,
    report_of,
    step_record,
)

COMMAND_TIMEOUT = 120
LINK_ATTRIBUTES = ("src", "href", "srcset", "data", "action", "poster")


def run_command(run: Path, *python_options: str) -> subprocess.CompletedProcess:
    """The real command, with options for Python."""
    return subprocess.run(
        [sys.executable, *python_options, "-m", "minigpt_jax.report", str(run)],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT,
    )


class Links(HTMLParser):
    """Collects the tags of a page, and what they would load or point to."""

    def __init__(self, page: str):
        super().__init__()
        self.tags = set()
        self.targets = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name.split(":")[-1] in LINK_ATTRIBUTES:
                self.targets.append(value)


def fact(page: str, label: str) -> tuple[str, str]:
    """(value, note) of a box of the summary."""
    found = re.search(rf'<span>{label}</span><b>(.*?)</b><span class="faint">(.*?)</span>', page)
    assert found, label
    return found[1], found[2]


# ---- a usual run


def test_the_summary_shows_the_numbers_of_the_records(full_report: str):
    assert fact(full_report, "Steps done") == ("40", "horizon: 4,000 steps")
    assert fact(full_report, "Last loss")[0] == "3.2000"
    assert fact(full_report, "Best validation loss") == ("3.2500", "after 20 steps")
    assert fact(full_report, "Last validation loss") == ("3.5000", "after 40 steps")
    assert fact(full_report, "Bits per byte")[0] == "0.875"
    assert fact(full_report, "Tokens seen") == ("40,000", "36,000 of them have loss weight")
    # 30 s for the first step and 39 times 0.5 s, of which each is 9/10 of its time with the data.
    assert fact(full_report, "Training time")[0] == "55s"
    assert fact(full_report, "Saving")[0] == "6s"
    assert fact(full_report, "Evaluations")[0] == "1m00s"
    # The median is that of the steps that do not compile.
    assert fact(full_report, "Throughput")[0] == "2,000"
    assert fact(full_report, "MFU")[0] == "n/a"
    assert fact(full_report, "Waiting for data")[0] == "10.0%"
    assert fact(full_report, "Skipped updates")[0] == "0"


def test_the_first_the_best_and_the_last_evaluation_are_side_by_side(full_report: str):
    titles = ("first, after 0 steps", "best, after 20 steps", "last, after 40 steps")
    assert "".join(f"<td>{title}</td>" for title in titles) in full_report
    assert "<td>11.0000</td><td>3.2500</td><td>3.5000</td>" in full_report


def test_text_of_the_model_is_escaped(full_report: str):
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more\n\nlines" in full_report
    assert "<h1>quick &amp; &lt;b&gt;dirty</h1>" in full_report
    assert "script" not in Links(full_report).tags


def test_the_newest_samples_come_first(full_report: str):
    parts = ("After 40 steps</h3>", "<details>", "After 20 steps</h3>", "After 0 steps</h3>")
    places = [full_report.index(part) for part in parts]
    assert places == sorted(places)


def test_config_and_environment_are_tables(full_report: str):
    for name, value in (
        ("init_from", "&quot;&quot;"),
        ("clip", "Infinity"),
        ("python", "3.99"),
        ("jax", "9.9.9"),
        ("numpy", "null"),
    ):
        assert f"<tr><th>{name}</th><td>{value}</td></tr>" in full_report


def test_the_page_loads_nothing(full_report: str):
    links = Links(full_report)
    assert links.targets and all(target.startswith("#") for target in links.targets)
    assert "@import" not in full_report
    assert not re.search(r"url\((?!#)", full_report)
    assert not links.tags & {"script", "link", "iframe", "img", "object"}


# ---- runs of version 0.1.0, whose times are those at which metrics were read


def test_a_report_of_version_0_1_0_has_the_same_numbers(tmp_path: Path):
    page = report_of(make_run(tmp_path, [record_of_0_1_0(s) for s in range(40)], []))
    assert fact(page, "Training time")[0] == "49s"
    assert fact(page, "Throughput")[0] == "2,000"
    assert fact(page, "Waiting for data")[0] == "10.0%"
    assert fact(page, "Tokens seen")[0] == "40,000"
    assert fact(page, "Saving")[0] == fact(page, "Evaluations")[0] == "n/a"
    assert "above the peak" not in page


def late_records(count: int, *, peak_known: bool) -> list[dict]:
    """Steps of 0.5 s at 43% of the peak; after every fifth one a save, and two late readings."""
    seconds = [{1: 0.999, 2: 0.001}.get(step % 5, 0.5) for step in range(count)]
    return [
        record_of_0_1_0(
            step, seconds=s if step else 30.0, mfu=0.43 * 0.5 / s if peak_known else None
        )
        for step, s in enumerate(seconds)
    ]


def highest_tick(page: str) -> float:
    """The largest number at the axis of the throughput's plot, in thousands of tokens/s."""
    plot = page[page.index("<h3>Throughput") :].split("</figure>")[0]
    ticks = [float(tick) for tick in re.findall(r">([\d.]+) k</text>", plot)]
    assert ticks
    return max(ticks)


def test_a_rate_above_the_peak_is_not_shown(tmp_path: Path):
    """Each fifth step claims 21,500% of the peak and a million tokens/s."""
    page = report_of(make_run(tmp_path, late_records(101, peak_known=True), []))
    assert fact(page, "MFU")[0] == "43.0%"
    assert fact(page, "Throughput")[0] == "2,000"
    assert "The records of 20 steps claim a rate above the peak" in page
    assert "left out" not in page
    assert highest_tick(page) <= 2.5


def test_a_rate_far_above_the_others_is_not_shown_where_the_peak_is_unknown(tmp_path: Path):
    page = report_of(make_run(tmp_path, late_records(101, peak_known=False), []))
    assert fact(page, "Throughput")[0] == "2,000" and fact(page, "MFU")[0] == "n/a"
    assert highest_tick(page) <= 2.5


def test_a_run_that_claims_more_than_the_peak_everywhere_shows_no_rate(tmp_path: Path):
    records = [record_of_0_1_0(step, seconds=0.001, mfu=8.55) for step in range(30)]
    page = report_of(make_run(tmp_path, records, []))
    assert fact(page, "MFU")[0] == fact(page, "Throughput")[0] == "n/a"
    assert "2 of these are above the peak too and are left out" in page
    assert "855" not in page


# ---- unusual runs


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_with_hardly_any_steps(tmp_path: Path, count: int):
    page = report_of(make_run(tmp_path, [step_record(s) for s in range(count)], []))
    assert fact(page, "Steps done")[0] == str(count)
    assert fact(page, "Best validation loss") == ("n/a", "no evaluation yet")
    assert "No evaluation yet." in page and "No sample was written." in page
    assert ("No step is recorded yet." in page) == (count == 0)


def test_skipped_updates_are_counted_and_marked(tmp_path: Path):
    skipped = {"loss": math.nan, "grad_norm": math.inf, "skipped": 1.0}
    steps = [step_record(s, **(skipped if s in (7, 8, 29) else {})) for s in range(30)]
    evaluations = [evaluation_record(10, 4.0), evaluation_record(30, math.nan)]
    page = report_of(make_run(tmp_path, steps, evaluations))
    assert fact(page, "Skipped updates")[0] == "3" and ">skipped update</text>" in page
    # The last loss that is a number: that of step 28.
    assert fact(page, "Last loss")[0] == f"{3 + 8 / 29:.4f}"
    assert fact(page, "Best validation loss")[0] == "4.0000"
    assert fact(page, "Last validation loss")[0] == "not finite"


def test_a_run_without_any_finite_number(tmp_path: Path):
    steps = [step_record(s, loss=math.nan, grad_norm=math.nan, skipped=1.0) for s in range(4)]
    page = report_of(make_run(tmp_path, steps, [evaluation_record(0, math.nan)]))
    assert fact(page, "Last loss")[0] == "n/a"
    assert fact(page, "Best validation loss")[0] == "n/a"


def test_a_long_run_makes_a_small_page_that_keeps_its_spikes(tmp_path: Path):
    spike = 12_345
    steps = [
        step_record(s, loss=4 + s % 7 / 100, grad_norm=21.0 if s == spike else 1.0, mfu=0.4)
        for s in range(19_073)
    ]
    run = make_run(tmp_path, steps, [evaluation_record(s, 4.0) for s in range(0, 19_073, 250)])
    page = report_of(run)
    assert (run / "report.html").stat().st_size < 1_000_000
    assert fact(page, "MFU")[0] == "40.0%"
    norm = page[page.index("<h3>Gradient norm") : page.index("<h3>Throughput")]
    # The axis reaches the spike.
    assert ">20.0</text>" in norm


def test_a_prompt_that_is_not_text_is_shown_with_a_question_mark(tmp_path: Path):
    # Python represents an undecodable byte of a command line like this.
    evaluation = evaluation_record(0, 1.0, "not \udcff text")
    assert "not ? text" in report_of(make_run(tmp_path, [], [evaluation]))


def test_metrics_alone_are_enough(tmp_path: Path):
    run = make_run(tmp_path, [], [])
    for name in ("evaluations.jsonl", "config.json", "environment.json"):
        (run / name).unlink()
    assert report_of(run).count("Not recorded.") == 3


# ---- errors


def test_the_error_names_a_damaged_file(tmp_path: Path):
    run = make_run(tmp_path, [], [])
    (run / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: damaged"):
        write_report(run)
    (run / "metrics.jsonl").write_text('{"step": 0, "accuracy": 1}\n')
    with pytest.raises(InputError, match="the line of step 0 has no 'loss'"):
        write_report(run)


@pytest.mark.parametrize("content", ["[1]", '{"before": {}}', "3"])
def test_answers_in_another_form_are_an_error_of_one_line(tmp_path: Path, content: str):
    run = make_run(tmp_path, [], [])
    (run / "answers.json").write_text(content)
    with pytest.raises(InputError, match=r"answers\.json is not what"):
        write_report(run)


def test_a_page_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path):
    run = make_run(tmp_path, [], [])
    (run / "report.html.tmp").mkdir()
    with pytest.raises(RunError, match="cannot write") as error:
        write_report(run)
    assert "\n" not in str(error.value)


# ---- the command


def test_the_command_writes_the_page(tmp_path: Path):
    run = make_run(tmp_path, [step_record(s) for s in range(3)], [evaluation_record(0, 4.0)])
    done = run_command(run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "report.html")
    assert (run / "report.html").is_file()


def test_without_a_run_the_command_fails_before_it_imports_matplotlib(tmp_path: Path):
    done = run_command(tmp_path / "nothing", "-X", "importtime")
    lines = done.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    messages = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(messages) == 1 and messages[0].startswith("error: ")
    assert any("minigpt_jax.errors" in line for line in imports)
    assert not any("matplotlib" in line for line in imports)
