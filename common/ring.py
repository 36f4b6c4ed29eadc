"""A preallocated ring of timestamped rows: append a batch, view the newest N without a copy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["SampleRing"]

_Place = tuple[int, int]


class SampleRing:
    """The newest rows of a stream, written by one thread at a time and read by others.

    One long piece of memory, touched once, at the start. Where its end is reached, the newest
    `capacity` rows move to its front and the writer goes on behind them, so that the newest rows
    always lie in one piece. A reader gets views: they stay as they are for `slack` further rows,
    after which the writer may come round.
    """

    def __init__(self, capacity: int, channels: int, slack: int, batch: int | None = None) -> None:
        """Room for views of up to `capacity` rows of `channels` float32 values.

        `batch` rows at most are reserved at once; as many as `capacity` by default.
        """
        self.batch = capacity if batch is None else batch
        if min(capacity, channels, self.batch) < 1 or slack < 0:
            raise ValueError("a ring needs room for at least one row of one value")
        self.capacity = capacity
        # A view taken `slack` rows ago begins capacity + slack rows before the place where the
        # writer turned round, which is up to a batch before the end. Since then the front got
        # `capacity` rows, the rest of the slack, and a batch that may not be committed yet.
        size = 2 * capacity + slack + 2 * self.batch
        self._rows = np.zeros((size, channels), np.float32)
        self._stamps = np.zeros(size, np.float64)
        # Where the newest row ends, and how many there ever were: replaced as one, so that a
        # reader needs no lock.
        self._place: _Place = (0, 0)
        self._cleared = 0  # rows before this one are forgotten

    def __len__(self) -> int:
        """Rows that can be viewed."""
        return min(max(self._place[1] - self._cleared, 0), self.capacity)

    @property
    def count(self) -> int:
        """Rows ever appended, forgotten ones too."""
        return self._place[1]

    def reserve(self, rows: int) -> NDArray[np.float32]:
        """The place of the next `rows` rows, for the writer to fill; `commit` makes them rows.

        What is not committed is not there, and its place is given away again. (rows, channels)
        float32; ValueError beyond the ring's largest batch.
        """
        if rows > self.batch:
            raise ValueError(f"at most {self.batch} rows at once, not {rows}")
        end, count = self._place
        if end + rows > len(self._rows):
            kept = min(end, self.capacity)
            self._rows[:kept] = self._rows[end - kept : end]
            self._stamps[:kept] = self._stamps[end - kept : end]
            end = kept
            self._place = kept, count
        return self._rows[end : end + rows]

    def commit(self, stamps: NDArray[np.float64]) -> None:
        """Append the rows that were reserved and filled, with their stamps (rows,)."""
        (end, count), rows = self._place, len(stamps)
        self._stamps[end : end + rows] = stamps
        self._place = end + rows, count + rows

    def append(self, stamps: ArrayLike, *columns: NDArray[np.float32]) -> None:
        """Append N rows: stamps (N,), then column blocks (N,) or (N, c) that fill a row together.

        ValueError when the blocks do not fill a row.
        """
        times = np.asarray(stamps, np.float64)
        if not len(times):
            return
        blocks = [block.reshape(len(times), -1) for block in columns]
        if sum(block.shape[1] for block in blocks) != self._rows.shape[1]:
            raise ValueError(f"rows of {self._rows.shape[1]} values expected")
        for first in range(0, len(times), self.batch):
            piece, column = slice(first, first + self.batch), 0
            rows = self.reserve(len(times[piece]))
            for block in blocks:
                rows[:, column : column + block.shape[1]] = block[piece]
                column += block.shape[1]
            self.commit(times[piece])

    def newest(self, rows: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Views of the newest `rows` rows (fewer while there are not that many), oldest first.

        Stamps (n,) float64 and rows (n, channels) float32, read-only and without a copy.
        """
        end, count = self._place
        # Whoever cleared the ring meanwhile may have known of more rows than these.
        held = max(count - self._cleared, 0)
        first = end - min(rows, held, self.capacity)
        stamps, values = self._stamps[first:end], self._rows[first:end]
        stamps.flags.writeable = values.flags.writeable = False
        return stamps, values

    def clear(self, keep: int = 0) -> None:
        """Forget all rows but the newest `keep`; any thread may, also while another appends."""
        self._cleared = max(self._place[1] - keep, self._cleared)
