"""Every token is where it belongs, the summary is right, and bad input is refused in one line."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.fineweb import Recipe, main, prepare
from minigpt_jax.errors import InputError
from minigpt_jax.token_stream import read_manifest
from minigpt_jax.tokenizer import END_OF_TEXT, load_tokenizer
from tests.data_tools.preparations import random_texts, write_jsonl

HOSTILE = [
    "a <|endoftext|> b<|user|><|end|>",
    "nul \0 inside",
    "lone \ud800 surrogate \udfff",
    "word " * 2_000_000,
    "\u2028 é 漢字 🙂",
    " x",
]
SKIPPED = [
    *({"text": None}, {"text": ""}, {"text": " \n\t"}, {"text": 7}),
    *({"other": "x"}, [1], {"text": ["a"]}),
]
# Few enough characters that there are more batches than ever wait in memory.
SMALL_BATCH = 1_000


def test_every_document_begins_with_the_separator_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("data_tools.encoders.BATCH_CHARACTERS", SMALL_BATCH)
    texts = HOSTILE + random_texts(2, documents=50, words=20)
    rows = [{"text": text} for text in texts]
    source = write_jsonl(tmp_path / "rows.jsonl", SKIPPED[:4] + rows[:10] + SKIPPED[4:] + rows[10:])
    recipe = Recipe([str(source)], val_every=7, shard_tokens=1_000_000)
    prepare(recipe, tmp_path / "out", workers=1)

    encode = load_tokenizer().encode
    splits = read_manifest(tmp_path / "out")["splits"]
    texts_of = {"val": texts[::7], "train": [text for n, text in enumerate(texts) if n % 7]}
    for split, chosen in texts_of.items():
        entry = splits[split]
        shards = [np.load(tmp_path / "out" / shard["file"]) for shard in entry["shards"]]
        found = np.concatenate(shards)
        expected = [token for text in chosen for token in (END_OF_TEXT, *encode(text))]
        assert found.dtype == np.uint16 and found.tolist() == expected
        assert entry["documents"] == len(chosen) == np.count_nonzero(found == END_OF_TEXT)
        assert all(shard["tokens"] == 1_000_000 for shard in entry["shards"][:-1])


def test_the_summary_counts_what_was_skipped_and_why(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [{"text": "one"}, {"text": None}, {"text": " "}, {"text": "two"}, {"text": 3}, {}]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    with source.open("a") as file:
        file.write('{"text": "cut off\n')
    prepare(Recipe([str(source)]), tmp_path / "out", workers=1)
    output = capsys.readouterr().out
    assert output.startswith("estimate: ")
    table = dict(re.findall(r"^(\S.*?) {2,}(.+)$", output, re.M))
    assert table["skipped"] == "1 blank, 1 broken JSON, 2 field missing or null, 1 not a string"
    assert table["documents"] == table["separators"] == table["text tokens"] == "2"


def test_files_and_rows_that_are_not_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = tmp_path / "texts"
    source.mkdir()
    (source / "a.pdf").write_text("x")
    (source / "b.txt").write_bytes(b"caf\xe9")
    rows = write_jsonl(
        source / "c.jsonl", [{"text": "one"}, *[{"text": None}] * 12, {"text": "two"}]
    )
    prepare(Recipe([str(source)]), tmp_path / "out", workers=1)
    output = capsys.readouterr().out
    note = f"{source}: 2 files are read; not read: 1 of unknown kind (a.pdf)"
    # Before the work, which may take hours, and in the summary.
    assert output.startswith(note) and f"files        {note}" in output
    assert f"\n  not UTF-8: {source / 'b.txt'}\n" in output
    named = ", ".join(f"{rows}:{line}" for line in range(2, 12))
    assert f"\n  field missing or null: {named} and 2 more\n" in output


def test_limit_takes_the_first_documents(tmp_path: Path):
    rows = [{"text": text} for text in random_texts(1, documents=20, words=10)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    prepare(Recipe([str(source)], val_every=4, limit=10), tmp_path / "out", workers=1)
    splits = read_manifest(tmp_path / "out")["splits"]
    assert (splits["val"]["documents"], splits["train"]["documents"]) == (3, 7)


def test_input_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path):
    def refuse(source: Path, out: Path, message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            prepare(Recipe([str(source)]), out, workers=1)
        assert "\n" not in str(error.value)

    out = tmp_path / "out"
    single = write_jsonl(tmp_path / "single.jsonl", [{"text": "alone"}, {"text": None}])
    refuse(
        single,
        out,
        r"1 usable documents in column 'text' \(skipped: 1 field missing or null\), "
        "expected at least one for each split",
    )
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    refuse(tmp_path / "broken.parquet", out, r"broken\.parquet: cannot be read")
    refuse(tmp_path / "missing.jsonl", out, r"missing\.jsonl: no such file")
    refuse(tmp_path, out, "lies within --source")
    (tmp_path / "foreign").mkdir()
    np.save(tmp_path / "foreign" / "train_000000.npy", np.zeros(10, np.uint16))
    refuse(single, tmp_path / "foreign", r"unknown origin.*data_tools\.verify")


@pytest.mark.parametrize(
    ("value", "message"),
    [("a", "invalid integer value: 'a'"), ("0", "0, expected at least 1")],
)
def test_a_limit_that_is_no_positive_integer_is_refused(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    command = ["fineweb", "--source", "x", "--out", "y", "--limit", value]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and f"--limit: {message}" in capsys.readouterr().err


def test_workers_import_nothing_large():
    large = {"jax", "flax", "torch", "datasets", "pandas", "pyarrow"}
    modules = "data_tools.fineweb, data_tools.index"
    code = f"import sys, {modules}; print({large} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
