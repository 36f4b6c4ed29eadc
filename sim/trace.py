"""The rig's own record of what happened, as CSV: the ground truth that no sender sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.rig import Reading

__all__ = ["COLUMNS", "Trace"]

COLUMNS = ("wall_time", *(f"j{i}" for i in range(1, 7)), "tip_x", "tip_y", "tip_z")
COLUMNS += ("distance_mm", "lateral_mm", "depth_mm", "force_n", "tissue_mm", "episode")

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
        self, at: float, joints_deg: NDArray[np.float64], reading: Reading, episode: int
    ) -> None:
        """Take the state of one tick; it is written when a row is due."""
        row = int(at * _RATE_HZ)
        if row == self._row:
            return
        self._row = row
        joints = ",".join(f"{value:.5f}" for value in joints_deg)
        tip = ",".join(f"{value:.4f}" for value in reading.tip_mm)
        self._file.write(
            f"{at:.6f},{joints},{tip},{reading.distance_mm:.4f},{reading.lateral_mm:.4f},"
            f"{reading.depth_mm:.4f},{reading.force_n:.5f},{reading.tissue_mm:.4f},{episode}\n"
        )
        if at - self._flushed_at >= _FLUSH_S:
            self._file.flush()
            self._flushed_at = at

    def close(self) -> None:
        """Write what is left; safe to call twice."""
        self._file.close()
