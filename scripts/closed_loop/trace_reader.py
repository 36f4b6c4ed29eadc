"""Readings out of the rig's own record (`sim/trace.py`) while it is being written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sim.rig import Reading
from sim.trace import COLUMNS

__all__ = ["TraceError", "TraceReader"]

_AT, _EPISODE = COLUMNS.index("wall_time"), COLUMNS.index("episode")
_TIP = [COLUMNS.index(name) for name in ("tip_x", "tip_y", "tip_z")]
_FIELDS = ("distance_mm", "lateral_mm", "depth_mm", "force_n", "tissue_mm")


class TraceError(ValueError):
    """A record that cannot be read; one line."""


class TraceReader:
    """Gives the rows that were added since the last call; the times are the episode's own."""

    def __init__(self, path: Path) -> None:
        """Read the file from its start, once it is there."""
        self._path = path
        self._offset = 0
        self._rest = b""
        self._episode = -1
        self._began_at = 0.0
        self._header_seen = False

    def new(self) -> Iterator[tuple[int, Reading]]:
        """Episode and reading of each new row, in order; TraceError, OSError."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("ascii", "replace")
            if self._header_seen:
                yield self._row(text)
            elif text != ",".join(COLUMNS):
                raise TraceError(f"{self._path}: not a record of the rig")
            else:
                self._header_seen = True

    def _row(self, line: str) -> tuple[int, Reading]:
        try:
            values = [float(cell) for cell in line.split(",")]
            at, episode = values[_AT], int(values[_EPISODE])
            named = {name: values[COLUMNS.index(name)] for name in _FIELDS}
        except (ValueError, IndexError):
            raise TraceError(f"{self._path}: broken line: {line[:80]}") from None
        if episode != self._episode:
            self._episode, self._began_at = episode, at
        tip = np.array([values[place] for place in _TIP])
        return episode, Reading(time_s=at - self._began_at, tip_mm=tip, **named)
