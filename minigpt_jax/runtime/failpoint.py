"""Named points at which a test lets the process or the machine fail, to prove that both are safe.

`MINIGPT_FAILPOINT="before_save@7:kill"` kills the process at the point `before_save` of step 7;
without `@7`, the first time it gets there. Actions: `kill` (SIGKILL, as the kernel does when memory
runs out), `term` (SIGTERM), `damage` (what a checksum that differs raises), and the name of any
error of the operating system, such as `enospc` (a full disk) or `eio`. Several points are separated
by commas. Without the variable a point costs one dictionary look-up.
"""

import errno
import os
import signal

from minigpt_jax.errors import DamageError


def failpoint(name: str, step: int | None = None) -> None:
    """Execute the action that MINIGPT_FAILPOINT gives for the point `name` (at `step`, if any)."""
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
        elif action == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif action == "damage":
            raise DamageError(f"failpoint {name}")
        elif action.upper() in errno.errorcode.values():
            number = getattr(errno, action.upper())
            raise OSError(number, f"{os.strerror(number)} (failpoint {name})")
        else:
            raise ValueError(
                f"MINIGPT_FAILPOINT: unknown action {action!r}, expected kill, term, damage or "
                "the name of an error, such as enospc"
            )
