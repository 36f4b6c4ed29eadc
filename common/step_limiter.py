"""Limits on the targets of a motion: range, largest step, how far ahead of what is measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["StepLimiter", "wrap_deg"]


def wrap_deg(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Degrees brought into [-180, 180)."""
    wrapped: NDArray[np.float64] = (angle + 180.0) % 360.0 - 180.0
    return wrapped


@dataclass(frozen=True, slots=True)
class StepLimiter:
    """Limits on N values at one control rate.

    Attributes:
        low: (N,) lowest values.
        high: (N,) highest values.
        step: (N,) largest change in one tick.
        lead: (N,) how far a target may be from what is measured.
        turns: (N,) whether a value is an angle for which 180 and -180 are the same.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    step: NDArray[np.float64]
    lead: NDArray[np.float64]
    turns: NDArray[np.bool_]

    def difference(
        self, to: NDArray[np.float64], start: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """From `start` to `to` (N,), angles the short way round."""
        change: NDArray[np.float64] = to - start
        return np.where(self.turns, wrap_deg(change), change)

    def reference(
        self, commanded: NDArray[np.float64] | None, measured: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Where the next move starts (N,): the commanded target, near what is measured.

        A target that runs ahead of a slow robot is brought back to `lead`. One that is elsewhere
        altogether (the robot was moved; its Euler angles flipped) is given up for the measured.
        """
        if commanded is None:
            return measured
        ahead = self.difference(commanded, measured)
        near = np.clip(ahead, -self.lead, self.lead)
        if (np.abs(ahead - near) > 2 * self.step).any():
            return measured
        start: NDArray[np.float64] = measured + near
        return start

    def next(
        self,
        wanted: NDArray[np.float64],
        commanded: NDArray[np.float64] | None,
        measured: NDArray[np.float64],
    ) -> NDArray[np.float64] | None:
        """The next target (N,) on the way to `wanted`; None when the robot is out of its range.

        It is within `step` of `reference`, which is the last commanded target as long as the
        robot follows.
        """
        start = self.reference(commanded, measured)
        if (np.abs(np.clip(start, self.low, self.high) - start) > self.step).any():
            return None
        move = np.clip(self.difference(wanted, start), -self.step, self.step)
        target = np.clip(start + move, self.low, self.high)
        return np.where(self.turns, wrap_deg(target), target)
