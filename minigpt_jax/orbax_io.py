"""All use of Orbax: saving, hiding its output on stderr, reading arrays, and short error texts.

Importing this module and reading arrays change nothing global. While a Writer is open, two loggers
are filtered, `sys.unraisablehook` is replaced and TensorStore's metrics are not collected.
"""

import logging
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore

from minigpt_jax.errors import DamageError, os_error_text
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.runtime.files import read_written

TEMPORARY_MARK = ".orbax-checkpoint-tmp"
# Arrays that are read at the same time.
MAX_READERS = 8


class _Handler(ocp.CompositeCheckpointHandler):
    """Orbax's handler, with a failpoint after the last byte and before the rename that commits."""

    def finalize(self, directory) -> None:
        super().finalize(directory)
        # The name of a temporary folder begins with the step and a dot.
        failpoint("before_commit", int(directory.name.partition(".")[0]))


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
class _Items(ocp.args.Composite):
    """What `_Handler` saves; Orbax pairs the two by their types."""


class Writer:
    """Writes checkpoint folders in the background, one at a time.

    Orbax's output is hidden until `close`. Do not close a writer that failed: its threads may
    report errors until the process ends, and these stay hidden.
    """

    def __init__(self):
        self._global_changes = ExitStack()
        self._global_changes.enter_context(hide_orbax_noise())
        self._global_changes.enter_context(_no_tensorstore_metrics())
        # Orbax's default, OCDBT, packs arrays into few files and leaks 16 KB with each save.
        handlers: Any = {
            item: ocp.StandardCheckpointHandler(use_ocdbt=False) for item in ("params", "rest")
        }
        handlers["meta"] = ocp.JsonCheckpointHandler()
        # Otherwise another thread creates the folders, and where a full disk prevents that, the
        # writing threads wait for them for minutes.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        self._orbax = ocp.AsyncCheckpointer(_Handler(**handlers), async_options=options)

    def save(self, folder: Path, *, params: Any, rest: Any, meta: dict) -> None:
        """Copy the arrays off the devices, then write `folder` in the background.

        Replaces an existing folder. Raises OSError or ValueError.
        """
        items = _Items(
            params=ocp.args.StandardSave(params),
            rest=ocp.args.StandardSave(rest),
            meta=ocp.args.JsonSave(meta),
        )
        self._orbax.save(folder, args=items, force=True)

    def wait(self) -> None:
        """Block until the last save is committed. Raises whatever stopped the writing thread."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Release Orbax's threads and undo the global changes."""
        self._orbax.close()
        self._global_changes.close()


def read_arrays(folder: Path, target: Any) -> Any:
    """The arrays of one item of a checkpoint, with the shapes, dtypes and shardings of `target`.

    Raises DamageError with a text of one line for lost files and for bytes that do not parse. What
    else prevents reading is raised as it is: OSError, which names the file, or an error of JAX.
    """
    # TensorStore parses the Zarr folders that Orbax wrote, one for each array. There are two
    # reasons not to use Orbax's restore. At its end it waits for all processes, forever if one of
    # them has met an error. And after one read has failed, the other reads still report on stderr.
    leaves, structure = jax.tree_util.tree_flatten_with_path(target)
    with ThreadPoolExecutor(MAX_READERS) as pool:
        arrays = list(pool.map(lambda leaf: _read_array(folder, *leaf), leaves))
    return jax.tree.unflatten(structure, arrays)


def _read_array(folder: Path, path: tuple, target: jax.ShapeDtypeStruct) -> jax.Array:
    folder = folder.absolute() / jax.tree_util.keystr(path, simple=True, separator=".")
    files = {"driver": "file", "path": f"{folder}/"}

    def read(index):
        try:
            return _open_zarr(files, tensorstore.Context(), target)[index].read().result()
        # TensorStore raises one type for a damaged file and for one without permission.
        except Exception:
            return _read_then_parse(folder, index, target)

    return jax.make_array_from_callback(target.shape, target.sharding, read)


def _read_then_parse(folder: Path, index: tuple[slice, ...], target: jax.ShapeDtypeStruct):
    """`array[index]`; an error says whether reading the bytes failed or parsing them.

    TensorStore parses them in memory, which holds them twice: for arrays that it could not read.
    """
    context = tensorstore.Context()
    memory = tensorstore.KvStore.open({"driver": "memory"}, context=context).result()
    memory[".zarray"] = read_written(folder / ".zarray")
    with _parse_errors(folder):
        array = _open_zarr({"driver": "memory"}, context, target)
    for name in _chunk_names(array, index):
        memory[name] = read_written(folder / name)
    with _parse_errors(folder):
        return array[index].read().result()


