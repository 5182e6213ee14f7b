"""Runs with a mixture: refused input, a kill, records, report, plan, and conversations."""

import json
import math
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minigpt_jax import plan
from minigpt_jax.data import Batches, read_rows, row_count, rows_at
from minigpt_jax.errors import InputError
from minigpt_jax.interop.model_card import _data
from minigpt_jax.loaded_run import load_run
from minigpt_jax.mixture import identity, joined, open_sources
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.server.examples import example_questions
from minigpt_jax.sharding import batch_sharding, make_mesh
from tests.faults.workspace import SMALL, write_numbers
from tests.harness import ROOT, copy_run, history, run_train, train, train_here
from tests.in_process import run_main

# ---- folders that are no mixture


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> tuple[Path, Path]:
    """Two folders of token files; the second has a space and "=" in its name, and fewer rows."""
    folder = tmp_path_factory.mktemp("numbers")
    return write_numbers(folder / "a"), write_numbers(folder / "b = c", tokens=2000)


def with_manifest(folder: Path, copy: Path, **changes) -> Path:
    """A copy of a folder with another manifest."""
    shutil.copytree(folder, copy)
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def test_folders_that_were_prepared_differently_are_refused_with_both_names(
    numbers, conversations, tmp_path
):
    text = numbers[0]
    for other, words in {
        tmp_path / "missing": ["no manifest.json here"],
        conversations: [text, "plain text", "conversations in rows of 32 tokens"],
        with_manifest(text, tmp_path / "wide", context=64): [text, "in rows of 64 tokens"],
        with_manifest(text, tmp_path / "ids", tokenizer="f" * 64): [text, "ffffffffffff"],
    }.items():
        with pytest.raises(InputError) as refused:
            open_sources({str(text): 1, str(other): 1}, 50261, 32, packed=True)
        message = str(refused.value)
        assert "\n" not in message and all(str(word) in message for word in [other, *words])
    # Conversations packed for different contexts.
    other = with_manifest(conversations, tmp_path / "packed", context=64)
    with pytest.raises(InputError, match=r"in rows of 32 tokens, .*in rows of 64 tokens"):
        open_sources({str(conversations): 1, str(other): 1}, 50261, 32, packed=True)
    # An id beyond the model's vocabulary: the file is named.
    with pytest.raises(InputError, match=r"chat/train_0.* the model's vocabulary ends at 511"):
        open_sources({str(conversations): 1}, 512, 32, packed=True)


def test_a_folder_on_the_command_line_beside_a_mixture_is_refused(numbers, tmp_path):
    with pytest.raises(InputError, match=r"beside data\.mixture 'a=1'"):
        train_here(tmp_path, data__folder=numbers[0], data__mixture="a=1")


# ---- runs


@pytest.fixture(scope="module")
def run(numbers, tmp_path_factory) -> Path:
    """A run with a mixture, killed while it saved its last step, then resumed from step 9.

    `before` holds its records at the kill.
    """
    folder = tmp_path_factory.mktemp("runs")
    settings = SMALL | mixture_of(numbers) | {"horizon__steps": 12, "eval__every": 12}
    point = {"MINIGPT_FAILPOINT": "before_commit@12:kill"}
    done = run_train(folder, name="mixed", environment=point, **settings)
    assert done.returncode == -signal.SIGKILL, done.stdout
    copy_run(folder / "mixed", folder / "before")
    assert "resumes from step 9" in train(folder, name="mixed", **settings)
    return folder / "mixed"


def mixture_of(folders: tuple[Path, Path], weights: tuple = (0.7, 0.3)) -> dict:
    """The option of harness.train."""
    entries = [f"{folder}={weight}" for folder, weight in zip(folders, weights, strict=True)]
    return {"data__mixture": ",".join(entries)}


def test_a_killed_run_continues_bit_for_bit(run, numbers):
    before = run.parent / "before" / "mixed"
    assert history(run) == history(before) and len(history(run)) == 12
    records = [read_jsonl(folder / "evaluations.jsonl") for folder in (run, before)]
    assert records[0] == records[1] and [r["step"] for r in records[0]] == [0, 12]
    # Its batches are those of the mixture, in the order of the whole run.
    sources = open_sources({str(numbers[0]): 7, str(numbers[1]): 3}, 512, 32, packed=False)
    batches = Batches(
        sources,
        batch_sharding(make_mesh()),
        seed=1337,
        batch=4,
        accumulation=1,
        context=32,
        horizon=12,
    )
    assert [batch for _, _, batch in history(run)] == [batches.hash(step) for step in range(12)]
    batches.close()


def test_each_folder_has_its_loss_in_the_records(run, numbers):
    last = read_jsonl(run / "evaluations.jsonl")[-1]
    losses = [last[f"validation_loss/{folder}"] for folder in numbers]
    assert losses[0] != losses[1]
    assert math.isclose(last["validation_loss"], 0.7 * losses[0] + 0.3 * losses[1], rel_tol=1e-9)
    events = b"".join(path.read_bytes() for path in (run / "tensorboard").iterdir())
    assert b"evaluation/validation_loss/" in events


