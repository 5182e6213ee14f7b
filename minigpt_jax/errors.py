"""Errors that end a program with one clear line and an exit code instead of a traceback.

Exit codes: 0 done, 1 the work failed (a full disk, a diverged run), 2 the input was wrong (a flag,
a file, a row).
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

T = TypeVar("T")


class InputError(Exception):
    """The input cannot be used: what was found, what was expected, what to do."""


class RunError(Exception):
    """The input was right but the work failed: what is safe, and how to continue."""


class EvaluationStopped(Exception):
    """An evaluation ended early because the run was asked to stop; its results are incomplete."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def exit_on_error(work: Callable[[], T], *, hard: bool = False) -> T:
    """What `work` returns; on a known error, the end of the program with one line on stderr.

    `hard` is for training. A closed stdout is then a failure, and the process ends without waiting
    for Orbax's threads or for the other processes, which notice that it is gone.
    """
    try:
        result = work()
        sys.stdout.flush()
        return result
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:
        # The reader of a pipe (head, say) has closed it. Python would report the closed pipe once
        # more when it flushes stdout at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = int(hard)
    except OSError as error:  # a full disk, a folder without permission
        print(f"failed: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except Exception:
        if not hard:
            raise
        traceback.print_exc()
        code = 1
    if hard:
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def exit_cleanly(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as a whole program. Its result is the exit code."""
    sys.exit(exit_on_error(main))
