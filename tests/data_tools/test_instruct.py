"""Finetuning data hold every conversation once, count every skipped row, and survive kills."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.conversations import read_row
from data_tools.instruct import main
from data_tools.packing import UNFINISHED
from minigpt_jax.chat import render
from minigpt_jax.runtime.program import exit_cleanly
from minigpt_jax.token_stream import MANIFEST, open_stream
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT, load_tokenizer
from tests.data_tools.dialogues import CONTEXT, expected_mask, random_rows, turns
from tests.data_tools.preparations import contents, write_jsonl

ROOT = Path(__file__).parents[2]
TOKENIZER = load_tokenizer()


class Done(NamedTuple):
    """What a command returned and printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def instruct(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """The command in this process, with rows of CONTEXT tokens."""

    def run(source: Path, out: Path, *more: object) -> Done:
        arguments = ["--source", source, "--out", out, "--context", CONTEXT, *more]
        monkeypatch.setattr(sys, "argv", ["instruct", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            exit_cleanly(main)
        return Done(end.value.code or 0, *capsys.readouterr())

    return run


def test_every_conversation_is_whole_in_a_row_and_masked_on_its_answers(instruct, tmp_path: Path):
    rows = random_rows(400)
    done = instruct(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = []
    numbers = {}
    for split in ("train", "val"):
        stream = open_stream(
            tmp_path / "out",
            split,
            tokenizer=TOKENIZER.hash,
            vocab_size=CHAT_VOCAB,
            context=CONTEXT,
        )
        tokens = stream.read(0, stream.length)
        mask = stream.read_mask(0, stream.length)
        assert stream.length % CONTEXT == 1 and tokens[-1] == END_OF_TEXT and mask[-1] == 0
        np.testing.assert_array_equal(mask, expected_mask(tokens.tolist()))
        own = []
        for row in tokens[:-1].reshape(-1, CONTEXT):
            assert row[0] == END_OF_TEXT
            parts = np.split(row, np.flatnonzero(row == END_OF_TEXT)[1:])
            # A part of one token is padding.
            own += [tuple(part.tolist()) for part in parts if len(part) > 1]
        numbers[split] = sorted(int(TOKENIZER.decode(part[2:]).split()[0]) for part in own)
        found += own
    assert sorted(found) == sorted(
        tuple(render(read_row(row).messages, TOKENIZER)[0]) for row in rows
    )
    assert numbers["val"] == [0, 100, 200, 300]


def test_the_summary_counts_what_strict_refuses(instruct, tmp_path: Path):
    bad = [
        "{broken",
        "[1]",
        '{"prompt": "q", "completion": ""}',
        '{"prompt": "q", "completion": " "}',
    ]
    lines = [json.dumps(row) for row in random_rows(10)] + bad
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    pairs = [{"question": "q", "answer": "a"}] * 3
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "more.parquet")
    more = ["--source", tmp_path / "more.parquet"]

    done = instruct(source, tmp_path / "out", *more)
    assert done.returncode == 0, done.stderr
    table = dict(re.findall(r"^ *(\S.*?) {2,}(\d+)$", done.stdout, re.M))
    assert (table["rows read"], table["kept"], table["skipped"]) == ("17", "13", "4")
    assert (table["empty answer"], table["broken JSON"], table["not an object"]) == ("2", "1", "1")

    strict = instruct(source, tmp_path / "strict", *more, "--strict")
    assert strict.returncode == 2 and not (tmp_path / "strict").exists()
    assert strict.stderr.splitlines()[-1].startswith(f"error: {source}: row 11: broken JSON")


def test_every_field_with_a_meaning_is_used_counted_or_named(instruct, tmp_path: Path):
    numbers = range(12)
    rows = [
        *({"system": f"S{n}", "conversations": turns(f"q{n}", f"a{n}")} for n in numbers),
        *({"messages": turns("q", "WRONG", "no", f"w{n}", weights=(0, 1))} for n in numbers),
        *(
            {"instruction": f"i{n}", "input": "", "output": f"o{n}", "prompt": f"i{n}: o{n}"}
            for n in numbers
        ),
        *({"messages": turns("q", "a"), "tools": [{"name": "look"}]} for _ in numbers),
        {"prompt": "q", "completion": "a", "question": "q", "answer": "b"},
    ]
    done = instruct(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out", "--show", 36)
    assert done.returncode == 0, done.stderr
    for n in numbers:
        assert (
            f"<|system|>S{n}<|end|><|user|>q{n}<|end|><|assistant|>[[a{n}<|end|>]]" in done.stdout
        )
        assert f"WRONG<|end|><|user|>no<|end|><|assistant|>[[w{n}<|end|>]]" in done.stdout
        assert f"<|user|>i{n}<|end|><|assistant|>[[o{n}<|end|>]]" in done.stdout
    table = dict(re.findall(r"^ *(\S.*?) {2,}(\d+)$", done.stdout, re.M))
    assert (table["kept"], table["skipped"], table["tools not supported"]) == ("36", "13", "12")
    assert table["ambiguous: prompt/completion or question/answer"] == "1"
    assert re.findall(r".*not used.*", done.stdout) == ["fields not used: prompt"]


def test_where_nothing_is_left_the_reasons_and_the_way_out_are_said(instruct, tmp_path: Path):
    source = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q", "chosen": "a"}] * 3)
    done = instruct(source, tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "skipped: 3 chosen not supported; --strict shows the first row" in done.stderr


def test_show_prints_what_is_learned(instruct, tmp_path: Path):
    pairs = [{"prompt": "Say é.", "completion": "é 🙂"}, {"question": "q", "answer": "a"}]
    source = write_jsonl(tmp_path / "rows.jsonl", pairs)
    output = instruct(source, tmp_path / "out", "--show", 1).stdout
    assert "<|endoftext|><|user|>Say é.<|end|><|assistant|>[[é 🙂<|end|>]]\n" in output
    assert "[[a" not in output


def test_a_killed_run_is_repaired_by_the_same_command(instruct, tmp_path: Path):
    source = write_jsonl(tmp_path / "rows.jsonl", random_rows(40))
    out = tmp_path / "out"
    assert instruct(source, tmp_path / "whole").returncode == 0
    arguments = ["--source", source, "--out", out, "--context", CONTEXT]
    killed = subprocess.run(
        [sys.executable, "-m", "data_tools.instruct", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"MINIGPT_FAILPOINT": "before_replace:kill"},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL and not (out / MANIFEST).exists()
    # Files of a run that was killed later and had more rows.
    for shard in ("train_000000", "train_000001"):
        (out / f"{shard}.mask.npy").write_bytes(b"mask")
        (out / f"{shard}.npy").write_bytes(b"tokens")
    (out / "train_000002.npy.tmp").write_bytes(b"half a file")
    assert instruct(source, out).returncode == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_folder_is_replaced_only_with_overwrite(instruct, tmp_path: Path):
    source = write_jsonl(tmp_path / "rows.jsonl", random_rows(40))
    out = tmp_path / "out"
    assert instruct(source, out).returncode == 0
    before = contents(out)
    again = instruct(source, out)
    assert again.returncode == 2 and "--overwrite" in again.stderr and contents(out) == before
    assert instruct(source, out, "--overwrite", "--val-every", 2).returncode == 0
    assert contents(out).keys() == before.keys() and contents(out) != before


def test_a_full_disk_ends_in_one_line_and_the_same_command_repairs_it(
    instruct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write_jsonl(tmp_path / "rows.jsonl", random_rows(100))
    out = tmp_path / "out"
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_replace:enospc")
    full = instruct(source, out)
    monkeypatch.delenv("MINIGPT_FAILPOINT")
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("failed: ") and "same command" in full.stderr
    assert not out.exists()
    # A run that was killed while it moved its complete files, and then a full disk.
    assert instruct(source, out).returncode == 0
    whole = contents(out)
    (out / MANIFEST).unlink()
    (out / UNFINISHED).mkdir()
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_replace:enospc")
    assert instruct(source, out).returncode == 1
    monkeypatch.delenv("MINIGPT_FAILPOINT")
    assert instruct(source, out).returncode == 0
    assert contents(out) == whole


def test_data_without_a_manifest_are_replaced_only_with_overwrite(instruct, tmp_path: Path):
    source = write_jsonl(tmp_path / "rows.jsonl", random_rows(20))
    out = tmp_path / "out"
    assert instruct(source, out).returncode == 0
    whole = contents(out)
    (out / MANIFEST).unlink()
    before = contents(out)
    refused = instruct(source, out)
    assert refused.returncode == 2 and "no manifest.json" in refused.stderr
    assert contents(out) == before
    assert instruct(source, out, "--overwrite").returncode == 0 and contents(out) == whole


def test_a_full_disk_keeps_the_data_that_were_to_be_replaced(
    instruct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write_jsonl(tmp_path / "rows.jsonl", random_rows(20))
    out = tmp_path / "out"
    assert instruct(source, out).returncode == 0
    before = contents(out)
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_replace:enospc")
    assert instruct(source, out, "--overwrite", "--val-every", 2).returncode == 1
    assert contents(out) == before


def test_shards_of_other_programs_are_not_changed(instruct, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    np.save(out / "train_000000.npy", np.zeros(9, np.uint16))
    before = contents(out)
    source = write_jsonl(tmp_path / "rows.jsonl", random_rows(4))
    refused = instruct(source, out, "--overwrite")
    assert refused.returncode == 2 and "without a mask" in refused.stderr
    assert contents(out) == before


def test_a_column_that_is_not_needed_costs_no_row(instruct, tmp_path: Path):
    """A date that Python cannot hold, in a time zone that does not exist."""
    dates = pa.array([2**62] * 20, pa.timestamp("us", "Mars/Base"))
    pairs = {"prompt": [b"a"] * 20, "completion": ["b"] * 20, "created": dates}
    pq.write_table(pa.table(pairs), tmp_path / "rows.parquet")
    done = instruct(tmp_path / "rows.parquet", tmp_path / "out")
    assert done.returncode == 0 and re.search(r"^kept +20$", done.stdout, re.M), done


def test_files_that_hold_no_rows_are_named(instruct, tmp_path: Path):
    source = tmp_path / "rows"
    source.mkdir()
    write_jsonl(source / "a.jsonl", random_rows(10))
    (source / "README.md").write_text("about the rows")
    done = instruct(source, tmp_path / "out")
    assert done.returncode == 0
    assert "1 files are read; not read: 1 text, not rows (README.md)" in done.stdout
