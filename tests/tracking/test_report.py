"""The report shows what the records say, for any run that can exist, and asks nobody for anything to show it."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from minigpt_jax.errors import InputError, RunError
from minigpt_jax.tracking import report
from minigpt_jax.tracking.run_log import StepLog

SECTIONS = ("Summary", "Before and after", "Curves", "Samples", "Config", "Environment")
TOKENS = 1000  # of a step


def step_record(step: int, **changed) -> dict:
    """What the RunLog writes for a step of half a second; the first one compiles."""
    seconds = 30.0 if step == 0 else 0.5
    loss = 3 + 8 / (step + 1)
    record = {
        "step": step,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "loss": loss,
        "skipped": 0.0,
        "weight": 900.0,
        "batch": "0" * 16,
    }
    return (
        record
        | {"seconds": seconds, "data_wait": 0.1, "tokens_per_s": TOKENS / seconds, "mfu": None}
        | changed
    )


def evaluation_record(step: int, loss: float, text: str = "some text") -> dict:
    """What the RunLog writes for an evaluation."""
    samples = [{"prompt": "Once", "text": text}]
    return {
        "step": step,
        "train_loss": loss - 0.1,
        "validation_loss": loss,
        "bits_per_byte": loss / 4,
        "samples": samples,
    }


def make_run(folder: Path, steps: list[dict], evaluations: list[dict], name: str = "tiny") -> Path:
    """A run's folder as training leaves it."""
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
    (run / "config.json").write_text(json.dumps(config))
    (run / "environment.json").write_text(
        json.dumps({"python": "3.99", "packages": {"jax": "9.9.9", "numpy": None}})
    )
    return run


def page_of(run: Path) -> str:
    """The page, written anew; it lies in the run's folder, whole, with every section."""
    path = report.write(run)
    assert path == run / "report.html" and not list(run.glob("*.tmp"))
    page = path.read_text(encoding="utf-8")
    for section in SECTIONS:
        assert f"<h2>{section}</h2>" in page
    return page


def command(options: list[str], run: Path) -> subprocess.CompletedProcess:
    """The real program, with options for Python."""
    return subprocess.run(
        [sys.executable, *options, "-m", "minigpt_jax.report", str(run)],
        capture_output=True,
        text=True,
        timeout=120,
    )


class Links(HTMLParser):
    """Collects whatever an element of the page would load or point to."""

    def __init__(self):
        super().__init__()
        self.tags, self.targets = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.targets += [
            value
            for name, value in attrs
            if name.split(":")[-1] in ("src", "href", "srcset", "data", "action", "poster")
        ]


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> str:
    """The page of a run with everything in it."""
    steps = [step_record(s) for s in range(40)]
    evaluations = [
        evaluation_record(0, 11.0),
        evaluation_record(20, 3.25),
        evaluation_record(40, 3.5, "<script>alert(1)</script> & more\n\nlines"),
    ]
    return page_of(
        make_run(tmp_path_factory.mktemp("runs"), steps, evaluations, name="quick & <b>dirty")
    )


def fact(page: str, label: str) -> tuple[str, str]:
    """(value, note) of a box of the summary."""
    found = re.search(rf'<span>{label}</span><b>(.*?)</b><span class="faint">(.*?)</span>', page)
    assert found, label
    return found[1], found[2]


def test_the_summary_says_what_the_records_say(usual: str):
    assert fact(usual, "Steps done") == ("40", "horizon: 4,000 steps")
    assert fact(usual, "Last loss")[0] == "3.2000"
    assert fact(usual, "Best validation loss") == ("3.2500", "after 20 steps")
    assert fact(usual, "Last validation loss") == ("3.5000", "after 40 steps")
    assert fact(usual, "Bits per byte")[0] == "0.875"
    assert fact(usual, "Tokens seen") == ("40,000", "36,000 of them learned")
    assert fact(usual, "Training time")[0] == "49s"  # 30 + 39 x 0.5
    assert fact(usual, "Throughput")[0] == "2,000"  # the first step is no part of it
    assert fact(usual, "MFU")[0] == "n/a"
    assert fact(usual, "Waiting for data")[0] == "10.0%"
    assert fact(usual, "Skipped updates")[0] == "0"


