"""The checkpoints of a run: save while it trains, verify what is read, fall back if damaged.

    checkpoints/<step>/params   the weights alone, so that sampling need not read the optimizer
    checkpoints/<step>/rest     step number and optimizer state
    checkpoints/<step>/meta     JSON: model, tokenizer, config, and the fingerprint of every array

Orbax commits a folder by renaming it and has no checksums: this file adds them. With several
processes all must take the same checkpoint, and none may wait for another that has met an error.
"""

import math
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from minigpt_jax import orbax_io
from minigpt_jax.architectures import make_model
from minigpt_jax.checkpoint_meta import (
    FORMAT,
    check_architecture,
    check_arrays,
    read_meta,
    reads,
    validation_loss,
    with_checksum,
)
from minigpt_jax.errors import DamageError, InputError, RunError
from minigpt_jax.fingerprints import array_fingerprints, verify_arrays
from minigpt_jax.model_config import GPTConfig
from minigpt_jax.runs import checkpoint_steps, lock_owner
from minigpt_jax.runtime.backend import start_jax
from minigpt_jax.runtime.distributed import (
    all_agree,
    barrier,
    broadcast_from_main,
    is_main_process,
)
from minigpt_jax.runtime.failpoint import failpoint
from minigpt_jax.step import TrainState
from minigpt_jax.tokenizer import load_tokenizer

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run, opened by its trainer.

    Opening removes temporary files of dead processes.
    """

    def __init__(self, run: Path, *, keep: int):
        self.run = run
        self.keep = keep
        self.folder = (run / "checkpoints").absolute()
        self._writer = orbax_io.Writer()
        self._has_saved = False
        if is_main_process():
            self.folder.mkdir(parents=True, exist_ok=True)
            for entry in self.folder.iterdir():
                if orbax_io.TEMPORARY_MARK in entry.name or entry.name.startswith("deleting-"):
                    shutil.rmtree(entry, ignore_errors=True)
        barrier("checkpoints opened")

    def set_aside(self) -> None:
        """Rename all checkpoints to replaced-<step>, for a run that starts again from step 0.

        They are deleted once another checkpoint has been saved: until then nothing is lost.
        """
        if is_main_process():
            for step in reversed(checkpoint_steps(self.run)):
                self._rename(step, f"replaced-{step}")
        barrier("checkpoints set aside")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """If the run ends with an error, finish the last save: it may be the last good state."""
        if error is not None:
            # If the save failed too, the first error is the one to report.
            with suppress(RunError):
                self.wait()

    def save(self, state: TrainState, step: int, meta: dict) -> None:
        """Copy the state off the devices and write it in the background.

        Raises RunError if the previous save failed.
        """
        self.wait()
        failpoint("before_save", step)
        if is_main_process() and self._is_moved():
            raise RunError(
                f"{self.run}: was moved or deleted while the run went on. Nothing is saved in its "
                "place, where another trainer could begin: run the command for the new place"
            )
        self._delete_old()
        own = {
            "format": FORMAT,
            "step": step,
            "tokenizer": load_tokenizer().hash,
            "arrays": array_fingerprints(state),
        }
        try:
            # Replaces a checkpoint of this very step, which is then a damaged one.
            self._writer.save(
                self.folder / str(step),
                params=state.params,
                rest={"step": state.step, "opt_state": state.opt_state},
                meta=with_checksum(own | meta),
            )
            self._has_saved = True
        except (OSError, ValueError) as error:
            raise self._save_error(error) from error
        failpoint("during_write", step)

    def _is_moved(self) -> bool:
        """Whether the run's folder is gone, or is another one that another trainer has locked."""
        return not self.folder.is_dir() or lock_owner(self.run) not in ("", str(os.getpid()))

    def wait(self) -> None:
        """Block until the last save is committed. Raises RunError if it failed."""
        try:
            self._writer.wait()
        # The writing thread may have met an error of any type.
        except Exception as error:
            raise self._save_error(error) from error

    def restore(
        self, abstract: TrainState, config: GPTConfig, accept: Callable[[dict], None]
    ) -> tuple[TrainState, dict] | None:
        """The newest checkpoint that verifies on every process, and its meta; None without any.

        Damaged ones are named on stderr and skipped. `accept` gets the meta before any array is
        read, and may raise InputError. Raises InputError for another architecture, and RunError if
        all are damaged or one cannot be read: a run never starts again without being told to, and
        never passes over a checkpoint that may be good.
        """
        steps = broadcast_from_main(checkpoint_steps(self.run))
        for step in reversed(steps):
            restored = self._restore_step(step, abstract, config, accept)
            if restored:
                self._set_newer_aside(step)
                return restored
        if steps:
            raise RunError(
                f"{self.run}: none of {len(steps)} checkpoints can be used; nothing was changed. "
                "To start again from step 0: --config.fresh=True"
            )
        return None

    def close(self) -> None:
        """Wait for the last save and release Orbax's threads."""
        self.wait()
        self._delete_old()
        self._writer.close()

    def _restore_step(
        self, step: int, abstract: TrainState, config: GPTConfig, accept: Callable[[dict], None]
    ) -> tuple[TrainState, dict] | None:
        """One checkpoint and its meta; None if any process finds it damaged."""

        def read() -> tuple[TrainState, dict]:
            restored = self._read(step, abstract, config, accept)
            failpoint("during_restore", step)
            return restored

        def verify() -> bool:
            verify_arrays(state, meta["arrays"])
            failpoint("during_verify", step)
            return True

        restored = self._on_all_processes(step, read)
        if not restored:
            return None
        state, meta = restored
        # Checksums are computed by all processes together, so all of them must have read it. Each
        # has read its own copy of replicated arrays, so their results can differ.
        return restored if self._on_all_processes(step, verify) else None

    def _on_all_processes(self, step: int, work: Callable[[], T]) -> T | None:
        """The result of `work`; None, with a warning, if any process finds the checkpoint damaged.

        If anything else prevents the work, every process raises an error: the checkpoint may be
        good, and must not be passed over.
        """
        result = error = None
        try:
            with reads(self.run, step):
                result = work()
        except Exception as found:
            error = found
        damaged = isinstance(error, DamageError)
        if not all_agree(error is None or damaged):
            if error and not damaged:
                raise error
            raise RunError(
                f"{self.run}: another process cannot read checkpoint {step}, and says why; "
                "nothing was changed"
            )
        if not all_agree(error is None):
            _warn_damaged(self.run, step, error or "another process found that")
            return None
        return result

    def _read(
        self, step: int, abstract: TrainState, config: GPTConfig, accept: Callable[[dict], None]
    ) -> tuple[TrainState, dict]:
        meta = read_meta(self.run, step)
        check_architecture(self.run, meta, config)
        accept(meta)
        check_arrays(self.run, meta, abstract)
        folder = self.folder / str(step)
        params = orbax_io.read_arrays(folder / "params", abstract.params)
        rest = orbax_io.read_arrays(
            folder / "rest", {"step": abstract.step, "opt_state": abstract.opt_state}
        )
        return TrainState(rest["step"], params, rest["opt_state"]), meta

    def _delete_old(self) -> None:
        """Delete all but the `keep` newest checkpoints and the one with the lowest loss."""
        if not is_main_process():
            return
        steps = checkpoint_steps(self.run)
        losses = {step: validation_loss(self.run, step) for step in steps}
        lowest = min((loss for loss in losses.values() if loss is not None), default=math.inf)
        for step in steps[: -self.keep]:
            loss = losses[step]
            # One that cannot be read now may be the best.
            if loss is not None and (loss == math.inf or loss > lowest):
                self._delete(step)
        if self._has_saved:
            for entry in (*self.folder.glob("damaged-*"), *self.folder.glob("replaced-*")):
                shutil.rmtree(entry, ignore_errors=True)

    def _set_newer_aside(self, step: int) -> None:
        """Rename the damaged checkpoints after `step`, which would count among the newest to keep.

        They are deleted once another checkpoint has been saved.
        """
        if not is_main_process():
            return
        for newer in checkpoint_steps(self.run):
            if newer > step:
                self._rename(newer, f"damaged-{newer}")

    def _rename(self, step: int, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / str(step)).rename(self.folder / name)

    def _delete(self, step: int) -> None:
        # Renamed first: a kill during the deletion leaves nothing that looks like a checkpoint.
        renamed = self.folder / f"deleting-{step}"
        (self.folder / str(step)).rename(renamed)
        failpoint("during_delete", step)
        # Another program may be reading it: what cannot be removed, the next start removes.
        shutil.rmtree(renamed, ignore_errors=True)

    def _save_error(self, error: Exception) -> RunError:
        orbax_io.remove_temporary_folders(self.folder)
        steps = checkpoint_steps(self.run)
        newest = f"step {steps[-1]} is safe" if steps else "no checkpoint exists"
        cause = orbax_io.error_text(error)
        way_out = "Free space" if "no space left" in cause else "Correct this"
        return RunError(
            f"{self.folder}: a checkpoint could not be written ({cause}); "
            f"{newest}. {way_out}, then run the same command again (without --config.fresh)"
        )


