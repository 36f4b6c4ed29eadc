"""Gathers a sensor's samples into batches for datagrams; pure, with time as an argument."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from common.wire import MAX_MAGNITUDE, MAX_TIMESTAMP, SampleBatch, max_samples
from senders.drivers import DriverError, SampleBlock

__all__ = ["Batcher"]


class Batcher:
    """Takes blocks of any size, gives batches of one size, or less when samples grow old.

    A block of exactly one batch that comes while nothing is left over is given as it is.
    """

    def __init__(self, batch: int, rate_hz: float) -> None:
        """Gather `batch` samples; give fewer after twice the time that these take to come."""
        self.batch = batch
        self.flush_after_s = 2 * batch / rate_hz
        self._blocks: list[SampleBlock] = []
        self._count = 0
        self._oldest_at = 0.0
        self.unsound = 0

    def add(self, block: SampleBlock, moment: float) -> None:
        """Take a block that came at `moment` (monotonic); DriverError when its arrays do not fit.

        Samples with values that no receiver would take are left out, and counted: one of them
        would cost its whole datagram.
        """
        block = self._sound(block)
        if not len(block.timestamps):
            return
        if not self._count:
            self._oldest_at = moment
        self._blocks.append(block)
        self._count += len(block.timestamps)

    def ready(self, moment: float) -> Iterator[SampleBatch]:
        """Every full batch; then what is left over, when it has waited for long enough."""
        if self._count >= self.batch:
            whole = self._joined()
            full = len(whole.timestamps) // self.batch * self.batch
            for first in range(0, full, self.batch):
                yield _cut(whole, first, first + self.batch)
            self._keep(whole, full, moment)
        if self._count and moment - self._oldest_at >= self.flush_after_s:
            rest = self.rest()
            assert rest is not None
            yield rest

    def rest(self) -> SampleBatch | None:
        """What is left over, if anything."""
        if not self._count:
            return None
        whole = self._joined()
        self._blocks, self._count = [], 0
        return _cut(whole, 0, len(whole.timestamps))

    def _sound(self, block: SampleBlock) -> SampleBlock:
        count = len(block.timestamps)
        if block.alines.ndim != 2 or len(block.alines) != count or len(block.forces) != count:
            raise DriverError(f"{count} timestamps, but A-scans {block.alines.shape}")
        length = block.alines.shape[1]
        if self.batch > max_samples(length):
            raise DriverError(
                f"{self.batch} samples of {length} values exceed a datagram: --batch "
                f"{max_samples(length)} at most"
            )
        if self._blocks and self._blocks[0].alines.shape[1] != length:
            raise DriverError(f"A-scans changed to {length} values")
        with np.errstate(invalid="ignore"):
            sound = (block.timestamps >= 0) & (block.timestamps < MAX_TIMESTAMP)
            sound &= np.abs(block.forces) <= MAX_MAGNITUDE
            sound &= (np.abs(block.alines) <= MAX_MAGNITUDE).all(axis=1)
        if sound.all():
            return block
        self.unsound += int(count - sound.sum())
        return SampleBlock(block.timestamps[sound], block.forces[sound], block.alines[sound])

    def _joined(self) -> SampleBlock:
        return SampleBlock(
            np.concatenate([b.timestamps for b in self._blocks]),
            np.concatenate([b.forces for b in self._blocks]),
            np.concatenate([b.alines for b in self._blocks]),
        )

    def _keep(self, whole: SampleBlock, first: int, moment: float) -> None:
        left = SampleBlock(whole.timestamps[first:], whole.forces[first:], whole.alines[first:])
        self._count = len(left.timestamps)
        self._blocks = [left] if self._count else []
        self._oldest_at = moment


def _cut(whole: SampleBlock, first: int, last: int) -> SampleBatch:
    rows = slice(first, last)
    return SampleBatch(
        whole.timestamps[rows],
        np.zeros(last - first),  # filled in at the moment of sending
        whole.forces[rows],
        whole.alines[rows],
    )
