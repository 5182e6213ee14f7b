"""Turn SIGTERM and Ctrl-C into "finish the step, save, say how to go on"; a second one ends the process at once.

Imports no JAX, because train.py installs it before anything slow: a preempted machine may be told during start-up.
"""

import os
import signal
import sys
import threading
from contextlib import suppress


class Interrupt:
    """`requested` becomes True with the first signal. A thread watches for signals, since Python's own handlers have to
    wait for a running C call, and a compilation is one."""

    def __init__(self):
        self.requested = False
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the wake-up byte says it all
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def _watch(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 16):
                if number not in (signal.SIGTERM, signal.SIGINT):
                    continue
                if self.requested:
                    self._say(b"\nstopped at once; the last checkpoint stands\n")
                    os._exit(128 + number)
                self.requested = True
                self._say(b"\nfinishing this step, then saving (again: stop at once)\n")

    def _say(self, text: bytes) -> None:
        with suppress(OSError):  # a terminal that was closed
            os.write(sys.stderr.fileno(), text)