def test_before_and_after_stand_side_by_side(usual: str):
    titles = (
        "<td>first, after 0 steps</td><td>best, after 20 steps</td><td>last, after 40 steps</td>"
    )
    assert titles in usual and "<td>11.0000</td><td>3.2500</td><td>3.5000</td>" in usual


def test_text_of_the_model_is_shown_never_obeyed(usual: str):
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more\n\nlines" in usual
    assert "<h1>quick &amp; &lt;b&gt;dirty</h1>" in usual
    links = Links()
    links.feed(usual)
    assert "script" not in links.tags


def test_the_newest_samples_come_first(usual: str):
    assert (
        usual.index("After 40 steps</h3>")
        < usual.index("<details>")
        < usual.index("After 20 steps</h3>")
        < usual.index("After 0 steps</h3>")
    )


def test_config_and_environment_are_tables(usual: str):
    for name, value in (
        ("init_from", "&quot;&quot;"),
        ("clip", "Infinity"),
        ("python", "3.99"),
        ("jax", "9.9.9"),
        ("numpy", "null"),
    ):
        assert f"<tr><th>{name}</th><td>{value}</td></tr>" in usual


def test_the_page_loads_nothing(usual: str):
    links = Links()
    links.feed(usual)
    assert links.targets and all(target.startswith("#") for target in links.targets)
    assert "@import" not in usual and not re.search(r"url\((?!#)", usual)
    assert not links.tags & {"script", "link", "iframe", "img", "object"}


def test_every_plot_is_there_and_its_text_follows_the_page(usual: str):
    plots = re.findall(r'<figure class="panel"><h3>(.*?)</h3>(<svg.*?</svg>)', usual, re.DOTALL)
    labels = {
        title.split(",")[0]: label
        for (title, _), label in zip(
            plots, ("loss", "loss", "learning rate", "norm", "tokens/s"), strict=True
        )
    }
    assert set(labels) == {"Loss", "Learning rate", "Gradient norm", "Throughput"}
    for title, svg in plots:
        assert labels[title.split(",")[0]] in svg and ">step</text>" in svg
        assert "currentColor" in svg and "#010203" not in svg
    assert ">training</text>" in plots[0][1] and ">validation</text>" in plots[0][1]


def test_an_id_means_one_thing(usual: str):
    definitions = {}
    for name, rest in re.findall(
        r'<(?:path|clipPath) id="([^"]+)"(.*?)(?:/>|</clipPath>)', usual, re.DOTALL
    ):
        assert definitions.setdefault(name, rest) == rest


def test_the_same_run_makes_the_same_plots(tmp_path: Path):
    run = make_run(tmp_path, [step_record(s) for s in range(3)], [])
    first, second = (re.findall("<svg.*?</svg>", page_of(run), re.DOTALL) for _ in range(2))
    assert len(first) == 5 and first == second


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_that_has_hardly_begun(tmp_path: Path, count: int):
    page = page_of(make_run(tmp_path, [step_record(s) for s in range(count)], []))
    assert fact(page, "Steps done")[0] == str(count)
    assert fact(page, "Best validation loss") == ("n/a", "no evaluation yet")
    assert "No evaluation yet." in page and "No sample was written." in page
    assert ("No step is recorded yet." in page) == (count == 0)


def test_updates_that_were_skipped_are_counted_and_marked(tmp_path: Path):
    bad = {"loss": math.nan, "grad_norm": math.inf, "skipped": 1.0}
    steps = [step_record(s, **(bad if s in (7, 8, 29) else {})) for s in range(30)]
    page = page_of(
        make_run(tmp_path, steps, [evaluation_record(10, 4.0), evaluation_record(30, math.nan)])
    )
    assert fact(page, "Skipped updates")[0] == "3" and ">skipped update</text>" in page
    assert fact(page, "Last loss")[0] == f"{3 + 8 / 29:.4f}"  # the last that is a number
    assert (
        fact(page, "Best validation loss")[0] == "4.0000"
        and fact(page, "Last validation loss")[0] == "not finite"
    )


def test_a_run_in_which_nothing_was_finite(tmp_path: Path):
    steps = [step_record(s, loss=math.nan, grad_norm=math.nan, skipped=1.0) for s in range(4)]
    page = page_of(make_run(tmp_path, steps, [evaluation_record(0, math.nan)]))
    assert fact(page, "Last loss")[0] == "n/a" and fact(page, "Best validation loss")[0] == "n/a"


