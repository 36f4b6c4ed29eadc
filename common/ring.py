"""A preallocated ring of timestamped rows: append a batch, view the newest N without a copy."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["SampleRing"]


class SampleRing:
    """The newest rows of a stream, written by one thread and read by others.

    Every row is stored twice, `capacity` apart, so that the newest N ≤ capacity rows always lie in
    one piece. The memory is touched once, at the start. A reader gets views: they stay as they are
    for `slack` further rows, after which the writer comes round.
    """

    def __init__(self, capacity: int, channels: int, slack: int) -> None:
        """Room for views of up to `capacity` rows of `channels` float32 values."""
        if min(capacity, channels) < 1 or slack < 0:
            raise ValueError("a ring needs room for at least one row of one value")
        self.capacity = capacity
        self._size = capacity + slack
        self._rows = np.zeros((2 * self._size, channels), np.float32)
        self._stamps = np.zeros(2 * self._size, np.float64)
        self._lock = threading.Lock()
        self._count = 0
        self._cleared = 0  # rows before this one are forgotten

    def __len__(self) -> int:
        """Rows that can be viewed."""
        with self._lock:
            return min(self._count - self._cleared, self.capacity)

    @property
    def count(self) -> int:
        """Rows ever appended, forgotten ones too."""
        return self._count

    def append(self, stamps: ArrayLike, *columns: NDArray[np.float32]) -> None:
        """Append N rows: stamps (N,), then column blocks (N,) or (N, c) that fill a row together.

        ValueError when the blocks do not fill a row. Of more rows than the ring holds, the newest
        are kept.
        """
        times = np.asarray(stamps, np.float64)
        left_out = max(len(times) - self._size, 0)
        times = times[left_out:]
        if not len(times):
            return
        blocks = [b[left_out:].reshape(len(times), -1) for b in columns]
        if sum(b.shape[1] for b in blocks) != self._rows.shape[1]:
            raise ValueError(f"rows of {self._rows.shape[1]} values expected")
        start, done = (self._count + left_out) % self._size, 0
        while done < len(times):  # at most two pieces, where the ring wraps
            piece = min(len(times) - done, self._size - start)
            for base in (start, start + self._size):
                self._stamps[base : base + piece] = times[done : done + piece]
                column = 0
                for block in blocks:
                    self._rows[base : base + piece, column : column + block.shape[1]] = block[
                        done : done + piece
                    ]
                    column += block.shape[1]
            start, done = 0, done + piece
        with self._lock:
            self._count += left_out + len(times)

    def newest(self, rows: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Views of the newest `rows` rows (fewer while there are not that many), oldest first.

        Stamps (n,) float64 and rows (n, channels) float32, read-only and without a copy.
        """
        with self._lock:
            count, held = self._count, self._count - self._cleared
        wanted = min(rows, held, self.capacity)
        end = (count - 1) % self._size + 1 + self._size if count else 0
        stamps, values = self._stamps[end - wanted : end], self._rows[end - wanted : end]
        stamps.flags.writeable = values.flags.writeable = False
        return stamps, values

    def clear(self) -> None:
        """Forget every row; any thread may, also while another appends."""
        with self._lock:
            self._cleared = self._count