def load_params(
    run: Path, sharding: jax.sharding.Sharding | None = None
) -> tuple[dict, GPTConfig, dict]:
    """Weights, their config and the checkpoint's meta, from the newest checkpoint that verifies.

    `sharding` is that of every array; default: all on the first device. Damaged checkpoints are
    named on stderr and skipped. Raises InputError if no checkpoint can be used, RunError if one
    cannot be read, and what `start_jax` raises.
    """
    start_jax()
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    tried: set[int] = set()
    # Listed again each time: a trainer may have saved and removed some in the meantime.
    while untried := [step for step in checkpoint_steps(run) if step not in tried]:
        step = untried[-1]
        tried.add(step)
        try:
            meta = read_meta(run, step)
            config = GPTConfig(**meta["model"])
            abstract = abstract_params(config, sharding)
            check_arrays(run, meta, {"params": abstract}, only="params/")
            with reads(run, step):
                params = orbax_io.read_arrays(run / "checkpoints" / str(step) / "params", abstract)
            verify_arrays({"params": params}, meta["arrays"])
        except DamageError as error:
            if step in checkpoint_steps(run):
                _warn_damaged(run, step, error)
            continue
        return params, config, meta
    raise InputError(
        f"{run}: no usable checkpoint in {run / 'checkpoints'}: train a run first, "
        "or name another folder"
    )


def abstract_params(config: GPTConfig, sharding: jax.sharding.Sharding) -> dict:
    """Shapes and dtypes of the weights of `config`, all with the same sharding."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(lambda: make_model(config).init(jax.random.key(0), tokens))
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        nn.unbox(variables["params"]),
    )


def _warn_damaged(run: Path, step: int, error: object) -> None:
    print(
        f"warning: {run}: checkpoint {step} is damaged ({orbax_io.error_text(error)}); "
        "trying the one before",
        file=sys.stderr,
    )