def test_a_long_run_makes_a_small_page_that_keeps_its_spikes(tmp_path: Path):
    steps = [
        step_record(s, loss=4.0 + s % 7 / 100, grad_norm=1.0 + (s == 12_345) * 20.0, mfu=0.4)
        for s in range(19_073)
    ]
    run = make_run(tmp_path, steps, [evaluation_record(s, 4.0) for s in range(0, 19_073, 250)])
    page = page_of(run)
    assert (run / "report.html").stat().st_size < 1_000_000
    assert fact(page, "MFU")[0] == "40.0%"
    gradient = page[page.index("<h3>Gradient norm") : page.index("<h3>Throughput")]
    assert ">20.0</text>" in gradient  # the axis reaches the one step that jumped


def test_averages_start_at_the_first_value_and_ignore_what_is_missing():
    y = np.array([11.0] + [3.0] * 399)
    y[200] = np.nan
    average = report._moving_average(y)
    assert average[0] == 11 and average[200] == 3 and np.isfinite(average).all()
    assert np.isnan(report._moving_average(np.array([np.nan, 1.0]))).tolist() == [True, False]


def test_a_prompt_that_is_no_text_does_not_cost_the_page(tmp_path: Path):
    evaluation = evaluation_record(
        0, 1.0, "not \udcff text"
    )  # how Python holds an undecodable byte of a command line
    assert "not ? text" in page_of(make_run(tmp_path, [], [evaluation]))


def test_records_alone_are_enough(tmp_path: Path):
    run = make_run(tmp_path, [], [])
    for name in ("evaluations.jsonl", "config.json", "environment.json"):
        (run / name).unlink()
    assert page_of(run).count("Not recorded.") == 2


def test_damaged_records_are_named(tmp_path: Path):
    run = make_run(tmp_path, [], [])
    (run / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: damaged"):
        report.write(run)
    (run / "metrics.jsonl").write_text('{"step": 0, "accuracy": 1}\n')
    with pytest.raises(InputError, match="not the records of a run of ours"):
        report.write(run)


def test_a_page_that_cannot_be_written_is_told_in_one_line(tmp_path: Path):
    run = make_run(tmp_path, [], [])
    (run / "report.html.tmp").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        report.write(run)


def test_the_environment_is_json_and_names_what_matters():
    found = json.loads(json.dumps(report.environment()))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["started"])
    assert (
        found["devices"]["count"] >= 1
        and found["devices"]["processes"] == 1
        and found["devices"]["kind"]
    )
    assert found["packages"]["numpy"] == np.__version__ and all(found["packages"].values())
    assert found["python"].startswith("3.") and found["command"] and found["platform"]


def commit_all(folder: Path) -> None:
    """Make `folder` a git checkout with one commit, whatever the user's settings are."""
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    for arguments in (["init"], ["add", "."], [*settings, "commit", "-m", "one"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def test_the_commit_is_that_of_our_own_checkout(tmp_path: Path, monkeypatch):
    package = tmp_path / "project" / "site" / "minigpt_jax"
    package.mkdir(parents=True)
    (package / "report.py").write_text("")
    monkeypatch.setattr(report, "__file__", str(package / "report.py"))
    commit_all(tmp_path / "project")
    assert report._code() == {"commit": None, "modified": None}  # installed inside another project
    commit_all(package.parent)
    assert len(report._code()["commit"]) == 40 and report._code()["modified"] is False
    (package / "report.py").write_text("changed")
    assert report._code()["modified"] is True


def test_the_command_writes_the_page(tmp_path: Path):
    run = make_run(tmp_path, [step_record(s) for s in range(3)], [evaluation_record(0, 4.0)])
    done = command([], run)
    assert (
        done.returncode == 0
        and done.stdout.strip() == str(run / "report.html")
        and (run / "report.html").is_file()
    )


def test_without_a_run_the_command_says_so_and_training_never_waits_for_the_plotting_library(
    tmp_path: Path,
):
    done = command(["-X", "importtime"], tmp_path / "nothing")
    imports, said = (
        [line for line in done.stderr.splitlines() if line.startswith("import time:") is kind]
        for kind in (True, False)
    )
    assert done.returncode == 2 and len(said) == 1 and said[0].startswith("error: ")
    assert any("minigpt_jax.errors" in line for line in imports) and not any(
        "matplotlib" in line for line in imports
    )
