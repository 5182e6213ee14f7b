"""A mixture gives each folder its share, from the number of the row alone, and resumes exactly."""

import json
import math
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_jax import plan
from minigpt_jax.data import Batches, read_rows, row_count, row_order, rows_at
from minigpt_jax.errors import InputError
from minigpt_jax.interop.model_card import _data
from minigpt_jax.loaded_run import load_run
from minigpt_jax.mixture import (
    Source,
    first_rows,
    identity,
    joined,
    open_sources,
    rows_of_each,
    shares_of,
    turns,
)
from minigpt_jax.runtime.files import read_jsonl
from minigpt_jax.server.examples import example_questions
from minigpt_jax.sharding import batch_sharding, make_mesh
from minigpt_jax.token_stream import Stream
from tests.faults.workspace import SMALL, write_numbers
from tests.harness import (
    ROOT,
    copy_run,
    history,
    run_train,
    train,
    train_here,
)
from tests.in_process import run_main

CONTEXT = 5
# Rows of the sources below, and the shares of a mixture of them.
ROWS, SHARES = [23, 7, 40], [5, 3, 2]


# ---- whose row comes next


def test_the_turns_never_change():
    """A run that is resumed with other turns would not be the run that was started."""
    expected = {
        (7, 3): "01000100100100010010",
        (1, 1): "0101010101" * 2,
        (5, 3, 2): "0102010201" * 2,
        (1, 98, 1): "1" * 20,
    }
    found = {shares: "".join(str(s) for s, _ in turns(0, 20, shares)) for shares in expected}
    assert found == expected


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.integers(0, 2**51))
def test_each_source_has_its_share_after_any_number_of_rows(shares: list[int], rows: int):
    counts = rows_of_each(rows, shares)
    assert sum(counts) == rows
    limit = 1 if len(shares) <= 4 else 2
    for count, share in zip(counts, shares, strict=True):
        # In whole numbers, which are exact: |count - rows * share / total| < limit.
        assert abs(count * sum(shares) - rows * share) < limit * sum(shares)
    # The next row belongs to one source, and nothing else changes.
    differences = [a - b for a, b in zip(rows_of_each(rows + 1, shares), counts, strict=True)]
    assert sorted(differences) == [0] * (len(shares) - 1) + [1]


def test_turns_count_the_rows_of_their_source():
    seen = [0, 0, 0]
    for source, before in turns(0, 500, SHARES):
        assert before == seen[source]
        seen[source] += 1
    assert seen == [250, 150, 100]
    # Also far from the beginning, without the turns before.
    late = list(turns(10**12, 10**12 + 10, SHARES))
    assert late == [(s, n + 10**11 * SHARES[s]) for s, n in turns(0, 10, SHARES)]


# ---- the rows of a step


def stream_of(rows: int, first: int, masked: bool, name: str) -> Stream:
    """A stream in memory of `rows` rows and two more tokens: `first`, `first` + 1, ..."""
    tokens = np.arange(first, first + rows * CONTEXT + 3, dtype=np.uint16)
    # Two files, the first one of 7 tokens.
    parts = (tokens[:7], tokens[7:])
    masks = tuple((part % 3 > 0).astype(np.uint8) for part in parts) if masked else None
    return Stream("train", name, (0, 7, len(tokens)), parts, masks)


def sources_of(masked: bool = True) -> list[Source]:
    streams = [stream_of(n, 1000 * i, masked, f"id{i}") for i, n in enumerate(ROWS)]
    return [
        Source(f"data/{i}", share, stream, stream)
        for i, (share, stream) in enumerate(zip(SHARES, streams, strict=True))
    ]


@pytest.mark.parametrize("masked", [False, True])
def test_a_joined_stream_holds_each_row_of_each_source(masked: bool):
    sources = sources_of(masked)
    whole = joined(sources, ROWS, CONTEXT)
    for source, first, rows in zip(sources, first_rows(ROWS), ROWS, strict=True):
        assert row_count(source.train, CONTEXT) == rows
        numbers = np.arange(rows)
        found = read_rows(whole, first + numbers, CONTEXT)
        for array, expected in zip(found, read_rows(source.train, numbers, CONTEXT), strict=True):
            np.testing.assert_array_equal(array, expected)


