"""The line under a cloud of `arrival − send stamp`: a sender's clock without the jitter of its way.

The difference is offset + delay. Delays are never negative and now and then as small as they can
be, so the offset is the line that touches the cloud from below; its slope is the drift between the
two clocks. Among all lines below the points, the one with the least summed distance to them is the
edge of the lower convex hull over the points' mean time (Moon, Skelly and Towsley, "Estimation and
removal of clock skew from network delay measurements", INFOCOM 1999).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import NamedTuple

__all__ = ["MAX_SLOPE", "Bucket", "Envelope", "Line"]

MAX_SLOPE = 500e-6
"""Seconds a second: crystals keep to 100 ppm, and Linux slews a clock by at most 500 ppm."""

_FINE_S = 0.2
_COARSE_S = 1.0
_LONG_S = 5.0
_LONG = 60
_USUAL_SLOPE = 50e-6
_SLOPE_ERROR = 10e-6
_SLOPE_AFTER_S = 2.0
_EXTRAPOLATED_S = 120.0
_KEPT = 44
_PIVOT = 0.6
_TRUSTED = 0.9

Point = tuple[float, float]


class Line(NamedTuple):
    """An offset that changes with time; immutable, so that any thread may read it."""

    offset_s: float
    slope: float
    at: float

    def offset(self, moment: float) -> float:
        """The offset in seconds at a moment of our clock, extrapolated for two minutes at most."""
        ahead = moment - self.at
        if abs(ahead) > _EXTRAPOLATED_S:
            ahead = math.copysign(_EXTRAPOLATED_S, ahead)
        return self.offset_s + self.slope * ahead

    def local(self, stamp: float) -> float:
        """A stamp of the sender in our clock: the moment m with m − offset(m) = stamp."""
        ahead = (stamp + self.offset_s - self.at) / (1.0 - self.slope)
        if abs(ahead) > _EXTRAPOLATED_S:
            ahead = math.copysign(_EXTRAPOLATED_S, ahead)
        return stamp + self.offset_s + self.slope * ahead


class Bucket(NamedTuple):
    """What came in a fifth of a second: when the smallest difference came, it, and the mean."""

    at: float
    low: float
    mean: float


def lower_hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull of points whose first coordinate rises (monotone chain)."""
    hull: list[Point] = []
    for x, y in points:
        while len(hull) >= 2:
            (x0, y0), (x1, y1) = hull[-2], hull[-1]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def slope_below(points: Sequence[Point], pivot: float) -> float:
    """The slope of the lower hull's edge over `pivot`, within `MAX_SLOPE`."""
    hull = lower_hull(points)
    for (x0, y0), (x1, y1) in pairwise(hull):
        if x1 >= pivot:
            return max(-MAX_SLOPE, min((y1 - y0) / (x1 - x0), MAX_SLOPE))
    return 0.0


