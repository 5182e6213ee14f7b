"""Check a run's input before JAX is imported, so that a mistake is reported immediately.

This file imports only what loads in milliseconds. A cloud machine may be preempted while the slow
imports run, so the signal handlers must be installed before them.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from minigpt_jax.errors import exit_on_error
from minigpt_jax.runtime.interrupt import Interrupt

if TYPE_CHECKING:
    from minigpt_jax.config import Config
    from minigpt_jax.evals.hellaswag import Question
    from minigpt_jax.token_stream import Stream


class Preflight(NamedTuple):
    """The checked inputs of a run."""

    config: "Config"
    # The config fields that the command line sets.
    named_fields: frozenset[str]
    train_stream: "Stream"
    val_stream: "Stream"
    questions: "Sequence[Question]"
    stop_requested: Callable[[], bool]


def preflight(argv: Sequence[str] | None = None) -> Preflight:
    """Install the signal handlers and check the inputs (`argv`: sys.argv by default).

    Exits with code 2 and one line on stderr where an input cannot be used.
    """
    interrupt = Interrupt()
    arguments = sys.argv if argv is None else argv
    return exit_on_error(lambda: check_inputs(arguments, lambda: interrupt.requested))


def check_inputs(
    argv: Sequence[str], stop_requested: Callable[[], bool] = lambda: False
) -> Preflight:
    """Parse the flags, open the data and read the HellaSwag questions. Raises InputError."""
    # Imported here, so that the signal handlers are installed first.
    from minigpt_jax.config import named_fields, parse
    from minigpt_jax.evals import hellaswag
    from minigpt_jax.token_stream import open_splits

    c = parse(argv)
    train_stream, val_stream = open_splits(
        c.data.folder, c.model.vocab_size, c.model.context, packed=c.data.isolate_documents
    )
    questions = []
    if c.eval.hellaswag and c.eval.hellaswag_every:
        questions = hellaswag.load(c.eval.hellaswag, c.model.context, c.eval.hellaswag_rows)
    return Preflight(c, named_fields(argv), train_stream, val_stream, questions, stop_requested)
