"""How many tokens a block decodes: as many as fit the time after which text should be sent."""

from minigpt_jax.decoding import BLOCK

# A new request waits up to this long even if a slot is free, and text is sent this often.
TARGET_BLOCK_SECONDS = 0.1
# Weight of the newest block in the moving average of the seconds per token.
_AVERAGE_WEIGHT = 0.2


class Pace:
    """A moving average of the seconds that a token of a block takes."""

    def __init__(self, target_seconds: float):
        """`target_seconds`: how long a block should take."""
        self._target_seconds = target_seconds
        # 0 before the first measurement.
        self.seconds_per_token = 0.0

    def block_length(self, needed: int) -> int:
        """As many tokens as fit the target time, and no more than `needed`."""
        if not self.seconds_per_token:
            return 1
        affordable = int(self._target_seconds / self.seconds_per_token)
        return max(1, min(BLOCK, needed, affordable))

    def update(self, seconds_per_token: float) -> None:
        """Add the measurement of a block."""
        weight = _AVERAGE_WEIGHT if self.seconds_per_token else 1.0
        self.seconds_per_token += weight * (seconds_per_token - self.seconds_per_token)