def _slope_and_trust(points: Sequence[Point]) -> tuple[float, float]:
    """The slope under the points, and from 0 to 1 how much it is to be believed.

    How far the points lie above their line, over its length, is how well the slope is known; how
    much crystals differ is what it is weighed against (the gain of a Kalman filter's first step).
    """
    first, last = (points[0][0], points[-1][0]) if points else (0.0, 0.0)
    if last - first < _SLOPE_AFTER_S:
        return 0.0, 0.0
    slope = slope_below(points, first + _PIVOT * (last - first))
    heights = sorted(y - slope * x for x, y in points)
    noise = (heights[len(heights) // 2] - heights[0]) / (last - first)
    return slope, _USUAL_SLOPE**2 / (_USUAL_SLOPE**2 + noise**2)


def _merge(points: deque[Point], at: float, low: float, until: float, every_s: float) -> float:
    """Keep the lowest point of each stretch of `every_s`; when the stretch being filled ends."""
    if points and at < until:
        if low < points[-1][1]:
            points[-1] = (max(at, points[-1][0]), low)
        return until
    if not points or at > points[-1][0]:
        points.append((at, low))
        return at + every_s
    return until


class Envelope:
    """A sliding window of smallest differences and the line under them. Bounded, whatever comes."""

    def __init__(self, window_s: float) -> None:
        """Forget what is older than `window_s`."""
        self._window_s = window_s
        self._points: deque[Point] = deque(maxlen=int(window_s / _COARSE_S) + 2)
        self._coarse_until = -math.inf
        # For the slope alone, where delays vary too much for the window to show it.
        self._long: deque[Point] = deque(maxlen=_LONG)
        self._long_until = -math.inf
        # Fifths of a second with their height over the line at that time.
        self._heights: deque[float] = deque(maxlen=_KEPT)
        self._jitters: deque[float] = deque(maxlen=_KEPT)
        self.recent: deque[Bucket] = deque(maxlen=4)
        self._until = -math.inf
        self._low, self._low_at, self._sum, self._count = math.inf, 0.0, 0.0, 0
        self.slope = self._slope_before = 0.0
        self.slope_error = MAX_SLOPE
        self.line = Line(0.0, 0.0, 0.0)

    def restart(self, points: Sequence[Point], now: float) -> None:
        """Forget all and begin with `points`; the drift stays, it is the crystal's."""
        self._points.clear()
        self._long.clear()
        self._slope_before = self.slope
        self._coarse_until = self._long_until = -math.inf
        self.recent.clear()
        self._low, self._sum, self._count = math.inf, 0.0, 0
        self._until = now + _FINE_S
        for at, low in points:
            self._add_point(at, low)
        self.fit(now)

    def take(self, difference: float, at: float) -> None:
        """Put one difference into the current bucket."""
        if difference < self._low:
            self._low, self._low_at = difference, at
            under = difference - self.line.offset(at)
            if under < 0.0:
                self.line = self.line._replace(offset_s=self.line.offset_s + under)
        self._sum += difference
        self._count += 1

    def bucket_over(self, now: float) -> bool:
        """Whether the current bucket is to be ended by `end_bucket`."""
        return now >= self._until

    def end_bucket(self, now: float) -> bool:
        """Close the current bucket and begin the next; True where that calls for a new `fit`."""
        self._until = now + _FINE_S
        if not self._count:
            return False
        bucket = Bucket(self._low_at, self._low, self._sum / self._count)
        self._low, self._sum, self._count = math.inf, 0.0, 0
        self._heights.append(bucket.low - self.line.offset(bucket.at))
        self._jitters.append(bucket.mean - bucket.low)
        self.recent.append(bucket)
        return self._add_point(bucket.at, bucket.low)

    def _add_point(self, at: float, low: float) -> bool:
        self._long_until = _merge(self._long, at, low, self._long_until, _LONG_S)
        before = self._coarse_until
        self._coarse_until = _merge(self._points, at, low, before, _COARSE_S)
        return self._coarse_until != before

    def fit(self, now: float) -> None:
        """Lay the line under the window that ends now; without a point it stays as it is."""
        points = self._points
        while len(points) > 1 and points[0][0] < now - self._window_s:
            points.popleft()
        if not points:
            return
        base = points[0][1]
        relative = [(at - now, low - base) for at, low in points]
        seen, trust = _slope_and_trust(relative)
        if trust < _TRUSTED:
            longer = _slope_and_trust([(at - now, low - base) for at, low in self._long])
            seen, trust = max((seen, trust), longer, key=lambda found: found[1])
        self.slope = self._slope_before + trust * (seen - self._slope_before)
        self.slope_error = _SLOPE_ERROR + (1.0 - trust) * MAX_SLOPE
        offset = base + min(y - self.slope * x for x, y in relative)
        self.line = Line(offset, self.slope, now)

    def usual_height(self, newest: int = 0) -> float:
        """What nine of ten buckets' minima stay below, in seconds over the line.

        Without the `newest` ones, which are to be judged by it.
        """
        kept = sorted(islice(self._heights, max(len(self._heights) - newest, 0)))
        return max(kept[int(0.9 * len(kept))], 0.0) if kept else 0.0

    def usual_jitter(self, newest: int) -> float:
        """The median of the buckets' mean height over their minimum, without the `newest`."""
        kept = sorted(islice(self._jitters, max(len(self._jitters) - newest, 0)))
        return kept[len(kept) // 2] if kept else 0.0
