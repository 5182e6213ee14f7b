"""Set a flag at SIGTERM or Ctrl-C, so that a run can finish its step and save before it ends.

A second signal ends the process immediately. This module imports no JAX, because train.py installs
the handlers before any slow import: a machine may be preempted while the program is still loading.
"""

import os
import signal
import sys
import threading
from contextlib import suppress

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """`requested` becomes True at the first signal.

    A thread reads the signals, because Python runs signal handlers only between two bytecodes of
    the main thread: during a long compilation, none would run.
    """

    def __init__(self):
        self.requested = False
        reader, writer = os.pipe()
        # Required by set_wakeup_fd.
        os.set_blocking(writer, False)
        # Python writes the number of each signal into the pipe. A full pipe needs no warning: two
        # signals are all that matter.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            # Without a handler the signal would end the process.
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def _watch(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 16):
                if number in SIGNALS:
                    self._handle(number)

    def _handle(self, number: int) -> None:
        if self.requested:
            self._print(b"\nstopped immediately; the last checkpoint, if any, is complete\n")
            # sys.exit would end only this thread. A shell also reports 128 + the signal's number.
            os._exit(128 + number)
        self.requested = True
        self._print(b"\nfinishing this step, then saving (once more: stop immediately)\n")

    def _print(self, text: bytes) -> None:
        # The terminal may have been closed.
        with suppress(OSError):
            os.write(sys.stderr.fileno(), text)
