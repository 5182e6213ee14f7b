"""Orbax behind one door: save without stopping the run, restore nothing unverified, fall back when a disk lied.

    checkpoints/<step>/params   the weights alone, so that sampling and finetuning need not read the optimizer
    checkpoints/<step>/rest     step number and optimizer state
    checkpoints/<step>/meta     JSON: model, tokenizer, configuration, and shape, dtype and checksum of every array

Orbax commits a folder by renaming it and does not checksum what is inside; both facts shape this file. So does a third:
with several processes, all must take the same checkpoint, and none may wait for another that has met an error.
"""

import hashlib
import json
import logging
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore

from minigpt_jax.errors import InputError, RunError
from minigpt_jax.model import GPT, GPTConfig
from minigpt_jax.runs import checkpoint_steps
from minigpt_jax.runtime.distributed import (
    all_agree,
    barrier,
    broadcast_from_main,
    is_main_process,
)
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.step import TrainState
from minigpt_jax.tokenizer import load_tokenizer

FORMAT = 1


class Checkpoints:
    """The checkpoints of one run, opened by its trainer; temporary files of dead processes are removed."""

    def __init__(self, run: Path, *, keep: int):
        self.run, self.keep = run, keep
        self.folder = (run / "checkpoints").absolute()
        self._writer, self._saved = _orbax(), False
        if is_main_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            for entry in self.folder.iterdir():
                if ".orbax-checkpoint-tmp" in entry.name or entry.name.startswith("deleting-"):
                    shutil.rmtree(entry, ignore_errors=True)
        barrier("checkpoints opened")

    def clear(self) -> None:
        """Delete all of them: the run begins anew."""
        for step in reversed(checkpoint_steps(self.run)) if is_main_process() else ():
            self._delete(step)
        barrier("checkpoints cleared")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Where the run ends in an error, finish what is being written: it may be the last good state."""
        if error is not None:
            with suppress(RunError):  # the first error tells more
                self.wait()

    def save(self, state: TrainState, step: int, meta: dict) -> None:
        """Copy the state off the devices and write it in the background. Raises RunError if the save before it failed."""
        self.wait()
        failpoint("before_save", step)
        self._delete_old()
        meta = sealed(
            {
                "format": FORMAT,
                "step": step,
                "tokenizer": load_tokenizer().hash,
                "arrays": describe(state),
            }
            | meta
        )
        rest = {"step": state.step, "opt_state": state.opt_state}
        items = _Items(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(rest),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            # A checkpoint of this very step can exist and be damaged: what is being written is known to be good.
            self._writer.save(self.folder / str(step), args=items, force=True)
            self._saved = True
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        failpoint("during_write", step)

    def wait(self) -> None:
        """Block until the last save is committed. Raises RunError if it is not."""
        try:
            self._writer.wait_until_finished()
        except Exception as error:  # whatever the writing thread met
            raise self._failed(error) from error

    def restore(
        self, abstract: TrainState, config: GPTConfig, accept: Callable[[dict], None]
    ) -> tuple[TrainState, dict] | None:
        """Newest checkpoint that verifies on every process, and its meta; None for a run without any.

        Damaged ones are named on stderr and passed over. `accept` sees the meta before any array is read and may raise
        InputError. Raises InputError for another architecture and RunError if all are damaged: never a silent new start.
        """
        steps = broadcast_from_main(checkpoint_steps(self.run))
        for step in reversed(steps):
            state = meta = error = None
            try:
                meta = read_meta(self.run, step)
                _check_architecture(self.run, meta, config)
                accept(meta)
                _check_arrays(self.run, meta, abstract)
                params, rest = (
                    _read(self.run, step, item, target)
                    for item, target in (
                        ("params", abstract.params),
                        ("rest", {"step": abstract.step, "opt_state": abstract.opt_state}),
                    )
                )
                state = TrainState(rest["step"], params, rest["opt_state"])
                failpoint("during_restore", step)
            except InputError:
                raise
            except (
                Exception
            ) as found:  # Orbax and its storage layers raise dozens of types for a damaged file
                error = found
            if not all_agree(error is None):
                _warn(self.run, step, error or "another process could not read it")
                continue
            assert state is not None and meta is not None
            try:
                verify(meta, state)
                failpoint("during_verify", step)
            except (OSError, ValueError) as found:
                error = found
            if not all_agree(error is None):  # each has read its own copy of what is not cut up
                _warn(self.run, step, error or "another process read it otherwise")
                continue
            self._set_newer_aside(step)
            return state, meta
        if steps:
            raise RunError(
                f"{self.run}: none of {len(steps)} checkpoints can be used; nothing was changed. To start anew: --config.fresh=True"
            )
        return None

    def close(self) -> None:
        """Wait for the last save and release Orbax's threads."""
        self.wait()
        self._delete_old()
        self._writer.close()

    def _delete_old(self) -> None:
        if not is_main_process():
            return
        steps = checkpoint_steps(self.run)
        losses = {step: _validation_loss(self.run, step) for step in steps}
        for step in steps[: -self.keep]:
            if losses[step] == math.inf or losses[step] > min(losses.values()):
                self._delete(step)
        for entry in self.folder.glob("damaged-*") if self._saved else ():
            shutil.rmtree(entry, ignore_errors=True)

    def _set_newer_aside(self, step: int) -> None:
        """What could not be used would count among the newest to keep. It goes when another checkpoint has taken its place."""
        for newer in checkpoint_steps(self.run):
            if newer > step and is_main_process():
                aside = self.folder / f"damaged-{newer}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(newer)).rename(aside)

    def _delete(self, step: int) -> None:
        # Renamed first, so that a kill during the deletion leaves nothing that looks like a checkpoint.
        doomed = self.folder / f"deleting-{step}"
        (self.folder / str(step)).rename(doomed)
        failpoint("during_delete", step)
        shutil.rmtree(
            doomed, ignore_errors=True
        )  # somebody may be reading it; the next start removes the rest

    def _failed(self, error: Exception) -> RunError:
        steps = checkpoint_steps(self.run)
        for _ in range(
            10
        ):  # other threads of Orbax may still be writing there: gone once is not gone
            for entry in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(entry, ignore_errors=True)
            time.sleep(0.05)
        newest = f"step {steps[-1]} stands" if steps else "no checkpoint stands"
        return RunError(
            f"{self.folder}: a checkpoint could not be written ({_brief(error)}); {newest}. Free space, then run the same command again"
        )


