"""A container's limit counts where it is below the machine's memory."""

import os
from pathlib import Path

import pytest

from minigpt_jax.runtime.host_memory import host_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
LIMIT = 64_000_000
UNLIMITED_V1 = 2**63 - 4096


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"sys/fs/cgroup/memory.max": LIMIT}, LIMIT),
        ("0::/", {"sys/fs/cgroup/memory.max": "max"}, MACHINE),
        ("0::/", {"sys/fs/cgroup/memory.max": 10 * MACHINE}, MACHINE),
        ("0::/", {}, MACHINE),
        ("", {}, MACHINE),
        # A limit of the group, and one of the group around it.
        ("0::/jobs/one", {"sys/fs/cgroup/jobs/one/memory.max": LIMIT}, LIMIT),
        (
            "0::/jobs/one",
            {
                "sys/fs/cgroup/jobs/one/memory.max": "max",
                "sys/fs/cgroup/jobs/memory.max": LIMIT,
                "sys/fs/cgroup/other/memory.max": 1,
            },
            LIMIT,
        ),
        # The path outside of the container, of which only the top is mounted.
        ("0::/docker/0123", {"sys/fs/cgroup/memory.max": LIMIT}, LIMIT),
        (
            "12:cpu,cpuacct:/a\n7:memory:/a\n0::/",
            {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": LIMIT},
            LIMIT,
        ),
        ("7:memory:/a", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": UNLIMITED_V1}, MACHINE),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, groups: str, files: dict, expected: int):
    for name, content in {"proc/self/cgroup": groups, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    if not groups:
        (tmp_path / "proc/self/cgroup").unlink()
    assert host_bytes(tmp_path) == expected / 2
