"""What SIGTERM, Ctrl-C and their like do: a run saves first, other commands end with one line.

Importing this takes milliseconds, because every command installs a handler before its slow imports:
a machine may be preempted, or a user may press Ctrl-C, while the program is still loading.
"""

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# A signal so soon after the first is the same request: make, uv run, timeout and a terminal signal
# the whole process group, and then pass their own signal on.
SAME_REQUEST_SECONDS = 2
# What a shell reports of a program that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT


class Interrupt:
    """`requested` becomes True at the first signal; a later one ends the process immediately.

    SIGHUP says that the terminal was closed, SIGUSR1 is what batch systems send before the time is
    up. A signal that is ignored when the program starts (by nohup, or for a shell's background job)
    stays ignored. `doing` says what the program does after the first signal.

    A thread reads the signals, because Python runs signal handlers only between two bytecodes of
    the main thread: during a long compilation, none would run.
    """

    def __init__(self, doing: str = "finishing this step, then saving"):
        self.requested = False
        # What to add to the message of an immediate end; set it once there is something to say.
        self.remark: Callable[[], str] = lambda: ""
        self._doing = doing
        self._requested_at = 0.0
        reader, writer = os.pipe()
        # Required by set_wakeup_fd.
        os.set_blocking(writer, False)
        # Python writes the number of each signal into the pipe. A full pipe needs no warning: a few
        # signals are all that matter.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        for number in handled:
            # Without a handler the signal would end the process.
            signal.signal(number, lambda *_: None)
        _ignore_at_exit(*handled)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def _watch(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 16):
                if number in SIGNALS:
                    self._handle(number)

    def _handle(self, number: int) -> None:
        now = time.monotonic()
        if not self.requested:
            self._requested_at = now
            self.requested = True
            later = f"again in {SAME_REQUEST_SECONDS} s or later: stop immediately"
            _print(f"\n{self._doing} ({later})\n")
        elif now - self._requested_at >= SAME_REQUEST_SECONDS:
            try:
                _print(f"\nstopped immediately{self.remark()}\n")
            finally:
                # sys.exit would end only this thread. A shell also reports 128 + the number.
                os._exit(128 + number)


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
        _ignore_at_exit(signal.SIGINT)
        sys.unraisablehook = _end_if_interrupted

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.pressed:
            self.pressed = True
            self._pressed_at = now
            if self.working and not _is_importing(frame):
                raise KeyboardInterrupt
            _end()
        elif now - self._pressed_at >= SAME_REQUEST_SECONDS:
            _end()


def _is_importing(frame: FrameType | None) -> bool:
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
    _print("\ninterrupted\n")
    os._exit(INTERRUPTED)


def _ignore_at_exit(*numbers: int) -> None:
    """Ignore the signals once all is done.

    Python gives them back their default action while it takes itself down, which would end a
    program that has succeeded with a failure.
    """

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    # What is registered first is called last.
    atexit.register(ignore)


def _print(text: str) -> None:
    """Write to stderr as it is, because its buffer may be in use by what the signal interrupts."""
    encoded = text.encode(sys.stderr.encoding, "backslashreplace")
    # The terminal may have been closed.
    with suppress(OSError):
        # A terminal or pipe that nobody reads would block.
        if select.select([], [2], [], 0)[1]:
            os.write(2, encoded)
