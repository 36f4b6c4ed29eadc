"""How well an episode went, from the rig's readings: on the virtual clock and on the real one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sim.rig import Reading
from sim.task import DISTANCE_MM, HOLD_S, LATERAL_MM, Judge, Verdict

__all__ = ["Outcome", "Score", "ScoreOptions"]

_SLACK_S = 0.02  # readings are this far apart at most


@dataclass(frozen=True)
class ScoreOptions:
    """When an episode is over."""

    limit_s: float = 15.0
    """It is given up after so many seconds."""
    tail_s: float = 3.0
    """It goes on for so many seconds after it succeeded: the hold is measured there, where the way
    in is over for good, and too much force still makes a failure of it."""

    def __post_init__(self) -> None:
        """ValueError for times that are none."""
        if not (0.0 < self.limit_s < math.inf and 0.0 <= self.tail_s < math.inf):
            raise ValueError("--limit-s must be above 0, --tail-s 0 or more")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an episode.

    Attributes:
        success: as the task's judge has it, the tail included.
        reason: why it is none; empty for a success.
        done_s: when it succeeded, or force ended it; NaN while neither did.
        end_s: when it was over.
        rms_mm: RMS error of the tip's distance to the surface over the last 3 s; NaN where the tip
            was not in the port for all of them.
        best_rms_mm: the lowest over any 3 s in the port; NaN where there are none.
        lateral_mm: greatest distance from the port's axis in the best 3 s.
        force_n: the greatest force.
    """

    success: bool
    reason: str
    done_s: float
    end_s: float
    rms_mm: float
    best_rms_mm: float
    lateral_mm: float
    force_n: float


class Score:
    """Watches one episode: `see` every reading in the order of time, until it is `over`."""

    def __init__(self, options: ScoreOptions | None = None) -> None:
        """Begin with an episode."""
        self._options = options or ScoreOptions()
        self._judge = Judge()
        self._verdict: Verdict | None = None
        self._rows: list[tuple[float, float, bool]] = []  # time, error, in the port
        self._ends_at = self._options.limit_s

    @property
    def time_s(self) -> float:
        """When in the episode the last reading was."""
        return self._rows[-1][0] if self._rows else 0.0

    @property
    def over(self) -> bool:
        """Whether nothing that still comes counts."""
        return self.time_s >= self._ends_at

    def see(self, reading: Reading) -> None:
        """Take a reading."""
        verdict = self._verdict = self._judge.see(reading)
        inside = reading.depth_mm > 0 and reading.lateral_mm < LATERAL_MM
        self._rows.append((reading.time_s, reading.distance_mm - DISTANCE_MM, inside))
        if verdict.reason == "force":
            self._ends_at = reading.time_s
        elif verdict.success:
            self._ends_at = min(self._options.limit_s, verdict.done_s + self._options.tail_s)

    def outcome(self) -> Outcome:
        """What became of it; ValueError before the first reading."""
        verdict = self._verdict
        if verdict is None:
            raise ValueError("an episode without a reading")
        return Outcome(
            success=verdict.success,
            reason=verdict.reason,
            done_s=verdict.done_s,
            end_s=self.time_s,
            rms_mm=self._last_rms_mm(),
            best_rms_mm=verdict.rms_mm,
            lateral_mm=verdict.lateral_mm,
            force_n=verdict.force_n,
        )

    def _last_rms_mm(self) -> float:
        since = self.time_s - HOLD_S
        if self._rows[0][0] > since + _SLACK_S:
            return math.nan
        last = [(error, inside) for at, error, inside in self._rows if at >= since]
        if not all(inside for _, inside in last):
            return math.nan
        return float(np.sqrt(np.mean(np.square([error for error, _ in last]))))
