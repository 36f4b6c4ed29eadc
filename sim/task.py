"""The rig's task and what counts as success: the tip in the port, following the moving tissue.

The criterion is the evaluation's: for 3 s without a break the tip is inside the port, off its axis
by less than 1.5 mm, and keeps its distance to the tissue surface to within 0.5 mm RMS; the force
stays below 3 N from the first moment to the last.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from sim.rig import Reading

__all__ = ["DISTANCE_MM", "TASK", "Judge", "Verdict"]

TASK = "Perform needle insertion into the eye"
DISTANCE_MM = 2.0
"""Wanted distance from the tip to the tissue surface: near enough to work on it, out of reach."""
HOLD_S = 3.0
LATERAL_MM = 1.5
ERROR_MM = 0.5
FORCE_N = 3.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an episode so far.

    Attributes:
        success: the tip was held as it should be, and never pushed too hard.
        held_s: how long the tip has been in the port, and near its axis, without a break.
        rms_mm: lowest RMS error of the distance to the tissue over any 3 s of that; NaN while
            there are none.
        lateral_mm: greatest distance from the port's axis in those 3 s; NaN while there are none.
        force_n: the greatest force so far.
        reason: why it is no success (yet): `force`, `never inside`, `not held`, `distance`; empty
            for a success.
        done_s: when in the episode it succeeded, or force ended it; NaN while neither did.
    """

    success: bool
    held_s: float
    rms_mm: float
    lateral_mm: float
    force_n: float
    reason: str
    done_s: float


class Judge:
    """Watches one episode; `see` each reading, at 50 Hz or faster, in the order of time."""

    def __init__(self, distance_mm: float = DISTANCE_MM) -> None:
        """Start with an episode; `distance_mm` is the distance to be kept from the tissue."""
        self._wanted = distance_mm
        self._held: deque[tuple[float, float, float]] = deque()  # time, squared error, lateral
        self._since = math.nan
        self._ever = False
        self._squares = 0.0
        self._best = math.inf
        self._lateral = math.nan
        self._force = 0.0
        self._done = math.nan

    def see(self, reading: Reading) -> Verdict:
        """Take a reading, and judge."""
        self._force = max(self._force, abs(reading.force_n))
        too_hard = self._force >= FORCE_N
        if too_hard and math.isnan(self._done):
            self._done = reading.time_s
        if reading.depth_mm > 0 and reading.lateral_mm < LATERAL_MM:
            self._hold(reading)
        else:
            self._held.clear()
            self._squares, self._since = 0.0, math.nan
        return self.verdict(reading.time_s)

    def _hold(self, reading: Reading) -> None:
        time_s = reading.time_s
        self._ever = True
        if math.isnan(self._since):
            self._since = time_s
        square = (reading.distance_mm - self._wanted) ** 2
        self._held.append((time_s, square, reading.lateral_mm))
        self._squares += square
        while time_s - self._held[0][0] > HOLD_S:
            self._squares -= self._held.popleft()[1]
        if time_s - self._since < HOLD_S:
            return
        rms = math.sqrt(max(self._squares, 0.0) / len(self._held))
        if rms < self._best:
            self._best = rms
            self._lateral = max(lateral for *_, lateral in self._held)
        if rms < ERROR_MM and math.isnan(self._done):
            self._done = time_s

    def verdict(self, time_s: float) -> Verdict:
        """What became of the episode so far, `time_s` being now."""
        too_hard = self._force >= FORCE_N
        reached = self._best < ERROR_MM
        reason = ""
        if too_hard:
            reason = "force"
        elif not reached:
            if not self._ever:
                reason = "never inside"
            else:
                reason = "distance" if math.isfinite(self._best) else "not held"
        return Verdict(
            success=reached and not too_hard,
            held_s=0.0 if math.isnan(self._since) else time_s - self._since,
            rms_mm=self._best if math.isfinite(self._best) else math.nan,
            lateral_mm=self._lateral,
            force_n=self._force,
            reason=reason,
            done_s=self._done,
        )
