"""Find the files of a local source, and say of every other file there why it is not read.

A folder is read with its subfolders, and with what its links lead to; each real folder and each
real file once.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from minigpt_jax.errors import InputError
from minigpt_jax.sources.kinds import (
    DAMAGE,
    KINDS,
    cause_of,
    endings,
    is_compressed,
    kind_of,
    open_file,
)
from minigpt_jax.sources.row import name_some

# Small files that stand for a large one which was not fetched, and what fetches it.
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("Git LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}
_LARGEST_POINTER = 1024
# What `datasets` writes beside the rows of a data set.
_SAVED_SPLITS = "dataset_dict.json"
_STATE = "state.json"
_ABOUT = (_SAVED_SPLITS, _STATE, "dataset_info.json", "dataset_infos.json")


@dataclass
class Found:
    """The files of a source, sorted by name, and the names of all others by reason.

    `folders` are the real paths of the folders that were searched, `real_files` those of the files.
    """

    files: list[Path] = field(default_factory=list)
    unread: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    folders: set[Path] = field(default_factory=set)
    real_files: set[Path] = field(default_factory=set)

    def describe_unread(self) -> str:
        """The files that are not read, in one line; empty where there are none."""
        return ", ".join(
            f"{len(names):,} {reason} ({name_some(sorted(names))})"
            for reason, names in sorted(self.unread.items())
        )


def find(source: str, kinds: tuple[str, ...] = KINDS, *, split: str = "train") -> Found | None:
    """The files of a local source. None where `source` can only be a Hub id.

    Of a data set that was saved with several splits, only `split` is read. Raises InputError where
    there is nothing to read, and for files whose content was not fetched.
    """
    if not source.strip():
        # Path("") is the folder of the command: a shell variable without a value would mean that.
        raise InputError("the name of a source is empty, expected a file, a folder or a Hub id")
    path = Path(source)
    if path.is_dir():
        found = Found()
        _search(path, path, found, kinds, split)
        found.files.sort(key=lambda file: file.relative_to(path).as_posix())
        _expect_fetched(source, found.files)
        if not found.files:
            unread = found.describe_unread()
            raise InputError(
                f"{source}: no file in this folder ends in {endings(kinds)}"
                + (f"; not read: {unread}" if unread else "")
            )
        return found
    if path.is_file():
        if kind_of(path.name) not in kinds:
            raise InputError(
                f"{source}: unknown kind of file, expected one that ends in {endings(kinds)}"
            )
        if not path.stat().st_size:
            raise InputError(f"{source}: empty, expected text or rows")
        _expect_fetched(source, [path])
        return Found([path])
    if path.exists():
        # A pipe, such as /dev/stdin, can be read once only.
        raise InputError(f"{source}: neither a file nor a folder: write its content into a file")
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    if is_path or kind_of(source) or path.is_symlink():
        raise no_such_source(source)
    return None


def no_such_source(source: str) -> InputError:
    """The error for a source that exists neither here nor on the Hub."""
    return InputError(
        f"{source}: no such file or folder, and not the id of a Hub data set (owner/name)"
    )


def is_split(name: str, split: str) -> bool:
    """Whether a file or a split of this name belongs to `split`: "val" is also "validation-0"."""
    return name.lower().startswith(split[:3])


def _search(root: Path, folder: Path, found: Found, kinds: tuple[str, ...], split: str) -> None:
    """Add the content of `folder`, which lies below `root`, to `found`."""
    real = folder.resolve()
    if real in found.folders:
        found.unread["reached by another path"].append(f"{folder.relative_to(root).as_posix()}/")
        return
    found.folders.add(real)
    chosen = _saved_split(folder, split)
    saved = _saved_files(folder)
    for path in sorted(folder.iterdir()):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            if path.name.startswith("."):
                found.unread["hidden"].append(f"{name}/")
            elif chosen is not None and path.name != chosen:
                found.unread["of another split"].append(f"{name}/")
            else:
                _search(root, path, found, kinds, split)
        elif reason := _why_unread(path, kinds):
            found.unread[reason].append(name)
        elif saved is not None and path.suffix == ".arrow" and path.name not in saved:
            found.unread["of a cache"].append(name)
        elif (real := path.resolve()) in found.real_files:
            found.unread["reached by another path"].append(name)
        else:
            found.real_files.add(real)
            found.files.append(path)


def _saved_split(folder: Path, split: str) -> str | None:
    """The subfolder that holds the rows of `split`; None where `datasets` did not save splits."""
    try:
        splits = json.loads((folder / _SAVED_SPLITS).read_bytes())["splits"]
        named = [str(name) for name in splits]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    chosen = [name for name in named if is_split(name, split)] or named
    if len(chosen) != 1 and split not in chosen:
        raise InputError(
            f"{folder}: no split {split!r}, only {name_some(named)}: name the folder of one"
        )
    return split if split in chosen else chosen[0]


def _saved_files(folder: Path) -> set[str] | None:
    """The files of a saved data set, whose folder may also hold caches of `datasets`; None: all."""
    try:
        state = json.loads((folder / _STATE).read_bytes())
        return {file["filename"] for file in state["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _why_unread(path: Path, kinds: tuple[str, ...]) -> str | None:
    """Why a file of a folder is not read; None for one that is."""
    if path.name.startswith("."):
        return "hidden"
    if not path.exists():
        return "a link to nothing"
    kind = kind_of(path.name)
    if kind is None or not path.is_file():
        return "a link that was copied as text" if _is_copied_link(path) else "of unknown kind"
    if kind not in kinds:
        return "text, not rows"
    if not path.stat().st_size:
        return "empty"
    if path.name in _ABOUT or (path.name == "README.md" and _is_card(path)):
        return "about the data"
    if is_compressed(path) and not _pointer_of(path):
        try:
            with open_file(path) as file:
                return None if file.read(1) else "empty"
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno:
                raise
            return f"unreadable: {cause_of(error)}"
    return None


def _is_copied_link(path: Path) -> bool:
    """Whether a file holds the path of another one, as git writes links where there are none."""
    # A file without permission, or a name that is too long.
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= _LARGEST_POINTER:
            target = os.fsdecode(path.read_bytes())
            return "/" in target and target.isprintable() and (path.parent / target).exists()
    return False


def _is_card(path: Path) -> bool:
    """Whether a README.md describes a data set of the Hub: these begin with a block of fields."""
    with path.open("rb") as file:
        return file.readline().rstrip() == b"---"


def _pointer_of(path: Path) -> tuple[str, str] | None:
    """For a file that stands for a large one: what wrote it, and the command that fetches."""
    if path.stat().st_size > _LARGEST_POINTER:
        return None
    with path.open("rb") as file:
        start = file.read(_LARGEST_POINTER)
    return next((tool for mark, tool in _POINTERS.items() if start.startswith(mark)), None)


def _expect_fetched(source: str, files: Sequence[Path]) -> None:
    pointers = [(file.name, tool) for file in files if (tool := _pointer_of(file))]
    if pointers:
        (tool, command) = pointers[0][1]
        raise InputError(
            f"{source}: {len(pointers)} of {len(files)} files hold a {tool} pointer, not the data "
            f"({name_some([name for name, _ in pointers])}): run `{command}` in the folder"
        )


def unread_notes(sources: Sequence[str], kinds: tuple[str, ...] = KINDS) -> Iterator[str]:
    """A line for each local source that holds files which are not read."""
    for source in sources:
        found = find(source, kinds)
        if found is not None and found.unread:
            files = f"{len(found.files):,} files are read"
            yield f"{source}: {files}; not read: {found.describe_unread()}"
