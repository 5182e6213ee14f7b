"""Worker processes return results and errors, and none that is killed is waited for."""

import multiprocessing
import os
import signal
import stat
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from data_tools.worker_processes import WorkerProcesses

DEADLINE = 60


def work(argument: object) -> object:
    """What the worker processes call."""
    if argument == "process id":
        return os.getpid()
    if argument == "wait":
        time.sleep(1000)
    if argument == "end":
        os.kill(os.getpid(), signal.SIGKILL)
    if argument == "end while sending":
        # The beginning of a message of a million bytes, on the pipe to the parent.
        pipe = next(fd for fd in range(3, 100) if is_socket(fd))
        os.write(pipe, struct.pack("!i", 1_000_000) + b"some of it")
        os.kill(os.getpid(), signal.SIGKILL)
    if argument == "fail":
        raise ValueError("no result")
    return argument


def is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


@pytest.fixture
def processes() -> Iterator[WorkerProcesses]:
    made = WorkerProcesses(work)
    yield made
    made.end()


def test_results_and_errors_come_back(processes):
    large = bytes(range(256)) * 10_000
    assert processes.call(large) == large
    with pytest.raises(ValueError, match="no result"):
        processes.call("fail")
    # The same process serves on.
    assert processes.call("process id") == processes.call("process id") != os.getpid()


@pytest.mark.parametrize("how", ["end", "end while sending"])
def test_a_killed_process_is_noticed(processes, how):
    with ThreadPoolExecutor(2) as threads:
        # Another process lives on, and must not hold an end of the pipe.
        living = threads.submit(processes.call, "wait")
        with pytest.raises(BrokenProcessPool):
            threads.submit(processes.call, how).result(DEADLINE)
        assert not living.done()
        processes.end()


def test_a_process_that_is_killed_from_outside_while_it_works(processes):
    pid = processes.call("process id")
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(BrokenProcessPool):
        processes.call("wait")


def test_ctrl_c_does_not_end_a_process_that_is_starting(processes):
    with ThreadPoolExecutor(1) as threads:
        pid = threads.submit(processes.call, "process id")
        while not (started := multiprocessing.active_children()):
            time.sleep(0.001)
        # The program has hardly begun to load.
        for process in started:
            os.kill(process.pid or 0, signal.SIGINT)
        assert pid.result(DEADLINE) == started[0].pid


def test_the_end_frees_a_thread_that_waits(processes):
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(processes.call, "wait")
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)
        processes.end()
        with pytest.raises(BrokenProcessPool):
            waiting.result(DEADLINE)
    with pytest.raises(BrokenProcessPool):
        processes.call("process id")
