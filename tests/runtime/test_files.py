"""A file is replaced as a whole or not at all, and records that a crash cut off are ignored."""

from pathlib import Path

import pytest

from minigpt_jax.runtime.files import atomic_write, read_jsonl, sha256, write_json


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=str(path)):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_text() == "new"


def test_a_full_disk_before_the_rename_keeps_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    before = sha256(path)
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_replace:enospc")
    with pytest.raises(OSError, match=str(path)):
        write_json(path, {"a": 2})
    assert sha256(path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_only_complete_records_are_read(tmp_path: Path, capfd):
    path = tmp_path / "records.jsonl"
    assert read_jsonl(path) == []
    path.write_text('{"step": 0}\n{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 0}, {"step": 1, "loss": 2.5}]
    assert not capfd.readouterr().err
    path.write_text('{"step": 0}\n{"loss": 1}\n[]\nnot JSON\n{"step": 4}\n')
    assert read_jsonl(path) == [{"step": 0}, {"step": 4}]
    lines = capfd.readouterr().err.splitlines()
    for number, line in zip((2, 3, 4), lines, strict=True):
        assert f"line {number} is damaged" in line