def test_each_source_is_read_in_its_own_epochs():
    batch, steps = 8, 60
    visited = np.concatenate([rows_at(3, step, batch, ROWS, SHARES) for step in range(steps)])
    for i, (first, rows, share) in enumerate(zip(first_rows(ROWS), ROWS, SHARES, strict=True)):
        own = visited[(first <= visited) & (visited < first + rows)] - first
        assert len(own) == batch * steps * share // 10
        for epoch in range(len(own) // rows):
            found = own[epoch * rows : (epoch + 1) * rows].tolist()
            assert sorted(found) == list(range(rows))
            assert found == row_order(3 + (i << 32), epoch, rows).tolist()
    # Sources of equal length have different orders.
    a, b = (rows_at(3, 0, 40, [20, 20], [1, 1])[i::2] for i in (0, 1))
    assert sorted(a) == sorted(b - 21) and a.tolist() != (b - 21).tolist()


def test_one_folder_alone_has_the_rows_and_hashes_that_it_had_without_mixtures():
    stream = stream_of(23, 0, True, "id")
    single = [Source("data", 1, stream, stream)]
    assert joined(single, [23], CONTEXT) is stream and identity(single) == "id"
    order = np.concatenate([row_order(9, epoch, 23) for epoch in range(4)])
    for step in range(11):
        assert rows_at(9, step, 8, [23]).tolist() == order[8 * step : 8 * step + 8].tolist()
    assert shares_of("elsewhere", "data=0.3") == shares_of("data", "") == {"data": 1}


@pytest.mark.parametrize("mesh", [(4, 1, 1), (1, 4, 1), (2, 1, 2)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_batch_of_a_step_is_the_same_on_every_mesh_and_after_any_step(mesh, accumulation):
    batches = Batches(
        sources_of(),
        batch_sharding(make_mesh(*mesh)),
        seed=3,
        batch=8,
        accumulation=accumulation,
        context=CONTEXT,
        horizon=10**7,
    )
    # Sources 0 to 2 begin at the tokens 0, 1000 and 2000.
    for step in (10**6, 0, 31, 2):
        tokens, weights = (np.asarray(jax.device_get(array)) for array in batches.at(step))
        places = turns(8 * step, 8 * step + 8, SHARES)
        for row, weight, (source, before) in zip(
            tokens.reshape(8, -1), weights.reshape(8, -1), places, strict=True
        ):
            epoch, place = divmod(before, ROWS[source])
            number = row_order(3 + (source << 32), epoch, ROWS[source])[place]
            begin = 1000 * source + CONTEXT * number
            assert row.tolist() == list(range(begin, begin + CONTEXT + 1))
            position = row[1:] - 1000 * source
            assert weight.tolist() == ((position + 1000 * source) % 3 > 0).tolist()
    batches.close()


def test_the_identity_changes_with_shares_order_and_data():
    sources = sources_of()
    others = [
        sources[::-1],
        sources[:2],
        [replace(sources[0], share=6), *sources[1:]],
        [replace(sources[0], train=stream_of(23, 0, True, "other")), *sources[1:]],
    ]
    moved = [replace(source, folder="moved") for source in sources]
    assert identity(moved) == identity(sources)
    assert len({identity(found) for found in [sources, *others]}) == 5


# ---- the field


def test_weights_are_exact_and_names_survive():
    assert shares_of("", "data/a=0.7,data/b=0.3") == {"data/a": 7, "data/b": 3}
    assert shares_of("", "data/a=70, data/b=30") == {"data/a": 7, "data/b": 3}
    assert shares_of("", "my data/x=1=1e-3,b=.25") == {"my data/x=1": 1, "b": 250}
    thirds = shares_of("", "a=0.333,b=0.333,c=0.334")
    assert thirds == {"a": 333, "b": 333, "c": 334}
    assert math.isclose(shares_of("", "a=1e300,b=1e-300")["a"] / 10**600, 1)


def test_a_tilde_in_a_mixture_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert list(shares_of("", "~/a=1,b~=1")) == ["/home/me/a", "b~"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data/a", ["'data/a'", "FOLDER=WEIGHT"]),
        ("a=1,", ["''", "FOLDER=WEIGHT"]),
        (" ", ["''", "FOLDER=WEIGHT"]),
        ("=0.5", ["'=0.5'", "FOLDER=WEIGHT"]),
        ("a,b=1", ["'a'", "a comma between"]),
        ("a=0,b=1", ["a has the weight '0'", "above 0"]),
        ("a=1,b=-1", ["b has the weight '-1'", "above 0"]),
        ("a=nan", ["'nan'", "above 0"]),
        ("a=inf", ["'inf'", "above 0"]),
        ("a=1e999", ["'1e999'", "above 0"]),
        ("a=1e-999", ["'1e-999'", "above 0"]),
        ("a=70%", ["'70%'", "above 0"]),
        ("a=", ["a has the weight ''", "above 0"]),
        ("a=1,b=1,a=2", ["a and a are the same folder"]),
        ("a=1,b/../a/=2", ["a and b/../a/ are the same folder"]),
    ],
)
def test_a_wrong_mixture_is_refused_in_one_line(text: str, words: list[str]):
    with pytest.raises(InputError) as refused:
        shares_of("", text)
    message = str(refused.value)
    assert message.startswith("data.mixture: ") and "\n" not in message
    assert all(word in message for word in words), message


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
