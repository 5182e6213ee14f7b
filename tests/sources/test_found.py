"""A folder is read with all it holds; each file that is not read is named with a reason."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from minigpt_jax.errors import InputError
from minigpt_jax.sources import (
    ROWS,
    BadRow,
    documents,
    find,
    read_as_earlier,
    split_rows,
    unread_notes,
)

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456789\n"


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def line(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def texts(source: Path) -> list[str | BadRow]:
    return list(documents(str(source)))


def unread(source: Path, kinds: tuple[str, ...] = ROWS) -> dict[str, list[str]]:
    found = find(str(source), kinds)
    assert found is not None
    return dict(found.unread)


READ = {
    "a.TXT": b"capitals",
    "b.text": b"text",
    "c.md": b"# Markdown",
    "d.ndjson": line("ndjson"),
    "e.csv": b"id,text\n1,comma\n",
    "f.tsv": b"id\ttext\n1\ttab\n",
    "g.jsonl.zst": zstd(line("zstd")),
    "h.txt.bz2": bz2.compress(b"bzip2"),
    "i.txt.xz": lzma.compress(b"xz"),
    "j.JSONL.GZ": gzip.compress(line("gzip")),
    # Frames one after another, as parallel tools write them.
    "k.txt.zst": zstd(b"one ") + zstd(b"two"),
}
EXPECTED = [
    *("capitals", "text", "# Markdown", "ndjson", "comma", "tab", "zstd", "bzip2", "xz", "gzip"),
    "one two",
]


def test_every_kind_of_file_is_read(tmp_path: Path):
    assert texts(write(tmp_path, READ)) == EXPECTED
    found = find(str(tmp_path))
    assert found is not None and not found.unread
    for name, text in zip(READ, EXPECTED, strict=True):
        assert texts(tmp_path / name) == [text]


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path):
    write(tmp_path, {"texts/a.txt": b"here", "far/b.txt": b"far", "far/deep/c.txt": b"deep"})
    root = tmp_path / "texts"
    (root / "linked").symlink_to("../far")
    (root / "far_again").symlink_to("../far/deep")
    (root / "loop").symlink_to(".")
    (tmp_path / "far" / "up").symlink_to("../texts")
    # The link to the inner folder comes first by its name.
    assert texts(root) == ["here", "deep", "far"]
    found = find(str(root))
    assert found is not None
    assert found.unread == {"reached by another path": ["linked/deep/", "linked/up/", "loop/"]}


def test_a_file_with_several_names_is_read_once(tmp_path: Path):
    # As in the cache of the Hub, where two versions of a data set share their files.
    write(tmp_path, {"blobs/1": b"text"})
    for version in ("a", "b"):
        (tmp_path / "snapshots" / version).mkdir(parents=True)
        (tmp_path / "snapshots" / version / "data.txt").symlink_to("../../blobs/1")
    root = tmp_path / "snapshots"
    assert texts(root) == ["text"]
    found = find(str(root))
    assert found is not None and found.unread == {"reached by another path": ["b/data.txt"]}


def test_each_file_that_is_not_read_is_named_with_its_reason(tmp_path: Path):
    files = {
        "a.txt": b"read",
        "b.pdf": b"%PDF",
        "noending": b"x",
        "c.txt": b"",
        "d.txt.gz": gzip.compress(b""),
        "e.jsonl.zst": zstd(b"x")[:4],
        ".f.txt": b"x",
        ".git/config.txt": b"x",
        "README.md": b"---\nlicense: mit\n---\nA data set card.",
        "dataset_infos.json": b"{}",
    }
    write(tmp_path, files)
    (tmp_path / "g.txt").symlink_to("nothing")
    found = find(str(tmp_path))
    assert found is not None and [path.name for path in found.files] == ["a.txt"]
    assert found.unread == {
        "of unknown kind": ["b.pdf", "noending"],
        "empty": ["c.txt", "d.txt.gz"],
        "unreadable: Truncated compressed stream": ["e.jsonl.zst"],
        "hidden": [".f.txt", ".git/"],
        "about the data": ["README.md", "dataset_infos.json"],
        "a link to nothing": ["g.txt"],
    }


def test_a_link_that_became_a_file_is_named(tmp_path: Path):
    write(
        tmp_path,
        {"a/a.txt": b"read", "b/b.txt": b"no", "a/link": b"../b", "a/other": b"../" + b"c" * 300},
    )
    found = find(str(tmp_path / "a"))
    assert found is not None
    assert found.unread == {
        "a link that was copied as text": ["link"],
        "of unknown kind": ["other"],
    }


def test_a_zstd_window_too_large_for_arrow_is_not_called_damage(tmp_path: Path):
    # One empty block in a frame with a window of 2 GB, as `zstd --long=31` makes it.
    content = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"
    write(tmp_path, {"a.txt": b"read", "b.txt.zst": content})
    way_out = "its zstd window is above 128 MB, unpack it with zstd -d --long=31"
    found = find(str(tmp_path))
    assert found is not None and found.unread == {f"unreadable: {way_out}": ["b.txt.zst"]}
    with pytest.raises(InputError, match=way_out):
        list(documents(str(tmp_path / "b.txt.zst")))


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_folder_of_the_command(name: str):
    with pytest.raises(InputError, match="the name of a source is empty"):
        find(name)


def test_a_pipe_is_named(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: neither a file nor a folder"):
        find(str(tmp_path / "pipe"))


def test_ten_names_are_given_and_the_others_counted(tmp_path: Path):
    write(tmp_path, {"a.txt": b"read"} | {f"{n:02}.dat": b"x" for n in range(13)})
    (tmp_path / os.fsdecode(b"00\xe9\n.dat")).write_bytes(b"x")
    (note,) = unread_notes([str(tmp_path)])
    names = ["00.dat", r"00\udce9\n.dat", *(f"{n:02}.dat" for n in range(1, 9))]
    found = "1 files are read; not read: 14 of unknown kind"
    assert note == f"{tmp_path}: {found} ({', '.join(names)} and 4 more)"
    assert note.isprintable()


def test_a_folder_without_any_text_names_what_it_holds(tmp_path: Path):
    write(tmp_path, {"a.pdf": b"x", ".b.txt": b"x"})
    with pytest.raises(InputError, match=r"no file .*1 hidden \(\.b\.txt\), .*\(a\.pdf\)"):
        find(str(tmp_path))


def test_text_files_hold_no_rows(tmp_path: Path):
    write(tmp_path, {"a.jsonl": line("x"), "README.md": b"# About", "b.txt": b"x"})
    assert unread(tmp_path) == {"text, not rows": ["README.md", "b.txt"]}


@pytest.mark.parametrize(
    ("content", "tool", "way_out"),
    [
        (LFS_POINTER, "Git LFS", "git lfs pull"),
        (b"/annex/objects/MD5E-s9\n", "git-annex", "git annex get"),
    ],
    ids=["git-lfs", "git-annex"],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.csv.zst", "a.parquet"])
def test_a_file_that_was_not_fetched_is_refused(
    tmp_path: Path, name: str, content: bytes, tool: str, way_out: str
):
    write(tmp_path, {name: content, "whole.txt": b"x"})
    with pytest.raises(InputError, match=rf"1 of 2 files hold a {tool} .*\({name}\).*{way_out}"):
        texts(tmp_path)
    with pytest.raises(InputError, match=way_out):
        texts(tmp_path / name)


def test_a_saved_data_set_is_read_as_it_was_saved(tmp_path: Path):
    rows = [{"text": f"text {n}"} for n in range(5)]
    saved = Dataset.from_list(rows)
    saved.select([3, 1]).save_to_disk(tmp_path / "one")
    write(tmp_path, {"one/cache-1.arrow": b"of another kind"})
    assert texts(tmp_path / "one") == ["text 3", "text 1"]
    assert unread(tmp_path / "one") == {
        "of a cache": ["cache-1.arrow"],
        "about the data": ["dataset_info.json", "state.json"],
    }


def test_of_saved_splits_one_is_read_and_the_others_are_named(tmp_path: Path):
    parts = {name: Dataset.from_list([{"text": name}]) for name in ("train", "validation")}
    DatasetDict(parts).save_to_disk(tmp_path / "two")
    assert texts(tmp_path / "two") == ["train"]
    assert unread(tmp_path / "two")["of another split"] == ["validation/"]
    found = split_rows(str(tmp_path / "two"), split="val", columns=("text",))
    assert [row for _, row in found] == [{"text": "validation"}]
    DatasetDict(test=parts["train"], other=parts["train"]).save_to_disk(tmp_path / "odd")
    with pytest.raises(InputError, match=r"odd: no split 'train', only test, other"):
        texts(tmp_path / "odd")


def test_the_kinds_of_version_0_1_0_are_told_from_the_new_ones(tmp_path: Path):
    write(tmp_path, {"a.txt": b"x", "b/c.jsonl.gz": gzip.compress(line("x")), ".h.txt": b"x"})
    assert read_as_earlier(str(tmp_path))
    write(tmp_path, {"d.md": b"x"})
    assert not read_as_earlier(str(tmp_path))
