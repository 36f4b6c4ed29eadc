"""Real-time chunking's bookkeeping: which rows are under way, and what to do at an instant.

Times come in (seconds of any one clock), so that it serves a real clock and a virtual one alike.
Used by one thread.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.base import ActionChunk, PolicyError

__all__ = ["RtcChunker", "Target", "UnderWay"]

JOINTS = 6
_SAME_S = 1e-9
_REMEMBERED = 10

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What is left of the chunk under execution while the next one is made.

    Attributes:
        rows_deg: (N, 6) joint targets in degrees; row k is for the instant that row k of the next
            chunk is for.
        frozen: how many of them will be executed before the next chunk is there.
    """

    rows_deg: Vector
    frozen: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where to be at an instant.

    Attributes:
        joints_deg: (6,); no limit was applied.
        observed_at: when the observation was made that the chunk came from.
    """

    joints_deg: Vector
    observed_at: float


class RtcChunker:
    """Keeps the chunk under execution: `begin` an inference, `finish` it, take `target`s.

    Row k (from 0) of a chunk is due (k + 1) dt after its observation; between rows the target moves
    in a straight line. Once a chunk is there, the old one is followed as far as the rows that were
    frozen, then the new one. Where the rows end before the next chunk is there, there is no target:
    hold. While the arm holds, a chunk does not grow old: it goes on where the rows ended, as an
    action queue by steps does.

    Args:
        rows: H, rows of a chunk.
        dt: seconds between two of them.
        least_rows: a new inference begins so many rows after the one before did (s_min); 1 is
            as often as possible.
        latency_s: what to expect of the first inference, where `begin` is not told.
    """

    def __init__(
        self, rows: int, dt: float, *, least_rows: int = 1, latency_s: float = 0.0
    ) -> None:
        if not 1 <= least_rows <= rows or not dt > 0.0 or not latency_s >= 0.0:
            raise ValueError("a chunk has rows, of which some are executed, apart in time")
        self._rows, self._dt, self._least = rows, dt, least_rows
        self._delays: deque[float] = deque([latency_s], maxlen=_REMEMBERED)
        self.clear()

    def clear(self) -> None:
        """Forget what is planned and what is under way, e.g. for a new episode or after a doubt."""
        self._due: Vector = np.empty(0)
        self._points: Vector = np.empty((0, JOINTS))
        self._seen: Vector = np.empty(0)
        self._begun: tuple[float, int] | None = None
        self._begun_at = -math.inf

    @property
    def expected_s(self) -> float:
        """The longest of the last inferences, as the paper expects the next to be."""
        return max(self._delays)

    def wants(self, at: float) -> bool:
        """Whether to begin an inference: none is under way, and enough rows went by."""
        if self._begun is not None:
            return False
        over = not len(self._due) or at >= self._due[-1] - _SAME_S
        return over or at >= self._begun_at + self._least * self._dt - _SAME_S

    def begin(self, observed_at: float, latency_s: float | None = None) -> UnderWay | None:
        """An inference begins, from an observation (the joints' and the sensor's) of that instant.

        What was begun and never finished is given up.

        Args:
            observed_at: when the joints were read that the chunk will begin at.
            latency_s: from then until the chunk is there; the longest of the last by default.

        Returns:
            For `FlowPolicy.act`: rows of the plan at the new chunk's instants, and how many of
            them will be executed meanwhile, ceil(latency / dt); None where nothing is under way.
        """
        latency_s = self.expected_s if latency_s is None else latency_s
        if not (math.isfinite(observed_at) and math.isfinite(latency_s) and latency_s >= 0.0):
            raise ValueError(f"not an instant and a latency: {observed_at}, {latency_s}")
        due = observed_at + self._dt * np.arange(1, self._rows + 1, dtype=np.float64)
        left = due[due <= self._end + _SAME_S]
        frozen = min(math.ceil(latency_s / self._dt - _SAME_S), len(left))
        self._begun, self._begun_at = (observed_at, frozen), observed_at
        if not len(left):
            return None
        return UnderWay(self._at(left), frozen)

    def finish(self, chunk: ActionChunk, at: float) -> None:
        """The chunk of the inference that was begun is there.

        Raises:
            ValueError: none was begun, or it has begun later than this.
            PolicyError: rows of another number or kind.
        """
        if self._begun is None or at < self._begun[0] - _SAME_S:
            raise ValueError("no inference was begun before this chunk")
        (observed_at, frozen), self._begun = self._begun, None
        self._delays.append(at - observed_at)
        points = self._points_of(chunk)
        # Time stands still for the chunk while the arm holds.
        executed_s = min(at - observed_at, max(self._end - observed_at, 0.0))
        held = executed_s < at - observed_at - _SAME_S
        due = at - executed_s + self._dt * np.arange(self._rows + 1, dtype=np.float64)
        self._splice(at if held else max(at, due[frozen]), due, points, observed_at)

    def target(self, at: float) -> Target | None:
        """Where to be at an instant; None where nothing is planned for it: hold."""
        if not len(self._due) or at > self._end + _SAME_S:
            return None
        return Target(self._at([at])[0], self._seen_at(at))

    @property
    def _end(self) -> float:
        return float(self._due[-1]) if len(self._due) else -math.inf

    def _points_of(self, chunk: ActionChunk) -> Vector:
        """Where the chunk begins, then its rows: (H + 1, 6)."""
        columns = chunk.actions.shape[1] if chunk.actions.ndim == 2 else 0
        if columns < JOINTS or len(chunk.actions) != self._rows:
            raise PolicyError(
                f"a chunk must be {self._rows} rows of {JOINTS} joints at least, not "
                f"{chunk.actions.shape}"
            )
        rows = chunk.actions[:, :JOINTS].astype(np.float64)
        points = np.concatenate((rows[:1] - chunk.delta[:1, :JOINTS], rows))
        if not np.isfinite(points).all():
            raise PolicyError("a chunk must be finite joint angles, from finite ones")
        return points

    def _splice(self, over: float, due: Vector, points: Vector, observed_at: float) -> None:
        """The plan as it is until `over`, then the chunk."""
        after = due > over + _SAME_S
        if over <= self._end + _SAME_S:
            # What is older than a chunk no observation can ask for.
            kept = (self._due < over - _SAME_S) & (self._due > over - self._rows * self._dt)
            here, seen = self._at([over]), self._seen_at(over)
        else:
            kept = np.zeros(len(self._due), bool)
            here, seen = _between(due, points, [over]), observed_at
        fresh = np.full(int(after.sum()), observed_at)
        self._due = np.concatenate((self._due[kept], [over], due[after]))
        self._points = np.concatenate((self._points[kept], here, points[after]))
        self._seen = np.concatenate((self._seen[kept], [seen], fresh))

    def _seen_at(self, moment: float) -> float:
        """When the observation was made behind the row that is on at a moment."""
        place = int(np.searchsorted(self._due, moment - _SAME_S))
        return float(self._seen[min(place, len(self._seen) - 1)])

    def _at(self, moments: Vector | list[float]) -> Vector:
        return _between(self._due, self._points, moments)


def _between(due: Vector, points: Vector, moments: Vector | list[float]) -> Vector:
    """Points (N, 6) at some moments, between those that are known."""
    return np.stack([np.interp(moments, due, points[:, j]) for j in range(JOINTS)], axis=1)
