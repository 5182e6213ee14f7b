"""Check a run's input before JAX is imported, so that a mistake is reported immediately.

This file imports only what loads in milliseconds. A cloud machine may be preempted while the slow
imports run, so the signal handlers must be installed before them.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minigpt_jax.runtime.interrupt import Interrupt
from minigpt_jax.runtime.program import exit_on_error
from minigpt_jax.runtime.standard_streams import prepare_streams

if TYPE_CHECKING:
    from minigpt_jax.config import Config
    from minigpt_jax.evals.hellaswag import Question
    from minigpt_jax.mixture import Source


class Preflight(NamedTuple):
    """The checked inputs of a run."""

    config: "Config"
    # The config fields that the command line sets.
    named_fields: frozenset[str]
    sources: "tuple[Source, ...]"
    questions: "Sequence[Question]"
    stop_requested: Callable[[], bool]


def preflight(argv: Sequence[str] | None = None) -> Preflight:
    """Install the signal handlers, then check the inputs (`argv`: sys.argv by default).

    Exits with code 2 and one line on stderr where an input cannot be used.
    """
    prepare_streams()
    interrupt = Interrupt()
    arguments = sys.argv if argv is None else argv
    checked = exit_on_error(lambda: check_inputs(arguments, lambda: interrupt.requested))
    interrupt.remark = lambda: newest_checkpoint(checked.config)
    return checked


def newest_checkpoint(c: "Config") -> str:
    """What to say of the run's checkpoints where it ends at once; "" if there is none."""
    from minigpt_jax.runs import checkpoint_steps, run_folder

    steps = checkpoint_steps(run_folder(Path(c.runs), c.name))
    return f"; the checkpoint of step {steps[-1]} is complete" if steps else ""


def _is_first_process() -> bool:
    """Whether this process will be the one that writes and pushes. JAX is not loaded yet."""
    from minigpt_jax.runtime.launcher import find_place

    place = find_place(os.environ)
    number = os.environ.get("JAX_PROCESS_ID") or (place.index if place else 0)
    return str(number) == "0"


def check_inputs(
    argv: Sequence[str], stop_requested: Callable[[], bool] = lambda: False
) -> Preflight:
    """Parse the flags, open the data, read the HellaSwag questions, look for the hub's token.

    Raises InputError.
    """
    # Imported here, so that the signal handlers are installed first.
    from minigpt_jax.config import named_fields, parse
    from minigpt_jax.evals import hellaswag
    from minigpt_jax.interop.hub import check_upload
    from minigpt_jax.mixture import open_sources, shares_of
    from minigpt_jax.tracking.tracker import require_tracker

    c = parse(argv)
    if c.log.tracker:
        require_tracker(c.log.tracker)
    if c.save.push and _is_first_process():
        check_upload(c.save.push)
    shares = shares_of(c.data.folder, c.data.mixture)
    sources = open_sources(
        shares, c.model.vocab_size, c.model.context, packed=c.data.isolate_documents
    )
    questions = []
    if c.eval.hellaswag and c.eval.hellaswag_every:
        questions = hellaswag.load(c.eval.hellaswag, c.model.context, c.eval.hellaswag_rows)
    return Preflight(c, named_fields(argv), sources, questions, stop_requested)