def test_the_report_shows_parts_rows_and_epochs(run, numbers):
    page = (run / "report.html").read_text()
    sources = json.loads((run / "data.json").read_text())["sources"]
    assert [source["share"] for source in sources] == [7, 3]
    # 12 steps of 4 rows.
    for folder, part, source, count in zip(numbers, ("0.7", "0.3"), sources, (34, 14), strict=True):
        epochs = f"{count / source['rows']:.2f}"
        cells = (part, f"{source['rows']:,}", str(count), epochs)
        values = "".join(f"<td>{cell}</td>" for cell in cells)
        assert f"<tr><th>{folder}</th>{values}</tr>" in page
        assert f"<tr><th>Loss on validation text of {folder}</th>" in page
    assert len({source["identity"] for source in sources}) == 2


def test_a_resumed_run_refuses_another_mixture_and_accepts_moved_folders(run, numbers, tmp_path):
    settings = SMALL | {"name": "mixed", "horizon__steps": 12}
    for changed in (mixture_of(numbers, (0.5, 0.5)), mixture_of(numbers[::-1], (0.3, 0.7))):
        with pytest.raises(InputError, match=r"started with other settings \(data.mixture: '"):
            train_here(run.parent, **settings, **changed)
    with pytest.raises(InputError, match=r"data.mixture: '.*' -> ''"):
        train_here(run.parent, **settings, data__folder=numbers[0])
    moved = tuple(Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in numbers)
    output = train_here(run.parent, **settings, **mixture_of(moved, (7, 3)))
    assert "all 12 steps are done" in output


@pytest.mark.filterwarnings("ignore:the load_module.* method is deprecated:DeprecationWarning")
def test_the_plan_shows_parts_rows_and_epochs(numbers, tmp_path, monkeypatch):
    # ml_collections loads a config file into one module name, on top of the file before.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    text = f"{numbers[0]}=3,{tmp_path / 'later'}=1"
    arguments = [f"--config={ROOT}/configs/quickstart.py", "--config.data.batch=4", "--device=h100"]
    done = run_main(plan.main, *arguments, f"--config.data.mixture={text}")
    # 9,000 tokens in rows of 256; 3 of 4 rows of 240 steps of 4.
    assert f"data         {numbers[0]}, 0.75 of the rows: 35 rows, 20.57 epochs" in done.stdout
    assert f"{'':13}{tmp_path}/later, 0.25 of the rows: not prepared yet\n" in done.stdout
    epochs = ["--config.horizon.steps=0", "--config.horizon.epochs=2.0"]
    done = run_main(plan.main, *arguments, *epochs, f"--config.data.mixture={text}")
    assert "2 epochs of data, which train.py counts" in done.stdout
    done = run_main(plan.main, *arguments, *epochs, f"--config.data.mixture={numbers[0]}=3")
    assert "run          17 steps" in done.stdout and "35 rows, 1.94 epochs" in done.stdout


@pytest.fixture
def chats(conversations, tmp_path) -> tuple[Path, Path]:
    """Two folders of packed conversations."""
    return conversations, Path(shutil.copytree(conversations, tmp_path / "copy"))


def test_conversations_are_mixed_with_their_loss_masks(chats, finetuned_run, tmp_path):
    # All of a run but its steps.
    settings = {"config": "configs/quickstart_finetune.py", "init_from": "", "name": "chat"}
    train_here(tmp_path, lambda: True, **settings, **mixture_of(chats, (1, 2)))
    record = json.loads((tmp_path / "chat" / "data.json").read_text())
    assert [(s["folder"], s["share"]) for s in record["sources"]] == [
        (str(chats[0]), 1),
        (str(chats[1]), 2),
    ]
    sources = open_sources({str(chats[0]): 1, str(chats[1]): 2}, 50261, 32, packed=True)
    rows = [row_count(source.train, 32) for source in sources]
    numbers = rows_at(1337, 5, 6, rows, [1, 2])
    _, weights = read_rows(joined(sources, rows, 32), numbers, 32)
    for number, weight in zip(numbers, weights, strict=True):
        # Both folders hold the same.
        start = int(number % (rows[0] + 1)) * 32 + 1
        assert weight.tolist() == sources[0].train.read_mask(start, start + 32).tolist()
    assert 0 < weights.mean() < 0.7
    with pytest.raises(InputError, match=r"set data\.isolate_documents=True"):
        open_sources({str(chats[0]): 1, str(chats[1]): 2}, 50261, 32, packed=False)

    # What reads the data of a finished run.
    data = {"folder": "", "mixture": mixture_of(chats, (1, 2))["data__mixture"]}
    run = load_run(finetuned_run)
    run = replace(run, meta=run.meta | {"config": {"data": data}, "data": identity(sources)})
    assert len(set(example_questions(run))) == 3
    assert _data(**data) == "0.333 chat, 0.667 copy"


@pytest.mark.campaign
def test_a_mixture_of_conversations_is_trained_on(chats, trained_run, tmp_path):
    output = train(
        tmp_path,
        config="configs/quickstart_finetune.py",
        name="chat",
        init_from=trained_run,
        schedule__peak=1e-2,
        **mixture_of(chats, (1, 2)),
    )
    assert f"of {chats[1]}\n" in output
    records = read_jsonl(tmp_path / "chat" / "metrics.jsonl")
    # Only answers have weight.
    assert all(0 < record["weight"] < 0.7 * record["tokens"] for record in records)
    assert records[-1]["loss"] < records[0]["loss"]
