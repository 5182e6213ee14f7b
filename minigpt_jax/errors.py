"""Turn every foreseeable problem into one clear line and an exit code, so that no user ever reads a traceback of ours.

Exit codes: 0 done, 1 the work failed (a full disk, a diverged run), 2 the input was wrong (a flag, a file, a row).
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

T = TypeVar("T")


class InputError(Exception):
    """What the user gave cannot be used; the message says what was found, what was expected and the remedy."""


class RunError(Exception):
    """The input was right and the work failed all the same; the message says what is safe and how to go on."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def exit_on_error(work: Callable[[], T], *, hard: bool = False) -> T:
    """What `work` returns, or the end of the program: known errors say one line on stderr, a closed pipe and Ctrl-C none.

    `hard` is for a trainer: it has not done its work where nobody reads what it says, and when it fails, neither its
    threads nor the processes beside it may hold it back with a farewell. They notice that it has gone.
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
        # The reader (head, say) has what it wanted. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = int(hard)
    except OSError as error:  # a full disk, a folder that may not be written
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
    """Run `main` as a whole program; what it returns is the exit code."""
    sys.exit(exit_on_error(main))
