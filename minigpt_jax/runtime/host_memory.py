"""How much memory a run on a CPU may use, in a container too."""

import os
from collections.abc import Iterator
from pathlib import Path


def host_bytes(root: Path = Path("/")) -> float:
    """Bytes that a run on a CPU may use: half of the machine's memory, or of its container's.

    `root`: where /proc and /sys are.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_container_limits(root)]) / 2


def _container_limits(root: Path) -> Iterator[int]:
    """The limits on memory of the Linux control groups that hold this process, in bytes."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for group in groups:
        # "0::/group" in version 2, "7:memory:/group" in version 1.
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            top, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inner = top / path.lstrip("/")
        # A group is also held to the limits of those around it. Inside of a container the path may
        # be that outside of it, of which nothing is mounted but the top.
        for folder in (inner, *inner.parents):
            limit = folder / file
            if folder.is_relative_to(top) and limit.is_file():
                text = limit.read_text().strip()
                if text.isdecimal():  # not "max"
                    yield int(text)
