"""Write the points of a run as event files for TensorBoard, through tensorboardX."""

import math
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

# Generated code, whose names no type checker can see.
Protocol: Any = event_pb2


class TensorBoardWriter:
    """Writes curves for TensorBoard to `folder`, from step `start` on.

    Earlier processes may have written points there. TensorBoard hides those from `start` on.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(exist_ok=True)
        # Not SummaryWriter, which has a thread and a queue: on a full disk the thread dies, and the
        # queue blocks for ever.
        self._file = EventsWriter(str(folder / "events"))
        session = Protocol.SessionLog(status=Protocol.SessionLog.START)
        self._file.write_event(
            Protocol.Event(wall_time=time.time(), step=start, session_log=session)
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve.

        Values that are not finite are skipped: TensorBoard cannot draw them.
        """
        for name, value in values.items():
            if math.isfinite(value):
                event = Protocol.Event(
                    wall_time=time.time(), step=step, summary=scalar(name, value)
                )
                self._file.write_event(event)
        # So that TensorBoard shows the point now, and a full disk is noticed here.
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
