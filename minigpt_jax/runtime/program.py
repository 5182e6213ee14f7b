"""How every command begins and ends: with usable streams, in one line, whatever happens.

Imports little, and more within functions: Ctrl-C is a traceback until `begin_program` is called.
"""

import os
import signal
import sys

from minigpt_jax.errors import InputError, RunError, machine_fault, on_one_line
from minigpt_jax.runtime.ctrl_c import INTERRUPTED, CtrlC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, TypeVar

    T = TypeVar("T")


def begin_program(*, output_needed: bool = False) -> None:
    """Handle Ctrl-C, and make the standard streams safe to use.

    The first statement of every command but train.py, which saves at Ctrl-C (see preflight.py).
    `output_needed`: what the command prints is its result, so it fails where that cannot be
    written. Other commands go on without a console.
    """
    CtrlC().install()
    if os.getpid() == 1:
        # As the first process of a container: the kernel drops what such a one does not handle.
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    from minigpt_jax.runtime.standard_streams import prepare_streams

    prepare_streams(output_needed=output_needed)


def exit_on_error(work: "Callable[[], T]", *, hard: bool = False) -> "T":
    """What `work` returns; on a known error, the end of the program with one line on stderr.

    `hard` is for training: the process then ends without waiting for Orbax's threads or for the
    other processes, which notice that it is gone.
    """
    ctrl_c = signal.getsignal(signal.SIGINT)
    if not isinstance(ctrl_c, CtrlC):
        ctrl_c = CtrlC()
    try:
        try:
            ctrl_c.working = True
            result = work()
            sys.stdout.flush()
            return result
        finally:
            ctrl_c.working = False
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = INTERRUPTED if ctrl_c.pressed else _report(error)
        if code is None:
            if not hard:
                raise
            # Imported here, because it is hardly ever needed.
            import traceback

            traceback.print_exc()
            code = 1
    if code == INTERRUPTED:
        print("\ninterrupted", file=sys.stderr)
    if hard:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _report(error: Exception) -> int | None:
    """Print a known error; returns the exit code, None for an unknown error."""
    from minigpt_jax.runtime.standard_streams import STANDARD_OUTPUT

    if isinstance(error, InputError):
        print(f"error: {on_one_line(str(error))}", file=sys.stderr)
        return 2
    if isinstance(error, BrokenPipeError) and error.filename == STANDARD_OUTPUT:
        # The reader (head, say) has seen enough.
        return 0
    text = str(error) if isinstance(error, RunError) else machine_fault(error)
    if text is None:
        return None
    print(f"failed: {on_one_line(text)}", file=sys.stderr)
    return 1


def exit_cleanly(main: "Callable[[], int | None]") -> "NoReturn":
    """Run `main` as a whole program. Its result is the exit code."""
    sys.exit(exit_on_error(main))
