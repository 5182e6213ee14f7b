"""Tokenise the i-th n-th of the source files, so that n machines can share the work.

They need nothing in common but a folder, and no order: see parts.py. A part that is there is not
made again, and a process that is killed leaves none.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict
from itertools import accumulate, islice, pairwise
from pathlib import Path

from data_tools.encoders import Encoded, cores, encode_all, make_batches
from data_tools.fast_tokenizer import FastTokenizer
from data_tools.folder_lock import make_folder
from data_tools.parts import (
    PartRecord,
    PartSource,
    find_parts,
    part_path,
    read_record,
    write_part,
)
from data_tools.progress_bar import ProgressBar
from data_tools.recipe import Recipe, expect_outside_sources
from data_tools.summary import RowCounts, print_line, print_skipped
from minigpt_jax.errors import InputError, RunError, os_error_text
from minigpt_jax.sources import (
    FileTime,
    file_contents,
    find,
    folder_name,
    hub_identity,
    name_some,
    names_and_sizes,
    times,
    unread_notes,
)

_AGAIN = "the same command makes this part again"


def make_part(
    recipe: Recipe,
    folder: Path,
    index: int,
    of: int,
    *,
    workers: int | None = None,
    fast_tokenizer: FastTokenizer | None = None,
) -> None:
    """Write part `index` (from 0) of `of` to `folder`, unless it is there.

    Prints a summary. Raises InputError for a source that cannot be read, that contains `folder` or
    that changes meanwhile, and for parts of other text. Raises RunError for a full disk, a killed
    worker or a failed connection to the Hub.
    """
    expect_outside_sources(folder, "--parts", recipe.sources)
    for note in unread_notes(recipe.sources):
        print(note, flush=True)
    files = _files_of_part(recipe, index, of)
    before = _times(recipe, files)
    plan = recipe.describe_as([_plan_of(source, recipe) for source in recipe.sources])
    _expect_parts_of(folder, of, plan)
    sources = [
        _part_source(source, recipe, numbers)
        for source, numbers in zip(recipe.sources, files, strict=True)
    ]
    path = part_path(folder, index, of)
    make_folder(folder)
    if path.exists():
        _explain_present(path, plan, sources)
        return
    counts = RowCounts()

    def record(batches: int, tokens: int) -> PartRecord:
        changed = {time.path for time in {*before} ^ {*_times(recipe, files)}}
        if changed:
            names = name_some(sorted(changed))
            raise InputError(f"{names}: changed while the text was read: {_AGAIN}")
        return PartRecord(
            index=index,
            of=of,
            plan=plan,
            recipe=asdict(recipe),
            sources=sources,
            documents=counts.documents,
            skipped=dict(counts.skipped),
            named=dict(counts.named),
            batches=batches,
            tokens=tokens,
        )

    # Which documents are the first of all is known when the parts are joined.
    texts = islice(counts.usable(recipe.read_documents(files)), recipe.limit)
    batches = make_batches(enumerate(texts))
    try:
        with closing(encode_all(batches, workers or cores(), fast_tokenizer)) as encoded:
            write_part(path, _counted(encoded, counts), record)
    except BrokenProcessPool:
        raise RunError(f"{path}: a worker process was killed (out of memory?): {_AGAIN}") from None
    except OSError as error:
        raise RunError(f"{os_error_text(error)}; {_AGAIN}") from None
    print_line("files", f"{sum(map(len, files)):,}")
    print_line("documents", f"{counts.documents:,}")
    print_skipped(counts)
    print_line("written to", path)


def _expect_parts_of(folder: Path, of: int, plan: str) -> None:
    """Raises InputError where the folder holds parts of another number, or of another plan."""
    present = find_parts(folder) if folder.is_dir() else {}
    others = sorted({other for _, other in present} - {of})
    if others:
        raise InputError(
            f"{folder}: holds parts of {others[0]}, now requested is a part of {of}: "
            "choose another --parts, or delete it"
        )
    for path in islice(present.values(), 1):
        _expect_plan(path, read_record(path), plan)


def _expect_plan(path: Path, found: PartRecord, plan: str) -> None:
    """Raises InputError for a part of another text or other options."""
    if found.plan != plan:
        raise InputError(
            f"{path}: made from [{found.plan}], now requested is [{plan}]: "
            "choose another --parts, or delete it"
        )


def _files_of_part(recipe: Recipe, index: int, of: int) -> list[range]:
    """The numbers of the files of each source that belong to the part: neighbours, in order."""
    bounds = list(accumulate(recipe.count_files(), initial=0))
    first, stop = (bounds[-1] * part // of for part in (index, index + 1))
    return [
        range(min(max(first - start, 0), end - start), min(max(stop - start, 0), end - start))
        for start, end in pairwise(bounds)
    ]


def _plan_of(source: str, recipe: Recipe) -> str:
    """What can be said of a source without reading all of its files."""
    found = find(source)
    return hub_identity(source, recipe.name) if found is None else names_and_sizes(source, found)


def _part_source(source: str, recipe: Recipe, files: range) -> PartSource:
    found = find(source)
    if found is None:
        return PartSource(hub_identity(source, recipe.name), None)
    own = found.files[files.start : files.stop]
    return PartSource(folder_name(source), file_contents(source, own))


def _times(recipe: Recipe, files: list[range]) -> list[FileTime]:
    """The state of the local files of a part."""
    return [
        time
        for source, own in zip(recipe.sources, files, strict=True)
        for time in times(source)[own.start : own.stop]
    ]


def _explain_present(path: Path, plan: str, sources: list[PartSource]) -> None:
    """Say that there is nothing to do. Raises InputError for a part of something else."""
    found = read_record(path)
    _expect_plan(path, found, plan)
    if found.sources != sources:
        raise InputError(f"{path}: the text has changed since it was made: delete it")
    print(f"{path}: done before, from the same text")


def _counted(encoded: Iterable[Encoded], counts: RowCounts) -> Iterator[Encoded]:
    """The batches; shows a progress bar."""
    with ProgressBar("tok") as bar:
        for batch in encoded:
            counts.documents += len(batch.numbers)
            bar.advance(len(batch.tokens))
            yield batch
