"""Processes that call a function for the threads of this one, and whose death is always noticed.

concurrent.futures.ProcessPoolExecutor waits for ever where a process is killed while it sends a
result: all its processes write to one pipe, whose end stays open. Here each has a pipe of its own.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any


class WorkerProcesses:
    """A process for each thread that calls, started at its first call. Ctrl-C does not end them."""

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function
        # "spawn": a copy of a process with threads could wait for ever for a lock.
        self._context = multiprocessing.get_context("spawn")
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self._processes: list[Any] = []
        self._is_ended = False

    def call(self, argument: Any) -> Any:
        """`function(argument)`, in the process of this thread.

        Raises what the function raises, and BrokenProcessPool where the process was killed.
        """
        if not hasattr(self._of_thread, "connection"):
            self._of_thread.connection = self._start()
        connection: Connection = self._of_thread.connection
        try:
            connection.send(argument)
            is_result, value = connection.recv()
        except (EOFError, OSError) as error:
            raise BrokenProcessPool("a worker process was killed") from error
        if not is_result:
            raise value
        return value

    def end(self) -> None:
        """Kill the processes; a thread that waits for one gets BrokenProcessPool."""
        with self._lock:
            self._is_ended = True
            for process in self._processes:
                process.kill()
            for process in self._processes:
                process.join()

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        with self._lock:
            if self._is_ended:
                raise BrokenProcessPool("the worker processes have ended")
            process = self._context.Process(
                target=_answer, args=(theirs, self._function), daemon=True
            )
            # multiprocessing starts its tracker with the first process, and then ends the mask.
            resource_tracker.ensure_running()
            # Inherited by the process. One that only ignored Ctrl-C after its start could be ended
            # by it before.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            process.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._processes.append(process)
        # Now only the process has that end, which its death closes.
        theirs.close()
        return ours


def _answer(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Reply to each argument with (True, result) or (False, exception), until there is none."""
    # During a call the pipe is not read.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # A parent that ends, or is killed, closes its end of the pipe.
    with suppress(EOFError, ConnectionError):
        while True:
            argument = connection.recv()
            try:
                reply = (True, function(argument))
            except Exception as error:
                reply = (False, error)
            connection.send(reply)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
