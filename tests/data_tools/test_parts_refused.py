"""Parts that are missing, damaged or of something else are never joined, and one line says why."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools.fineweb import main
from data_tools.join_parts import join_parts
from data_tools.parts import PartRecord, part_path, read_batches, read_record
from data_tools.recipe import Recipe
from minigpt_jax.errors import InputError
from tests.data_tools.parts import make, make_all, recipe_of, refuse, write_texts
from tests.data_tools.preparations import write_jsonl
from tests.in_process import run_main


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("source") / "texts")


@pytest.fixture(scope="module")
def four_parts(texts: Path, tmp_path_factory) -> Path:
    """Not to be changed."""
    return make_all(recipe_of(texts), tmp_path_factory.mktemp("four") / "parts", of=4)


def copy_of(four_parts: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in four_parts.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_parts_that_are_not_one_whole_are_refused(texts: Path, four_parts: Path, tmp_path: Path):
    parts, out = copy_of(four_parts, tmp_path / "parts"), tmp_path / "out"
    refuse("no such folder", join_parts, tmp_path / "nothing", out)
    refuse("holds parts: choose another folder", join_parts, parts, parts)
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
    # Another part is refused as well, before it is made.
    part_path(parts, 1, 4).unlink()
    refuse("made from .*now requested is .*another --parts", make, other, parts, 1, 4)
    make(other, tmp_path / "others", 1, 4)
    part_path(tmp_path / "others", 1, 4).rename(part_path(parts, 1, 4))
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
    refuse("now requested is", make, recipe, parts, 1, 2)


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

    def read(path: Path) -> tuple[PartRecord, list[bytes]]:
        record = read_record(path)
        batches = read_batches(path, record.batches)
        return record, [array.tobytes() for batch in batches for array in batch]

    name = part_path(four_parts, 1, 4).name
    whole = (four_parts / name).read_bytes()
    parts = copy_of(four_parts, tmp_path / "parts")
    expected = read(parts / name)
    draw = random.Random(0)
    ends = [*range(100), *range(len(whole) - 300, len(whole))]
    places = ends + draw.sample(range(len(whole)), 200)
    noticed = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        (parts / name).write_bytes(damaged)
        try:
            assert read(parts / name) == expected, f"byte {place}"
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
    refuse("no such folder", join_parts, file, tmp_path / "out")


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
        ("--source SOURCE --parts PARTS --part 0/100000", "more than 99,999 parts"),
        ("--source SOURCE --parts= --part 0/4", "argument --parts: the name is empty"),
        ("--source SOURCE --parts PARTS", "missing: --part"),
        ("--source SOURCE --part 0/4", "missing: --parts"),
        ("--source SOURCE --parts PARTS --part 0/4 --out OUT", "not allowed here: --out"),
        ("--source SOURCE", "missing: --out"),
        ("--out OUT", "missing: --source"),
        ("--merge PARTS", "missing: --out"),
        ("--merge PARTS --out OUT --text-column a --no-fast", "here: --text-column, --no-fast"),
        ("--merge PARTS --out OUT --source SOURCE", "not allowed here: --source"),
        ("--merge PARTS --out OUT", "PARTS: no such folder"),
        ("--merge . --out OUT", "no parts here"),
    ],
)
def test_options_that_do_not_belong_together(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str
):
    monkeypatch.chdir(tmp_path)
    done = run_main(main, *options.replace("SOURCE", str(texts)).split())
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
