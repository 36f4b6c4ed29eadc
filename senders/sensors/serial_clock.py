"""When samples were taken that a serial port delivers in bursts; pure, with time as an argument."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.clock import wall

__all__ = ["DeviceTime", "SampleClock", "WallOffset"]

_POINT_EVERY_S = 0.125
_POINTS = 64
_FIT_FROM_S = 0.25
_FAR_S = 0.1
_UNKNOWN_FAR_S = 1.0
_SETTLE_S = 0.05
_LEAST_STEP_S = 2e-6  # UNIX seconds in float64 are 0.24 µs apart
_LONGEST_GAP_S = 10.0
_SLOPES = (0.25, 4.0)


class DeviceTime:
    """Seconds of the device's own clock, from what it counts or, without that, from counting."""

    def __init__(self, period_s: float, tick_s: float = 0.0, wrap: float = 0.0) -> None:
        """One sample every `period_s`; a tick lasts `tick_s`, 0 for ticks that count samples.

        `wrap` is where the ticks begin again at 0, 0 if they never do.
        """
        self._period_s, self._wrap = period_s, wrap
        self._tick_s = tick_s or period_s
        self._counts_samples = not tick_s
        self._last: float | None = None
        self._seconds = 0.0
        self.lost = 0
        self.repeated = 0
        self.restarts = 0

    def begin_again(self) -> None:
        """Forget the last tick: the device may have started anew."""
        self._last = None

    def advance(self, ticks: Sequence[float]) -> NDArray[np.float64]:
        """(N,) seconds of the samples with these (N,) ticks, NaN for a tick that is not known.

        The seconds never fall; NaN stands for a sample that the device delivered twice. Ticks
        that fall back or leap by over 10 s are a device that began again: one period is assumed.
        """
        seconds = np.empty(len(ticks))
        for row, tick in enumerate(ticks):
            step = self._step(tick)
            self._seconds += step or 0.0
            seconds[row] = math.nan if step is None else self._seconds
        return seconds

    def _step(self, tick: float) -> float | None:
        if not math.isfinite(tick):
            return self._period_s
        last, self._last = self._last, tick
        if last is None:
            return self._period_s
        passed = (tick - last) % self._wrap if self._wrap else tick - last
        if passed == 0 and self._counts_samples:
            self.repeated += 1
            return None
        step = passed * self._tick_s
        if not 0 <= step <= _LONGEST_GAP_S:
            self.restarts += 1
            return self._period_s
        self.lost += max(round(step / self._period_s) - 1, 0)
        return step


