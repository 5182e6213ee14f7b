"""The text that shards are made from has an identity, and a text alone is cut in two."""

import json
import os
from pathlib import Path

import pytest

from data_tools.fineweb import prepare
from data_tools.recipe import Recipe, cut_end
from minigpt_jax.errors import InputError, RunError
from minigpt_jax.token_stream import MANIFEST, open_stream, read_manifest
from minigpt_jax.tokenizer import TEXT_VOCAB, load_tokenizer
from tests.data_tools.preparations import contents, random_texts, write_jsonl

OLD = "of one content"
NEW = "or two content"


def texts_folder(root: Path, text: str = OLD) -> Path:
    folder = root / "texts"
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"{text} {number}")
    return folder


def edit(path: Path, old: str = OLD, new: str = NEW) -> None:
    """Change a text in place: its name, size and times stay."""
    state = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size


# ---- edited text


def test_a_finished_folder_is_not_called_the_same_after_an_edit(tmp_path: Path, capsys):
    source = texts_folder(tmp_path)
    recipe = Recipe([str(source)], val_every=2)
    prepare(recipe, tmp_path / "out", workers=1)
    prepare(recipe, tmp_path / "out", workers=1)
    assert "done before, from the same text" in capsys.readouterr().out
    edit(source / "2.txt")
    with pytest.raises(InputError, match=r"the text has changed, .*another --out") as refused:
        prepare(recipe, tmp_path / "out", workers=1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("change", [edit, Path.unlink, lambda p: p.rename(p.with_name("9.txt"))])
def test_an_interrupted_preparation_is_not_continued_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change
):
    source = texts_folder(tmp_path)
    recipe = Recipe([str(source)], val_every=2, shard_tokens=3)
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_progress@3:enospc")
    with pytest.raises(RunError):
        prepare(recipe, tmp_path / "out", workers=1)
    monkeypatch.delenv("MINIGPT_FAILPOINT")
    before = contents(tmp_path / "out")
    assert "train_000001.npy" in before or "val_000001.npy" in before
    change(source / "3.txt")
    with pytest.raises(InputError, match=r"holds data made from .*another --out"):
        prepare(recipe, tmp_path / "out", workers=1)
    assert contents(tmp_path / "out") == before


def test_text_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = texts_folder(tmp_path)
    read = Recipe.read_documents

    def read_and_append(recipe: Recipe):
        yield from read(recipe)
        with (source / "1.txt").open("a") as file:
            file.write("late")

    monkeypatch.setattr(Recipe, "read_documents", read_and_append)
    with pytest.raises(InputError, match=r"1\.txt: changed while the text was read"):
        prepare(Recipe([str(source)], val_every=2), tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / MANIFEST).exists()


# ---- what version 0.1.0 recorded


def record_as_version_0_1_0(recipe: Recipe, out: Path) -> None:
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["source"] = recipe.describe_earlier()
    (out / MANIFEST).write_text(json.dumps(manifest))


def test_a_folder_of_version_0_1_0_is_still_done(tmp_path: Path, capsys):
    """It recorded no content, and read fewer kinds of files."""
    source = texts_folder(tmp_path)
    recipe = Recipe([str(source)], val_every=2)
    prepare(recipe, tmp_path / "out", workers=1)
    record_as_version_0_1_0(recipe, tmp_path / "out")
    (source / "more.md").write_text("not read by version 0.1.0")
    prepare(recipe, tmp_path / "out", workers=1)
    output = capsys.readouterr().out
    assert "done before" in output and "did not read all these files" in output
    (source / "more.txt").write_text("not there before")
    with pytest.raises(InputError, match="holds data made from"):
        prepare(recipe, tmp_path / "out", workers=1)


def test_a_preparation_of_version_0_1_0_is_not_continued_with_more_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = texts_folder(tmp_path)
    recipe = Recipe([str(source)], val_every=2, shard_tokens=3)
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_progress@3:enospc")
    monkeypatch.setattr(Recipe, "describe", Recipe.describe_earlier)
    with pytest.raises(RunError):
        prepare(recipe, tmp_path / "out", workers=1)
    monkeypatch.undo()
    (source / "more.md").write_text("not read by version 0.1.0")
    with pytest.raises(InputError, match="holds data made from"):
        prepare(recipe, tmp_path / "out", workers=1)
    (source / "more.md").unlink()
    prepare(recipe, tmp_path / "out", workers=1)
    assert "content" in read_manifest(tmp_path / "out")["source"]


# ---- a text alone


def test_a_text_alone_becomes_two_parts(tmp_path: Path, capsys):
    book = "\n\n".join(random_texts(4, documents=300, words=40))
    (tmp_path / "book.txt").write_text(book)
    recipe = Recipe([str(tmp_path / "book.txt")], val_every=10)
    prepare(recipe, tmp_path / "out", workers=1)
    assert "cut in two parts" in capsys.readouterr().out
    tokenizer = load_tokenizer()
    train, val = (
        open_stream(
            tmp_path / "out",
            split,
            tokenizer=tokenizer.hash,
            vocab_size=TEXT_VOCAB,
            context=64,
        )
        for split in ("train", "val")
    )
    start, end = (tokenizer.decode(s.read(1, s.length).tolist()) for s in (train, val))
    assert start + end == book and start.endswith("\n\n")
    assert 0.05 < len(end) / len(book) < 0.2


def test_a_text_alone_continues_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "book.txt").write_text("\n".join(random_texts(4, documents=50, words=40)))
    recipe = Recipe([str(tmp_path / "book.txt")], val_every=10, shard_tokens=100)
    prepare(recipe, tmp_path / "whole", workers=1)
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_progress@4:enospc")
    with pytest.raises(RunError):
        prepare(recipe, tmp_path / "out", workers=1)
    monkeypatch.delenv("MINIGPT_FAILPOINT")
    prepare(recipe, tmp_path / "out", workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("text", "val_every", "end"),
    [
        ("a" * 70 + "\n\n" + "b" * 20 + "\n" + "c d", 4, "b" * 20 + "\nc d"),
        ("one line of some words", 4, "words"),
        ("漢字" * 50, 5, "漢字" * 10),
        ("word", 2, None),
        ("word" + " " * 30, 2, None),
    ],
)
def test_a_text_is_cut_before_a_paragraph_a_line_or_a_word(
    text: str, val_every: int, end: str | None
):
    parts = cut_end(text, val_every)
    assert parts == (None if end is None else (end, text[: -len(end)]))


def test_a_text_that_is_too_short_to_be_cut_is_refused(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "word"}])
    with pytest.raises(InputError, match=r"1 usable documents .* alone and long enough"):
        prepare(Recipe([str(tmp_path / "a.jsonl")]), tmp_path / "out", workers=1)
