"""The rig's own record of what happened, as CSV: the ground truth that no sender sees."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.rig import Reading

__all__ = ["COLUMNS", "Header", "Trace", "TraceError", "read_trace"]

COLUMNS = ("wall_time", *(f"j{i}" for i in range(1, 7)), "tip_x", "tip_y", "tip_z")
COLUMNS += ("distance_mm", "lateral_mm", "depth_mm", "force_n", "tissue_mm", "episode", "seed")

_RATE_HZ = 100.0
_FLUSH_S = 1.0


class Trace:
    """Writes a row every 10 ms, to the disk once a second."""

    def __init__(self, path: Path) -> None:
        """Start a file, with its header; raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # Buffered well beyond a second, so that only the flush writes.
        self._file = path.open("w", buffering=1 << 16, encoding="ascii")
        self._file.write(",".join(COLUMNS) + "\n")
        self._file.flush()
        self._row = -1
        self._flushed_at = 0.0

    def add(
        self,
        at: float,
        joints_deg: NDArray[np.float64],
        reading: Reading,
        episode: int,
        seed: int,
    ) -> None:
        """Take the state of one tick, in an episode with a layout's seed; written when it is due.

        `at` is wall time in seconds, `joints_deg` (6,).
        """
        row = int(at * _RATE_HZ)
        if row == self._row:
            return
        self._row = row
        joints = ",".join(f"{value:.5f}" for value in joints_deg)
        tip = ",".join(f"{value:.4f}" for value in reading.tip_mm)
        self._file.write(
            f"{at:.6f},{joints},{tip},{reading.distance_mm:.4f},{reading.lateral_mm:.4f},"
            f"{reading.depth_mm:.4f},{reading.force_n:.5f},{reading.tissue_mm:.4f},"
            f"{episode},{seed}\n"
        )
        if at - self._flushed_at >= _FLUSH_S:
            self._file.flush()
            self._flushed_at = at

    def close(self) -> None:
        """Write what is left; safe to call twice."""
        self._file.close()


class TraceError(ValueError):
    """A record that cannot be read; one line."""


@dataclass(frozen=True, slots=True)
class Header:
    """The names of a record's columns, by which its rows are read.

    Attributes:
        path: of the record.
        names: of the columns, in their order.
    """

    path: Path
    names: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, line: str, needed: Iterable[str]) -> Header:
        """Read the first line; TraceError where it is none, or a needed column is not there."""
        names = tuple(line.split(","))
        if "wall_time" not in names:
            raise TraceError(f"{path}: not a record of the rig")
        missing = [name for name in needed if name not in names]
        if missing:
            raise TraceError(
                f"{path}: no column {', '.join(missing)}: an older rig wrote it; make the run again"
            )
        return cls(path, names)

    def row(self, line: str) -> list[float]:
        """The values of a row; TraceError unless there is a finite number for each name."""
        try:
            values = [float(cell) for cell in line.split(",")]
        except ValueError:
            values = []
        if len(values) != len(self.names) or not all(map(math.isfinite, values)):
            raise TraceError(f"{self.path}: broken line: {line[:80]!r}")
        return values


def read_trace(path: Path, needed: Iterable[str] = COLUMNS) -> dict[str, NDArray[np.float64]]:
    """The columns of a whole record by name, (rows,) each; there may be more than those needed.

    A line that is still being written is left out. TraceError for what is no record, OSError.
    """
    text = path.read_text(encoding="ascii", errors="replace")
    first, *lines = text[: text.rfind("\n") + 1].split("\n")
    header = Header.of(path, first, needed)
    rows = [header.row(line) for line in lines[:-1]]
    table = np.array(rows, dtype=np.float64).reshape(-1, len(header.names))
    columns = {name: table[:, place] for place, name in enumerate(header.names)}
    for name in {"episode", "seed"} & set(columns):
        if not ((columns[name] >= 0) & (columns[name] % 1 == 0)).all():
            raise TraceError(f"{path}: in column {name} there is something else than whole numbers")
    return columns