def _open_zarr(
    store: dict, context: tensorstore.Context, target: jax.ShapeDtypeStruct
) -> tensorstore.TensorStore:
    """The array in `store`. A wrong shape, dtype or chunk size raises ValueError."""
    # A lost chunk is an error: by default TensorStore reads it as zeros.
    spec = {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}
    array = tensorstore.open(
        spec, context=context, read=True, open=True, dtype=target.dtype.name, shape=target.shape
    ).result()
    chunk = _chunk_shape(array)
    # Larger ones would be allocated before their bytes are found to be too few.
    if any(of_chunk > size for of_chunk, size in zip(chunk, target.shape, strict=True)):
        raise ValueError(f"chunks of {chunk} in an array of {target.shape}")
    return array


def _chunk_shape(array: tensorstore.TensorStore) -> tuple[int, ...]:
    # Of a Zarr array every dimension has a chunk size.
    return tuple(size or 1 for size in array.chunk_layout.read_chunk.shape or ())


def _chunk_names(array: tensorstore.TensorStore, index: tuple[slice, ...]) -> Iterator[str]:
    """The files that hold `array[index]`."""
    blocks = []
    for part, size, of_chunk in zip(index, array.shape, _chunk_shape(array), strict=True):
        start, stop, _ = part.indices(size)
        blocks.append(range(start // of_chunk, -(-stop // of_chunk)))
    for block in product(*blocks):
        yield ".".join(map(str, block)) or "0"


@contextmanager
def _parse_errors(folder: Path) -> Iterator[None]:
    """Errors of TensorStore are DamageError: it parses bytes that have been read."""
    try:
        yield
    except MemoryError:
        raise
    # TensorStore raises several types.
    except Exception as error:
        raise DamageError(f"{folder}: {error_text(error)}") from error


@contextmanager
def hide_orbax_noise() -> Iterator[None]:
    """Hide what Orbax logs and what its closed event loops report; errors are still raised.

    Orbax logs a warning for every save, and many lines for a full disk or a damaged file.
    """

    def is_critical(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL

    def hook(unraisable) -> None:
        if not _comes_from_orbax(unraisable):
            previous_hook(unraisable)

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    previous_hook = sys.unraisablehook
    for logger in loggers:
        logger.addFilter(is_critical)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = previous_hook
        for logger in loggers:
            logger.removeFilter(is_critical)


def _comes_from_orbax(unraisable) -> bool:
    """Whether Orbax caused an error that Python could not raise.

    When one write fails, Orbax closes the event loop of the other writes, and each reports that.
    """
    code = getattr(unraisable.object, "cr_code", None)
    files = [frame.filename for frame in traceback.extract_tb(unraisable.exc_traceback)]
    if code:
        files.append(code.co_filename)
    return any("orbax" in file or "asyncio" in file for file in files)


@contextmanager
def _no_tensorstore_metrics() -> Iterator[None]:
    """Stop Orbax from collecting unused metrics: each save would leak 7.5 KB."""
    collect = tensorstore.experimental_collect_matching_metrics
    tensorstore.experimental_collect_matching_metrics = lambda *_: []
    try:
        yield
    finally:
        tensorstore.experimental_collect_matching_metrics = collect


def remove_temporary_folders(folder: Path) -> None:
    """Remove what a failed save left in `folder`.

    Orbax's other threads may still write there and create a folder again, so this is repeated for
    half a second.
    """
    for _ in range(10):
        for entry in folder.glob(f"*{TEMPORARY_MARK}*"):
            shutil.rmtree(entry, ignore_errors=True)
        time.sleep(0.05)


def error_text(error: object) -> str:
    """The cause of an error in one line: the storage libraries write many lines around it."""
    if "No space left" in str(error):
        return "no space left on device"
    # TensorStore puts it behind long paths.
    number = re.search(r"\[os_error_code='(\d+)'", str(error))
    if number:
        return os_error_text(OSError(int(number[1]), os.strerror(int(number[1]))))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    # "Error" and "error".
    return next((line for line in lines if "rror" in line), lines[0])[:300]
