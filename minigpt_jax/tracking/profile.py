"""A trace of a few training steps for TensorBoard's profiler."""

from pathlib import Path

import jax

# Steps of this process: the first ones compile.
FIRST_STEP = 5
LAST_STEP = 15


class Profile:
    """Traces ten steps into `folder`, or nothing where `enabled` is False."""

    def __init__(self, folder: Path, *, enabled: bool):
        self.folder = folder
        self.enabled = enabled
        self._tracing = False

    def after_step(self, steps: int) -> None:
        """Start or stop the trace; this process has dispatched `steps` steps before this one."""
        if self.enabled and steps == FIRST_STEP:
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True
        if steps == LAST_STEP:
            self.close()

    def close(self) -> None:
        """Write what was traced so far."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
