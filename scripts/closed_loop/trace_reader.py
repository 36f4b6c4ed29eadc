"""Readings out of the rig's own record (`sim/trace.py`) while it is being written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sim.rig import Reading
from sim.trace import Header, TraceError

__all__ = ["TraceError", "TraceReader"]

_TIP = ("tip_x", "tip_y", "tip_z")
_FIELDS = ("distance_mm", "lateral_mm", "depth_mm", "force_n", "tissue_mm")
_NEEDED = ("wall_time", "episode", *_TIP, *_FIELDS)


class TraceReader:
    """Gives the rows that were added since the last call; the times are the episode's own."""

    def __init__(self, path: Path) -> None:
        """Read the file from its start, once it is there."""
        self._path = path
        self._offset = 0
        self._rest = b""
        self._episode = -1
        self._began_at = 0.0
        self._header: Header | None = None

    def new(self) -> Iterator[tuple[int, Reading]]:
        """Episode and reading of each new row, in order; TraceError, OSError."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("ascii", "replace")
            if self._header is None:
                self._header = Header.of(self._path, text, _NEEDED)
            else:
                yield self._row(self._header, text)

    def _row(self, header: Header, line: str) -> tuple[int, Reading]:
        values = dict(zip(header.names, header.row(line), strict=True))
        at, episode = values["wall_time"], int(values["episode"])
        if episode != self._episode:
            self._episode, self._began_at = episode, at
        tip = np.array([values[name] for name in _TIP])
        named = {name: values[name] for name in _FIELDS}
        return episode, Reading(time_s=at - self._began_at, tip_mm=tip, **named)