def load_params(
    run: Path, sharding: jax.sharding.Sharding | None = None
) -> tuple[dict, GPTConfig, dict]:
    """Weights, their config and the checkpoint's meta from the newest checkpoint of `run` that verifies.

    `sharding` is that of every array; default: all on the first device.
    Raises InputError where there is no usable checkpoint.
    """
    for step in reversed(checkpoint_steps(run)):
        try:
            meta = read_meta(run, step)
            config = GPTConfig(**meta["model"])
            params = _read(
                run,
                step,
                "params",
                abstract_params(
                    config, sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
                ),
            )
            verify(meta, {"params": params})
        except InputError:
            raise
        except (
            Exception
        ) as error:  # Orbax and its storage layers raise dozens of types for a damaged file
            _warn(run, step, error)
            continue
        return params, config, meta
    raise InputError(
        f"{run}: no usable checkpoint in {run / 'checkpoints'}: train a run first, or name another folder"
    )


def abstract_params(config: GPTConfig, sharding: jax.sharding.Sharding) -> dict:
    """Shapes and dtypes of the weights of `config`, all with the same sharding."""
    shapes = nn.unbox(
        jax.eval_shape(
            lambda: GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        )
    )
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)


def sealed(meta: dict) -> dict:
    """`meta` with the SHA-256 of its own content: a flipped digit in it would be believed otherwise."""
    return meta | {"seal": hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()}


