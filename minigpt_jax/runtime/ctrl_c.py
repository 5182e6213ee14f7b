"""What Ctrl-C does to a command that has nothing to save: it ends, with one line and code 130.

Until a command installs this handler, Ctrl-C ends it with a traceback. So this file imports only
what Python itself has loaded when it starts, or loads in a millisecond.
"""

import atexit
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

# A signal so soon after the first is the same request: make, uv run, timeout and a terminal signal
# the whole process group, and then pass their own signal on.
SAME_REQUEST_SECONDS = 2
# What a shell reports of a program that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT


class CtrlC:
    """The handler of Ctrl-C for a command that has nothing to save: exit code 130, no traceback.

    While the command works (`working`), the first press raises KeyboardInterrupt, so that it can
    clean up; `pressed` is True then. Before and after, and while a module is being imported, it
    ends the process: an exception would become a traceback there, or another exception. A press
    within SAME_REQUEST_SECONDS of the first is the same request, a later one ends the process.
    """

    def __init__(self):
        self.working = False
        self.pressed = False
        self._pressed_at = 0.0

    def install(self) -> None:
        """Handle Ctrl-C from now on, unless the program was started with Ctrl-C ignored."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return
        signal.signal(signal.SIGINT, self)
        ignore_at_exit(signal.SIGINT)
        sys.unraisablehook = _end_if_interrupted

    def __call__(self, number: int, frame: "FrameType | None") -> None:
        now = time.monotonic()
        if not self.pressed:
            self.pressed = True
            self._pressed_at = now
            if self.working and not _is_importing(frame):
                raise KeyboardInterrupt
            _end()
        elif now - self._pressed_at >= SAME_REQUEST_SECONDS:
            _end()


def _is_importing(frame: "FrameType | None") -> bool:
    """Whether `frame` runs for an import statement, which may turn an exception into another."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _end_if_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """For KeyboardInterrupt that Python would print and drop: raised in a __del__, for example."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _end()
    sys.__unraisablehook__(unraisable)


def _end() -> None:
    print_now("\ninterrupted\n")
    os._exit(INTERRUPTED)


def ignore_at_exit(*numbers: int) -> None:
    """Ignore the signals once all is done.

    Python gives them back their default action while it takes itself down, which would end a
    program that has succeeded with a failure.
    """

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    # What is registered first is called last.
    atexit.register(ignore)


def print_now(text: str) -> None:
    """Write to stderr as it is, because its buffer may be in use by what the signal interrupts."""
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    try:
        # A terminal or pipe that nobody reads would block.
        if select.select([], [2], [], 0)[1]:
            os.write(2, text.encode(encoding, "backslashreplace"))
    except OSError:
        # The terminal may have been closed.
        pass
