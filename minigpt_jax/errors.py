"""Turn every foreseeable problem into one clear line and an exit code, so that no user ever reads a traceback of ours.

Exit codes: 0 done, 1 the work failed (a full disk, a diverged run), 2 the input was wrong (a flag, a file, a row).
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(Exception):
    """What the user gave cannot be used; the message says what was found, what was expected and the remedy."""


class RunError(Exception):
    """The input was right and the work failed all the same; the message says what is safe and how to go on."""


def exit_cleanly(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` as a program: known errors become one line on stderr, a closed pipe and Ctrl-C stay silent."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:
        # The reader (head, say) has what it wanted. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"failed: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
