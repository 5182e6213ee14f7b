"""Set a flag at SIGTERM or Ctrl-C, so that a run can finish its step and save before it ends.

So do SIGHUP (the terminal was closed) and SIGUSR1 (which batch systems send before the time is up).
A later signal ends the process immediately. This module imports no JAX, because train.py installs
the handlers before any slow import: a machine may be preempted while the program is still loading.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# A signal so soon after the first is the same request: make, uv run, timeout and a terminal signal
# the whole process group, and then pass their own signal on.
SAME_REQUEST_SECONDS = 2


class Interrupt:
    """`requested` becomes True at the first signal.

    A signal that is ignored when the program starts (by nohup, or for a shell's background job)
    stays ignored.

    A thread reads the signals, because Python runs signal handlers only between two bytecodes of
    the main thread: during a long compilation, none would run.
    """

    def __init__(self):
        self.requested = False
        self._requested_at = 0.0
        reader, writer = os.pipe()
        # Required by set_wakeup_fd.
        os.set_blocking(writer, False)
        # Python writes the number of each signal into the pipe. A full pipe needs no warning: a few
        # signals are all that matter.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                # Without a handler the signal would end the process.
                signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def _watch(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 16):
                if number in SIGNALS:
                    self._handle(number)

    def _handle(self, number: int) -> None:
        now = time.monotonic()
        if self.requested:
            if now - self._requested_at < SAME_REQUEST_SECONDS:
                return
            self._print(b"\nstopped immediately; the last checkpoint, if any, is complete\n")
            # sys.exit would end only this thread. A shell also reports 128 + the signal's number.
            os._exit(128 + number)
        self._requested_at = now
        self.requested = True
        self._print(
            b"\nfinishing this step, then saving (again in 2 s or later: stop immediately)\n"
        )

    def _print(self, text: bytes) -> None:
        # The terminal may have been closed.
        with suppress(OSError):
            os.write(sys.stderr.fileno(), text)
