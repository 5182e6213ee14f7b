"""Set a flag at SIGTERM or Ctrl-C, so that a run can finish its step and save before it ends.

Importing this takes milliseconds, because train.py installs the handlers before any slow import: a
machine may be preempted while the program is still loading.
"""

import os
import signal
import threading
import time
from collections.abc import Callable

from minigpt_jax.runtime.ctrl_c import SAME_REQUEST_SECONDS, ignore_at_exit, print_now

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


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
        ignore_at_exit(*handled)
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
            print_now(f"\n{self._doing} ({later})\n")
        elif now - self._requested_at >= SAME_REQUEST_SECONDS:
            try:
                print_now(f"\nstopped immediately{self.remark()}\n")
            finally:
                # sys.exit would end only this thread. A shell also reports 128 + the number.
                os._exit(128 + number)
