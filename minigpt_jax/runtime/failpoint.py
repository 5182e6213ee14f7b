"""Name the instants at which a test may kill us or fill the disk, so that crash safety is proven rather than claimed.

`MINIGPT_FAILPOINT="before_save@7:kill"` kills the process at the point `before_save` of step 7; without `@7`, at its
first pass. Actions: `kill` (SIGKILL, as the kernel's OOM killer would), `term` (a polite SIGTERM) and `enospc` (the disk
is full). Several points are separated by commas. Without the variable a point costs one dictionary look-up.
"""

import errno
import os
import signal


def failpoint(name: str, step: int | None = None) -> None:
    """Do here what MINIGPT_FAILPOINT asks for the point `name` (at `step`, where the point has one)."""
    spec = os.environ.get("MINIGPT_FAILPOINT")
    if not spec:
        return
    for entry in spec.split(","):
        where, action = entry.split(":")
        point, _, at = where.partition("@")
        if point != name or (at and int(at) != step):
            continue
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "term":
            os.kill(os.getpid(), signal.SIGTERM)
            continue
        if action == "enospc":
            raise OSError(errno.ENOSPC, f"failpoint {name}: no space left on device")
        raise ValueError(f"MINIGPT_FAILPOINT: unknown action {action!r} (kill, term or enospc)")
