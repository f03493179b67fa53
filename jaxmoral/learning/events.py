"""Training metrics as TensorBoard events.

A module of its own: tensorboardX takes torch along where that is installed, which takes seconds.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter


class Events:
    """An event file for the updates after `start`; later ones that are in the folder go."""

    def __init__(self, folder: Path, start: int):
        folder.mkdir(exist_ok=True)
        for path in folder.glob("events.out.tfevents.*"):
            number = path.name.rpartition(".")[2]
            if number.isdecimal() and int(number) >= start:
                path.unlink()
        # tensorboardX's own writer is a thread, which would die unheard on a full disk.
        self._writer = RecordWriter(str(folder / f"events.out.tfevents.{start:010d}"))
        self._write(file_version="brain.Event:2")
        self._write(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def append(self, record: dict) -> None:
        """One event for all scalars: an event each would take longer than a small update."""
        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in _scalars(record)]
        self._write(step=record["update"], summary=Summary(value=values))

    def flush(self) -> None:
        """Hands what was appended to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write(Event(wall_time=time.time(), **content).SerializeToString())


def _scalars(record: dict, group: str = "") -> Iterator[tuple[str, float]]:
    """What TensorBoard shows: every number, of a population the members' mean."""
    for name, value in record.items():
        tag = group + name.replace("|", "_after_")
        if isinstance(value, dict):
            yield from _scalars(value, tag + "/")
        elif name != "conditions":
            yield tag, float(np.mean(value))
