"""Read the questions of an evaluation, from a file, a folder or the hub, each with a name by which a bad one is found.

The data tools read gigabytes and count what they must leave out; here are a few thousand rows, and one that cannot be
used would change the score, so it ends the program. No JAX: train.py asks before it loads it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt_jax.errors import InputError

SUFFIXES = (".parquet", ".jsonl", ".json")


def read(
    source: str, *, split: str, columns: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the row, row with at least `columns`) of a file, of the files of a folder, or of `split` of a hub data set.

    A `.json` file holds a list of rows, or splits that do; of a folder whose files are named after splits, those of `split`
    are read. "val" and "validation" are the same. Raises InputError.
    """
    for where, row in _all(source, split):
        if not isinstance(row, dict):
            raise InputError(
                f"{where}: found {type(row).__name__}, expected an object with {', '.join(columns)}"
            )
        if missing := [column for column in columns if column not in row]:
            raise InputError(
                f"{where}: no {' and no '.join(missing)} here, only {', '.join(row) or 'nothing'}"
            )
        yield where, row


def _all(source: str, split: str) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise InputError(f"{source}: no file in this folder ends in {', '.join(SUFFIXES)}")
        files = [p for p in files if _is(p.name, split)] or files
    elif path.is_file() and path.suffix in SUFFIXES:
        files = [path]
    elif path.is_file():
        raise InputError(
            f"{source}: unknown kind of file, expected one that ends in {', '.join(SUFFIXES)}"
        )
    elif source.endswith(SUFFIXES) or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise InputError(
            f"{source}: no such file or folder, nor the id of a hub data set (owner/name)"
        )
    else:
        yield from (
            (f"{source} row {number}", row) for number, row in enumerate(_of_hub(source, split), 1)
        )
        return
    for file in files:
        try:
            yield from _of_file(file, split)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{file}: cannot be read ({_first_line(error)}): fetch or write this file again"
            ) from None


def _of_file(file: Path, split: str) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".jsonl":
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
            try:
                if line.strip():
                    yield f"{file}:{number}", json.loads(line)
            except (ValueError, RecursionError):
                raise InputError(f"{file}:{number}: broken JSON") from None
        return
    if file.suffix == ".parquet":
        from pyarrow.parquet import (
            read_table,
        )  # train.py imports this file when it starts, and seldom has questions to read

        content = read_table(file).to_pylist()
    else:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict):
        content = next((rows for name, rows in content.items() if _is(name, split)), None)
    if not isinstance(content, list):
        raise InputError(f"{file}: expected a list of rows, or an object whose {split!r} is one")
    yield from ((f"{file} row {number}", row) for number, row in enumerate(content, 1))


def _of_hub(source: str, split: str) -> Iterator[Any]:
    from datasets import (
        get_dataset_split_names,
        load_dataset,
    )  # a second to import, and only the hub needs them

    try:
        name = next((name for name in get_dataset_split_names(source) if _is(name, split)), split)
        yield from load_dataset(source, split=name)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{source}: the hub does not give it out ({_first_line(error)}). Without the hub, name a local copy of its {split} split: "
            f"a file that ends in {', '.join(SUFFIXES)}, or a folder of them"
        ) from None


def _is(name: str, split: str) -> bool:
    """Whether a file, or a split of the hub, is named like `split`."""
    return name.lower().startswith(split[:3])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
