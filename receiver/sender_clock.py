"""A sender's clock as the receiver knows it, which says aloud when it was set."""

from __future__ import annotations

import logging
import math
import time

from common.clock_offset import ClockOffset

__all__ = ["SenderClock"]

logger = logging.getLogger(__name__)

_SAY_EVERY_S = 1.0


class SenderClock(ClockOffset):
    """A `ClockOffset` with the name of its stream."""

    def __init__(self, name: str) -> None:
        """`name` is what log lines call it: `robot`, `sensor`, `camera View1`."""
        super().__init__()
        self.name = name
        self._said_at = -math.inf

    def was_set(self, by_s: float) -> None:
        """Say so, at most once a second: stamps come from strangers."""
        if time.monotonic() - self._said_at < _SAY_EVERY_S:
            return
        self._said_at = time.monotonic()
        by = f"{1e3 * by_s:+.0f} ms" if abs(by_s) < 10.0 else f"{by_s:+.1f} s"
        logger.warning("[CLOCK] %s: its clock was set by %s: calibrated again", self.name, by)