class SampleClock:
    """Puts samples on the line `arrival = a + r · device time` that no arrival lies below.

    A delay is never negative, so the true line lies under all arrivals, and the best guess is the
    highest one that does: least Σ (arrival − line), which is the support of the arrivals' lower
    hull at their mean (Moon, Skelly and Towsley, Estimation and removal of clock skew from network
    delay measurements, INFOCOM 1999). Late bursts cannot pull it, as they would pull a mean. It is
    fitted to the last 8 s, one arrival (the least delayed) for each 1/8 s, so that it follows a
    device's clock and costs little. The stamps approach a new line with a time constant of 50 ms.

    Where arrivals and line are 0.1 s apart (the device paused, or samples were lost uncounted), the
    line starts again at the arrival.
    """

    def __init__(self, period_s: float) -> None:
        """Samples are expected `period_s` apart; what is true is learnt from the arrivals."""
        self._period_s = period_s
        self._points: deque[tuple[float, float]] = deque(maxlen=_POINTS)
        self._point_until = 0.0
        self._slope, self._origin, self._base = 1.0, 0.0, 0.0
        self._learnt = False
        self._last: tuple[float, float] | None = None  # device seconds, stamp
        self.steps = 0

    @property
    def rate_hz(self) -> float | None:
        """Samples a second as they really come; None until some seconds have been seen."""
        if len(self._points) < _POINTS // 2:
            return None
        return 1.0 / (self._period_s * self._slope)

    def stamp(
        self, seconds: NDArray[np.float64], arrival: float, *, drained: bool
    ) -> NDArray[np.float64]:
        """(N,) time stamps, in seconds of `arrival`'s clock, for (N,) device seconds, N ≥ 1.

        `drained`: nothing was left in the port, so the last of them has only just come. Stamps
        rise strictly, and lie at most half a period after `arrival` (and 2 µs for each sample).
        """
        self._observe(float(seconds[-1]), arrival, drained)
        stamps = self._line(seconds)
        least = -math.inf
        if self._last is not None:
            before, least = self._last
            shift = least - float(self._line(np.float64(before)))
            if abs(shift) < _FAR_S:
                stamps = stamps + shift * np.exp((before - seconds) / _SETTLE_S)
        stamps = np.minimum(stamps, arrival + self._period_s / 2)
        ramp = _LEAST_STEP_S * np.arange(1, len(stamps) + 1)
        stamps = np.maximum(np.maximum.accumulate(stamps - ramp), least) + ramp
        self._last = float(seconds[-1]), float(stamps[-1])
        return np.asarray(stamps)

    def _line(self, seconds: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
        return np.asarray(self._base + self._slope * (seconds - self._origin))

    def _observe(self, seconds: float, arrival: float, drained: bool) -> None:
        late = arrival - float(self._line(np.float64(seconds)))
        far = max(_FAR_S if self._learnt else _UNKNOWN_FAR_S, 3 * self._period_s)
        if not self._points or late < -far or (drained and late > far):
            self.steps += bool(self._points)
            self._points.clear()
            self._add(seconds, arrival)
            self._origin, self._base = seconds, arrival
        elif arrival >= self._point_until:
            self._add(seconds, arrival)
            self._fit()
        else:
            known_seconds, known_arrival = self._points[-1]
            if late < known_arrival - float(self._line(np.float64(known_seconds))):
                self._points[-1] = seconds, arrival
            if late < -self._period_s / 4:
                self._fit()

    def _add(self, seconds: float, arrival: float) -> None:
        if not self._points or seconds > self._points[-1][0]:
            self._points.append((seconds, arrival))
        self._point_until = arrival + _POINT_EVERY_S

    def _fit(self) -> None:
        if len(self._points) > 1 and self._points[-1][1] - self._points[0][1] >= _FIT_FROM_S:
            self._slope = min(max(_slope_below(self._points), _SLOPES[0]), _SLOPES[1])
            self._learnt = True
        # The line through the point that is least delayed: none lies below it.
        self._origin, self._base = min(self._points, key=lambda p: p[1] - self._slope * p[0])


def _slope_below(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the lower hull of points (x rising) where their mean x lies under it."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) >= 2:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                break
            hull.pop()
        hull.append((x, y))
    middle = sum(x for x, _ in points) / len(points)
    right = next((n for n, (x, _) in enumerate(hull) if x >= middle and n), len(hull) - 1)
    (x0, y0), (x1, y1) = hull[right - 1 : right + 1]
    return (y1 - y0) / (x1 - x0)


class WallOffset:
    """What to add to monotonic seconds for wall-clock ones; follows a wall clock that is set."""

    _STEP_S = 1e-3
    _QUICK_S = 50e-6

    def __init__(self) -> None:
        """Look at both clocks."""
        self._offset_s = wall() - time.monotonic()
        self.seconds()

    def seconds(self) -> float:
        """The offset now. Both clocks run alike, so that only a step of over 1 ms is followed."""
        before = time.monotonic()
        offset_s = wall() - before
        # Interrupted between the two clocks, the difference says nothing.
        quick = time.monotonic() - before < self._QUICK_S
        if quick and abs(offset_s - self._offset_s) > self._STEP_S:
            self._offset_s = offset_s
        return self._offset_s
