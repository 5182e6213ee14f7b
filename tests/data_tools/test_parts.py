"""The shards are those of one process, whatever becomes of the processes that write the parts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_tools.fineweb import prepare
from data_tools.join_parts import join_parts
from data_tools.parts import find_parts, part_path
from data_tools.recipe import Recipe
from minigpt_jax.errors import RunError
from tests.data_tools.parts import (
    FAST,
    SHARD_TOKENS,
    UNEVEN,
    by_one_process,
    joined,
    make,
    make_all,
    recipe_of,
    refuse,
    write_texts,
)
from tests.data_tools.preparations import write_jsonl


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("source") / "texts")


@pytest.fixture(scope="module")
def reference(texts: Path, tmp_path_factory) -> dict[str, bytes]:
    return by_one_process(recipe_of(texts), tmp_path_factory.mktemp("reference") / "out")


@pytest.fixture(scope="module")
def four_parts(texts: Path, tmp_path_factory) -> Path:
    """Not to be changed."""
    return make_all(recipe_of(texts), tmp_path_factory.mktemp("four") / "parts", of=4)


# ---- the same bytes


@pytest.mark.parametrize("of", [1, 3, 4, 20])
def test_any_number_of_parts_gives_the_bytes_of_one_process(
    texts: Path, reference: dict[str, bytes], tmp_path: Path, of: int
):
    """20 parts of 8 files: most of them are empty."""
    parts = make_all(recipe_of(texts), tmp_path / "parts", of)
    assert len(reference) > 10
    assert joined(parts, tmp_path / "out") == reference
    assert len(find_parts(parts)) == of


def test_several_sources_and_a_limit(texts: Path, tmp_path: Path):
    single = tmp_path / "single.txt"
    single.write_text("a text of its own " * 30)
    more = write_texts(tmp_path / "more", documents=(5, 20))
    for number, limit in enumerate((None, 44, 146, 2)):
        recipe = recipe_of(texts, single, more, limit=limit)
        expected = by_one_process(recipe, tmp_path / f"one{number}")
        parts = make_all(recipe, tmp_path / f"parts{number}", of=4)
        assert joined(parts, tmp_path / f"out{number}") == expected


@pytest.mark.parametrize("documents", [(0, 1, 0), (1, 1), (2,)])
def test_so_few_documents_that_a_text_alone_is_cut(tmp_path: Path, documents: tuple[int, ...]):
    recipe = recipe_of(write_texts(tmp_path / "texts", documents), shard_tokens=20)
    expected = by_one_process(recipe, tmp_path / "one")
    parts = make_all(recipe, tmp_path / "parts", of=2)
    assert joined(parts, tmp_path / "out") == expected


def test_a_text_alone_that_cannot_be_cut_is_refused_as_by_one_process(tmp_path: Path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": "word"}])
    parts = make_all(recipe_of(source), tmp_path / "parts", of=2)
    refuse(r"1 usable documents .* alone and long enough", join_parts, parts, tmp_path / "out")


def test_rows_of_a_hub_data_set_are_divided_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`datasets` finds the folder owner/texts; with a revision, it is no local source of ours."""
    write_texts(tmp_path / "owner" / "texts", documents=(3, 5, 1, 8, 2))
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of("owner/texts@main")
    expected = by_one_process(recipe, tmp_path / "one")
    assert b"owner/texts@" in expected["manifest.json"]
    assert joined(make_all(recipe, tmp_path / "parts", of=3), tmp_path / "out") == expected


