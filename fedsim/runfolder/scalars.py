"""Curves for TensorBoard. Every round's are on disk when ``append`` returns, and no thread writes them later.

The library's own writer has such a thread, which meets a full disk with a traceback of its own.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.machine.files import about

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

FORMAT = "brain.Event:2"


class Scalars:
    """The event file of one start in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each named curve."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # late: slow to import
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        events = [Event(wall_time=time.time(), step=step, summary=summary)]
        if not self._path.exists():
            # What an earlier start logged from this step on is about to be logged again.
            again = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            events = [Event(wall_time=time.time(), file_version=FORMAT), again, *events]
        self._write(events)

    def _write(self, events: "list[Event]") -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter  # late, as above

        self._path.parent.mkdir(exist_ok=True)
        with about(self._path), self._path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())
