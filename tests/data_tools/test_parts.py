"""The shards are those of one process, whatever becomes of the processes that write the parts."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.fast_tokenizer import FastTokenizer
from data_tools.fineweb import main, prepare
from data_tools.join_parts import join_parts
from data_tools.make_parts import make_part
from data_tools.parts import find_parts, part_path
from data_tools.recipe import Recipe
from minigpt_jax.errors import InputError, RunError
from tests.data_tools.preparations import contents, random_texts, write_jsonl
from tests.in_process import run_main

# Threads of this process encode; without it, tiktoken would start processes for every part.
FAST = FastTokenizer()
# Documents in each file: none, one, many.
UNEVEN = (3, 0, 40, 1, 0, 90, 12, 7)
SHARD_TOKENS = 1_500


def write_texts(folder: Path, documents: Iterable[int] = UNEVEN) -> Path:
    """Files with so many documents each, and a row without text."""
    folder.mkdir(parents=True)
    for number, count in enumerate(documents):
        texts = random_texts(number, documents=count, words=60)
        write_jsonl(folder / f"{number}.jsonl", [{"text": text} for text in [*texts, None]])
    return folder


def recipe_of(*sources: object, **changes) -> Recipe:
    return Recipe(
        [*map(str, sources)], **({"val_every": 7, "shard_tokens": SHARD_TOKENS} | changes)
    )


def make(recipe: Recipe, parts: Path, index: int, of: int) -> None:
    make_part(recipe, parts, index, of, workers=1, fast_tokenizer=FAST)


def make_all(recipe: Recipe, parts: Path, of: int) -> Path:
    """The folder of the parts, made in some order."""
    for index in random.Random(of).sample(range(of), of):
        make(recipe, parts, index, of)
    return parts


def by_one_process(recipe: Recipe, out: Path) -> dict[str, bytes]:
    prepare(recipe, out, workers=1, fast_tokenizer=FAST)
    return contents(out)


def joined(parts: Path, out: Path) -> dict[str, bytes]:
    join_parts(parts, out)
    return contents(out)


def refuse(message: str, work, *arguments) -> None:
    with pytest.raises(InputError, match=message) as error:
        work(*arguments)
    assert "\n" not in str(error.value)


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


def copy_of(four_parts: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in four_parts.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


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
    # What the killed processes left is gone.
    assert not list(parts.glob("*.tmp"))
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
    # Two processes that write the same part at once write the same bytes.
    path.unlink()
    make(recipe_of(texts), tmp_path, 2, 4)
    assert path.read_bytes() == content


def test_the_unfinished_file_of_a_living_process_is_left_alone(texts: Path, tmp_path: Path):
    path = part_path(tmp_path, 0, 4)
    living, dead, of_another = (
        path.with_name(f"{path.name}.1.tmp"),
        path.with_name(f"{path.name}.2.tmp"),
        tmp_path / f"{part_path(tmp_path, 1, 4).name}.3.tmp",
    )
    for file in (living, dead, of_another):
        file.touch()
    with living.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        make(recipe_of(texts), tmp_path, 0, 4)
    assert {living, of_another} == set(tmp_path.glob("*.tmp")) and path.exists()


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


# ---- what is refused


def test_parts_that_are_not_one_whole_are_refused(texts: Path, four_parts: Path, tmp_path: Path):
    parts, out = copy_of(four_parts, tmp_path / "parts"), tmp_path / "out"
    refuse("no parts here", join_parts, tmp_path / "nothing", out)
    for index in (1, 3):
        part_path(parts, index, 4).unlink()
    refuse(r"2 of 4 parts are missing: .*--part 1/4, 3/4", join_parts, parts, out)
    refuse("holds parts of 4, now requested is a part of 5", make, recipe_of(texts), parts, 0, 5)
    make(recipe_of(texts), tmp_path / "others", 1, 5)
    five = part_path(tmp_path / "others", 1, 5)
    five.rename(parts / five.name)
    refuse("holds parts of 4 and of 5: delete", join_parts, parts, out)
    assert not out.exists()


@pytest.mark.parametrize(
    "changes", [{"val_every": 8}, {"shard_tokens": 9}, {"column": "id"}, {"limit": 3}]
)
def test_a_part_of_another_recipe_is_refused(
    texts: Path, four_parts: Path, tmp_path: Path, changes: dict
):
    parts = copy_of(four_parts, tmp_path / "parts")
    other = replace(recipe_of(texts), **changes)
    refuse("made from .*now requested is .*another --parts", make, other, parts, 1, 4)
    part_path(parts, 1, 4).unlink()
    make(other, parts, 1, 4)
    refuse("part 1/4 was made from .* part 0/4 from .*delete", join_parts, parts, tmp_path / "out")


def test_text_that_changed_between_two_parts_is_refused(tmp_path: Path):
    source = write_texts(tmp_path / "texts", documents=(3, 3))
    recipe, parts = recipe_of(source), tmp_path / "parts"
    make(recipe, parts, 0, 2)
    file = source / "0.jsonl"
    # As many bytes as before.
    file.write_text(file.read_text().replace("a", "e"))
    refuse("the text has changed", make, recipe, parts, 0, 2)
    write_jsonl(source / "2.jsonl", [{"text": "more"}])
    refuse("now requested is", make, recipe, parts, 0, 2)
    make(recipe, parts, 1, 2)
    refuse("was made from", join_parts, parts, tmp_path / "out")


def test_text_that_changes_while_it_is_read_makes_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write_texts(tmp_path / "texts", documents=(3, 3))
    read = Recipe.read_documents

    def read_and_append(recipe: Recipe, files):
        yield from read(recipe, files)
        for name in ("0.jsonl", "1.jsonl"):
            with (source / name).open("a") as file:
                file.write('{"text": "late"}\n')

    monkeypatch.setattr(Recipe, "read_documents", read_and_append)
    # The other part's file is the other part's business.
    refuse(r"^\S+texts/1\.jsonl: changed while", make, recipe_of(source), tmp_path / "parts", 1, 2)
    assert not list((tmp_path / "parts").iterdir())


def test_damage_is_noticed_wherever_it_is(four_parts: Path, tmp_path: Path):
    """Or it is in a byte without a meaning, such as a date."""
    expected = joined(four_parts, tmp_path / "expected")
    name = part_path(four_parts, 1, 4).name
    whole = (four_parts / name).read_bytes()
    parts = copy_of(four_parts, tmp_path / "parts")
    draw = random.Random(0)
    places = [*range(40), *range(len(whole) - 60, len(whole)), *draw.sample(range(len(whole)), 60)]
    noticed = 0
    for number, place in enumerate(places):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        (parts / name).write_bytes(damaged)
        try:
            assert joined(parts, tmp_path / str(number)) == expected
        except InputError as error:
            assert "\n" not in str(error)
            noticed += 1
    assert noticed > len(places) / 2
    for size in (0, 100, len(whole) - 1):
        (parts / name).write_bytes(whole[:size])
        refuse(f"{name}: not a part, or damaged", join_parts, parts, tmp_path / "out")
    (parts / name).write_bytes(part_path(four_parts, 2, 4).read_bytes())
    refuse("was renamed, it is part 2/4", join_parts, parts, tmp_path / "out")


def test_a_folder_of_parts_within_the_source_or_under_a_file_is_refused(
    texts: Path, tmp_path: Path
):
    refuse("--parts .* lies within --source", make, recipe_of(texts), texts / "parts", 0, 1)
    file = tmp_path / "file"
    file.touch()
    refuse("a file, expected a folder", make, recipe_of(texts), file, 0, 1)
    refuse("no parts here", join_parts, file, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--source SOURCE --parts PARTS --part 4/4", "'4/4', expected i/n with i from 0 to n-1"),
        ("--source SOURCE --parts PARTS --part 0/0", "'0/0', expected"),
        ("--source SOURCE --parts PARTS --part=-1/4", "'-1/4', expected"),
        # A variable that is not set.
        ("--source SOURCE --parts PARTS --part /4", "'/4', expected"),
        ("--source SOURCE --parts PARTS --part 1", "'1', expected"),
        ("--source SOURCE --parts PARTS --part ٣/4", "expected"),
        ("--source SOURCE --parts PARTS", "missing: --part"),
        ("--source SOURCE --part 0/4", "missing: --parts"),
        ("--source SOURCE --parts PARTS --part 0/4 --out OUT", "not allowed here: --out"),
        ("--source SOURCE", "missing: --out"),
        ("--out OUT", "missing: --source"),
        ("--merge PARTS", "missing: --out"),
        ("--merge PARTS --out OUT --text-column a --no-fast", "here: --text-column, --no-fast"),
        ("--merge PARTS --out OUT --source SOURCE", "not allowed here: --source"),
        ("--merge PARTS --out OUT", "no parts here"),
    ],
)
def test_options_that_do_not_belong_together(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str
):
    monkeypatch.chdir(tmp_path)
    done = run_main(main, *options.replace("SOURCE", str(texts)).split())
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_part_says_what_it_was_made_from(texts: Path, four_parts: Path):
    """In a format that numpy reads."""
    with np.load(part_path(four_parts, 2, 4)) as part:
        record = json.loads(part["part.json"])
        tokens, bounds = part["tokens_000000"], part["bounds_000000"]
    assert (record["index"], record["of"], record["batches"]) == (2, 4, 1)
    assert [file[0] for file in record["sources"][0]["files"]] == ["4.jsonl", "5.jsonl"]
    assert record["documents"] == len(bounds) - 1 == 90
    assert record["tokens"] == len(tokens) == bounds[-1] and tokens.dtype == np.uint16
