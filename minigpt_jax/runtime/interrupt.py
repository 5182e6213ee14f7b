"""Turn SIGTERM and Ctrl-C into "finish the step, save, print how to continue".

A second signal ends the process immediately. Imports no JAX, because train.py installs the
handlers before anything slow: a machine may be taken away while the program is still loading.
"""

import os
import signal
import sys
import threading
from contextlib import suppress

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """`requested` is True from the first signal on.

    A thread reads the signals, because Python runs its own handlers only after the current C call
    has returned, and a compilation is one.
    """

    def __init__(self):
        self.requested = False
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # For every signal Python writes its number into the pipe.
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
            self._print(b"\nstopped immediately; the last checkpoint is complete\n")
            os._exit(128 + number)
        self.requested = True
        self._print(b"\nfinishing this step, then saving (once more: stop immediately)\n")

    def _print(self, text: bytes) -> None:
        # The terminal may have been closed.
        with suppress(OSError):
            os.write(sys.stderr.fileno(), text)