def read_meta(run: Path, step: int) -> dict:
    """The JSON of a checkpoint. Raises ValueError where it changed since, InputError if another version wrote it."""
    # Read by hand: Orbax would wait for all processes, and one alone may want to know.
    meta = json.loads((run / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    if (
        meta["seal"]
        != sealed({name: value for name, value in meta.items() if name != "seal"})["seal"]
    ):
        raise ValueError("its meta data changed after they were written")
    if meta["format"] != FORMAT:
        raise InputError(
            f"{run}: checkpoint {step} has format {meta['format']}, expected {FORMAT}: use the version that wrote it"
        )
    if meta["tokenizer"] != load_tokenizer().hash:
        raise InputError(
            f"{run}: checkpoint {step} was trained with another tokenizer ({meta['tokenizer'][:12]})"
        )
    return meta


def describe(tree) -> dict[str, dict]:
    """Shape, dtype and checksum of every array, by path.

    The checksum is the sum over all elements of (bits as uint32) x (an odd number that names the position), modulo
    2^32: any single flipped bit changes it, and neither sharding nor process count does.
    """
    sums = jax.device_get(_checksums(jax.tree.leaves(tree)))
    return {
        path: entry | {"checksum": int(s)}
        for (path, entry), s in zip(_forms(tree).items(), sums, strict=True)
    }


def verify(meta: dict, tree) -> None:
    """Compare restored arrays with what was saved. Raises ValueError naming the first that differs or is not finite."""
    for path, entry in describe(tree).items():
        saved = meta["arrays"].get(path)
        if saved != entry:
            raise ValueError(f"array {path}: found {entry}, saved was {saved}")
    finite = jax.device_get(_finite(jax.tree.leaves(tree)))
    for path, good in zip(_forms(tree), finite, strict=True):
        if not good:
            raise ValueError(f"array {path}: holds values that are not finite")


def _forms(tree) -> dict[str, dict]:
    """Shape and dtype of every array, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): {
            "shape": list(a.shape),
            "dtype": a.dtype.name,
        }
        for path, a in leaves
    }


@jax.jit
def _finite(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(array).all() for array in arrays]


@jax.jit
def _checksums(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(array) for array in arrays]


def _checksum(array: jax.Array) -> jax.Array:
    width = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(array, width).astype(jnp.uint32)
    position, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        position = position + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(
            stride % 2**32
        )
        stride *= array.shape[axis]
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)


def _validation_loss(run: Path, step: int) -> float:
    """What was measured at a checkpoint; infinity where nothing was, or where it cannot be read."""
    try:
        loss = read_meta(run, step)["validation_loss"]
    except (OSError, ValueError, KeyError, InputError):
        return math.inf
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _read(run: Path, step: int, item: str, target):
    """Arrays of one item of a checkpoint, placed like `target`."""
    _be_quiet()
    # The handler by itself: around it, Orbax's Checkpointer waits for all processes, for ever when one met an error.
    handler = ocp.StandardCheckpointHandler()
    folder = (run / "checkpoints" / str(step) / item).absolute()
    try:
        return handler.restore(folder, args=ocp.args.StandardRestore(target))  # pyright: ignore[reportArgumentType]
    finally:
        handler.close()


def _check_architecture(run: Path, meta: dict, config: GPTConfig) -> None:
    # A field that the checkpoint lacks has its default, which does what earlier versions did.
    saved, wanted = asdict(GPTConfig(**meta["model"])), asdict(config)
    differing = [
        f"{name} {value} -> {wanted[name]}"
        for name, value in saved.items()
        if value != wanted[name]
    ]
    if differing:
        raise InputError(
            f"{run}: its checkpoints hold another model ({', '.join(differing)}): choose another name, or set these back"
        )


def _be_quiet() -> None:
    """Orbax explains every save as a warning, and a full disk or a damaged file in pages; errors reach us, and through us the user in a line."""
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    sys.unraisablehook = _but_orbax


def _but_orbax(unraisable) -> None:
    """When one read or write fails, Orbax closes the event loop that the others were on: what they still say helps nobody."""
    code = getattr(unraisable.object, "cr_code", None)
    files = [code.co_filename] if code else []
    files += [frame.filename for frame in traceback.extract_tb(unraisable.exc_traceback)]
    if not any("orbax" in file or "asyncio" in file for file in files):
        sys.__unraisablehook__(unraisable)


def _check_arrays(run: Path, meta: dict, abstract: TrainState) -> None:
    saved = {
        path: {"shape": entry["shape"], "dtype": entry["dtype"]}
        for path, entry in meta["arrays"].items()
    }
    wanted = _forms(abstract)
    differing = [
        f"{path}: {_in_words(saved.get(path))} -> {_in_words(wanted.get(path))}"
        for path in wanted | saved
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{run}: its checkpoints hold other arrays ({'; '.join(differing[:3])}{more}): choose another name, or set them back"
        )


def _in_words(entry: dict | None) -> str:
    return f"{entry['dtype']}{entry['shape']}" if entry else "none"


class _Handler(ocp.CompositeCheckpointHandler):
    """Orbax's own, with a point where a test may stop between the last byte and the renaming."""

    def finalize(self, directory) -> None:
        super().finalize(directory)
        failpoint("before_commit", int(directory.name.partition(".")[0]))


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
class _Items(ocp.args.Composite):
    """What `_Handler` saves; Orbax pairs the two by their types."""


def _orbax() -> ocp.AsyncCheckpointer:
    _be_quiet()
    # Orbax asks for statistics at every save that nobody reads here, and answering them makes TensorStore leak (docs/log.md).
    tensorstore.experimental_collect_matching_metrics = lambda *_: []
    # Folders made in the background would leave threads waiting for them for minutes where a full disk forbids them.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    # OCDBT, Orbax's default, packs arrays into few files and leaks 16 KB with each (docs/log.md); fifty folders need no packing.
    handlers: Any = {
        item: ocp.StandardCheckpointHandler(use_ocdbt=False) for item in ("params", "rest")
    }
    return ocp.AsyncCheckpointer(
        _Handler(**handlers, meta=ocp.JsonCheckpointHandler()), async_options=options
    )


def _warn(run: Path, step: int, error: object) -> None:
    print(
        f"warning: {run}: checkpoint {step} is damaged ({_brief(error)}); trying the one before",
        file=sys.stderr,
    )


def _brief(error: object) -> str:
    """What happened, in a line: storage layers write pages, with the cause on top or below a headline of theirs."""
    if "No space left" in str(error):
        return "no space left on device"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return next((line for line in lines if "rror" in line), lines[0])[:300]
