"""What a stream says while it has no text to send: proxies close connections that are silent."""

from minigpt_jax.server.responses import sse_comment

# How often a stream without text asks whether a comment is due, and how often a number may change.
POLL_SECONDS = 1.0
# With the time between two questions, ten seconds: proxies close connections after sixty.
_MAX_SILENCE_SECONDS = 9.0


class WaitingComments:
    """Decides when a stream sends which comment. Times are seconds of any one clock."""

    def __init__(self, now: float):
        self._last_sent = now
        self._last_number: int | None = None
        self._has_text = False

    def text_sent(self, now: float) -> None:
        """A part of the answer has been sent."""
        self._last_sent = now
        self._has_text = True

    def next(self, now: float, queue_position: int | None) -> bytes | None:
        """The comment that is due, if any.

        `queue_position`: answers that get a slot before; None if the request does not wait for one.
        """
        if now - self._last_sent < self._required_silence(queue_position):
            return None
        self._last_sent = now
        self._last_number = queue_position
        if queue_position is None:
            return sse_comment("working")
        return sse_comment(f"waiting, {queue_position} before you")

    def _required_silence(self, queue_position: int | None) -> float:
        """Seconds of silence after which a comment is due."""
        if self._has_text or queue_position in (None, self._last_number):
            return _MAX_SILENCE_SECONDS
        return 0.0 if self._last_number is None else POLL_SECONDS
