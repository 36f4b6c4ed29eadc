"""A made-up force sensor: a slow sine of force, and A-scans whose peak follows it."""

from __future__ import annotations

import threading
import time

import numpy as np

from common.clock import wall
from common.wire import ALINE_LENGTH
from senders.drivers import DriverError, SampleBlock

__all__ = ["SyntheticForceSensor"]

_LOST_AFTER_S = 1.0


class SyntheticForceSensor:
    """Samples on a fixed grid of time, delivered in blocks as a device with a buffer would."""

    def __init__(
        self,
        rate_hz: float = 650.0,
        block: int = 5,
        force_hz: float = 0.5,
        aline_length: int = ALINE_LENGTH,
    ) -> None:
        """Deliver `block` samples at a time of `rate_hz`, the force going round `force_hz`."""
        if not (rate_hz > 0 and block >= 1 and aline_length >= 1):
            raise ValueError("rate_hz, block and aline_length must be above 0")
        self._rate_hz, self._block, self._force_hz = rate_hz, block, force_hz
        self._depths = np.arange(aline_length, dtype=np.float32)
        noise = np.random.default_rng(0).normal(0.0, 0.02, (64, aline_length))
        self._noise = noise.astype(np.float32)
        self._closed = threading.Event()
        self._start: float | None = None
        self._start_wall = 0.0
        self._next = 0

    def open(self) -> None:
        """Start the grid."""
        self._closed.clear()
        self._start, self._start_wall, self._next = time.monotonic(), wall(), 0

    def read(self, timeout_s: float) -> SampleBlock | None:
        """The next block (timestamps exactly 1 / rate apart), or None when it is not due in time.

        A reader that stays away for over a second loses the samples in between.
        """
        if self._start is None:
            raise DriverError("the synthetic force sensor is not open")
        due = self._start + (self._next + self._block) / self._rate_hz
        left = due - time.monotonic()
        if left < -_LOST_AFTER_S:
            self._next += int(-left * self._rate_hz)
        if left > timeout_s:
            self._closed.wait(timeout_s)
            return None
        if left > 0 and self._closed.wait(left):
            return None
        index = self._next + np.arange(self._block)
        self._next += self._block
        return self._samples(index)

    def close(self) -> None:
        """Stop the grid."""
        self._closed.set()
        self._start = None

    def _samples(self, index: np.ndarray) -> SampleBlock:
        seconds = index / self._rate_hz
        force = 0.25 + 0.2 * np.sin(2 * np.pi * self._force_hz * seconds)
        length = len(self._depths)
        centre = (length * (0.3 + 0.8 * force))[:, None].astype(np.float32)
        width = np.float32(max(length / 100, 1.0))
        peak = np.exp(-(((self._depths - centre) / width) ** 2))
        alines = peak.astype(np.float32) + self._noise[index % len(self._noise)]
        return SampleBlock(self._start_wall + seconds, force.astype(np.float32), alines)