def test_one_process_can_begin_what_parts_end(
    texts: Path,
    reference: dict[str, bytes],
    four_parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    out = tmp_path / "out"
    monkeypatch.setenv("MINIGPT_FAILPOINT", "before_progress@4:enospc")
    with pytest.raises(RunError):
        prepare(recipe_of(texts), out, workers=1, fast_tokenizer=FAST)
    monkeypatch.delenv("MINIGPT_FAILPOINT")
    complete = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    assert joined(four_parts, out) == reference
    # All but the last, which was not recorded.
    kept = [name for name, time in complete.items() if (out / name).stat().st_mtime_ns == time]
    assert len(kept) >= len(complete) - 1 > 0
    capsys.readouterr()
    join_parts(four_parts, out)
    prepare(recipe_of(texts), out)
    assert capsys.readouterr().out.count("done before, from the same text") == 2


def test_the_summary_has_the_skipped_rows_of_all_parts(
    texts: Path, four_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    capsys.readouterr()
    join_parts(four_parts, tmp_path / "out")
    output = capsys.readouterr().out
    assert f"documents    {sum(UNEVEN)}\n" in output
    assert "skipped      8 field missing or null\n" in output
    assert str(texts / "0.jsonl") in output and str(texts / "7.jsonl") in output


# ---- kills


def killed(failpoint: str, *arguments: object) -> None:
    """Run the real program until it kills itself at a named point."""
    done = subprocess.run(
        [sys.executable, "-m", "data_tools.fineweb", *map(str, arguments)],
        env=os.environ | {"MINIGPT_FAILPOINT": f"{failpoint}:kill"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def test_kills_while_parts_are_written_and_joined_change_no_byte(
    texts: Path, reference: dict[str, bytes], tmp_path: Path
):
    parts, out = tmp_path / "parts", tmp_path / "out"
    command = ["--source", texts, "--val-every", 7, "--shard-tokens", SHARD_TOKENS]
    command += ["--workers", 1, "--parts", parts, "--part"]
    killed("in_part", *command, "1/4")
    killed("before_replace", *command, "2/4")
    assert not find_parts(parts) and len(list(parts.glob("*.tmp"))) == 2
    make_all(recipe_of(texts), parts, of=4)
    killed("before_progress@5", "--merge", parts, "--out", out)
    assert not (out / "manifest.json").exists() and len(list(out.glob("*.npy"))) >= 5
    assert joined(parts, out) == reference


def test_a_part_that_is_there_is_not_made_again(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    make(recipe_of(texts), tmp_path, 2, 4)
    path = part_path(tmp_path, 2, 4)
    before = path.stat()
    content = path.read_bytes()
    make(recipe_of(texts), tmp_path, 2, 4)
    assert "done before, from the same text" in capsys.readouterr().out
    assert os.path.samestat(path.stat(), before)
    path.unlink()
    make(recipe_of(texts), tmp_path, 2, 4)
    assert path.read_bytes() == content


def test_the_same_part_can_be_made_twice_at_once(
    texts: Path, four_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A machine that seemed lost goes on while another one does its work."""
    read = Recipe.read_documents
    unfinished = []

    def read_while_another_makes_it(recipe: Recipe, files):
        monkeypatch.setattr(Recipe, "read_documents", read)
        make(recipe, tmp_path, 2, 4)
        unfinished.extend(tmp_path.glob("*.tmp"))
        yield from read(recipe, files)

    monkeypatch.setattr(Recipe, "read_documents", read_while_another_makes_it)
    make(recipe_of(texts), tmp_path, 2, 4)
    assert len(unfinished) == 1
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == (four_parts / path.name).read_bytes()


def test_a_full_disk_leaves_nothing_and_the_same_command_makes_the_part(
    texts: Path, four_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for point in ("in_part", "before_replace"):
        monkeypatch.setenv("MINIGPT_FAILPOINT", f"{point}:enospc")
        with pytest.raises(RunError, match=r"part_00002_.*free space; the same command makes"):
            make(recipe_of(texts), tmp_path, 2, 4)
        assert not list(tmp_path.iterdir())
    monkeypatch.delenv("MINIGPT_FAILPOINT")
    make(recipe_of(texts), tmp_path, 2, 4)
    name = part_path(tmp_path, 2, 4).name
    assert (tmp_path / name).read_bytes() == (four_parts / name).read_bytes()


# ---- the format


def test_a_part_says_what_it_was_made_from(texts: Path, four_parts: Path):
    """In a format that numpy reads."""
    with np.load(part_path(four_parts, 2, 4)) as part:
        record = json.loads(part["part.json"])
        tokens, bounds = part["tokens_000000"], part["bounds_000000"]
    assert (record["index"], record["of"], record["batches"]) == (2, 4, 1)
    assert [file[0] for file in record["sources"][0]["files"]] == ["4.jsonl", "5.jsonl"]
    assert record["documents"] == len(bounds) - 1 == 90
    assert record["tokens"] == len(tokens) == bounds[-1] and tokens.dtype == np.uint16
