"""Time: one `now()` for this process, absolute deadlines, and rates.

Intervals and deadlines come from the monotonic clock. The wall clock is read when the module is
imported and never again here: `now()` counts UNIX seconds from there on the monotonic clock, so
that it never steps, and a time point of this process can still be written into a file.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["RateMeter", "Tick", "Ticker", "now", "to_now", "wall"]

_ANCHOR = time.time() - time.monotonic()


def now() -> float:
    """UNIX seconds on the monotonic clock: the time base of everything inside this process."""
    return _ANCHOR + time.monotonic()


def to_now(monotonic_s: float) -> float:
    """A time point of `time.monotonic()` in the time base of `now()`."""
    return _ANCHOR + monotonic_s


def wall() -> float:
    """The wall clock in UNIX seconds, for stamps on the wire."""
    return time.time()


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick of a clock.

    Attributes:
        index: position on the grid, counted from 0; missed ticks are left out.
        deadline: when it was due, in seconds of `time.monotonic()`.
        lateness_s: how much later than that it began.
        skipped: ticks missed just before it.
    """

    index: int
    deadline: float
    lateness_s: float
    skipped: int


class Ticker:
    """A fixed clock: tick k is due at start + k / rate, and no error adds up.

    A tick that could not begin before the next one was due is missed: it is counted and left out,
    and the clock goes on with the next on the grid rather than in a burst.
    """

    def __init__(self, rate_hz: float, start: float | None = None) -> None:
        """Tick at `rate_hz` from `start` (monotonic seconds; one period from now by default)."""
        if not 0 < rate_hz < math.inf:
            raise ValueError(f"a rate must be above 0 Hz and finite, not {rate_hz}")
        self.period_s = 1.0 / rate_hz
        self.start = time.monotonic() + self.period_s if start is None else start

    def ticks(self, stop: threading.Event) -> Iterator[Tick]:
        """Yield ticks as they fall due until `stop` is set."""
        index, skipped = 0, 0
        while True:
            deadline = self.start + index * self.period_s
            # An event's wait is the sleep: it ends at the deadline or when there is a stop.
            while (left := deadline - time.monotonic()) > 0:
                if stop.wait(left):
                    return
            if stop.is_set():
                return
            late = time.monotonic() - deadline
            if late >= self.period_s:
                missed = int(late / self.period_s)
                index, skipped = index + missed, skipped + missed
                continue
            yield Tick(index, deadline, late, skipped)
            index, skipped = index + 1, 0


class RateMeter:
    """The rate of events over the last few seconds; for one thread to feed and others to read."""

    def __init__(self, window_s: float = 2.0) -> None:
        """Average over `window_s` seconds."""
        self._window_s = window_s
        self._marks: deque[tuple[float, int]] = deque(maxlen=4096)
        self.total = 0

    def add(self, count: int = 1, at: float | None = None) -> None:
        """Count events of now, or of a moment of `now()` that is no earlier than those before."""
        self.total += count
        moment, marks = time.monotonic() if at is None else at - _ANCHOR, self._marks
        while marks and marks[0][0] < moment - self._window_s:
            marks.popleft()
        marks.append((moment, self.total))

    def rate_hz(self) -> float:
        """Events a second over the window that ends now; 0 when there were none."""
        current = time.monotonic()
        recent = [m for m in tuple(self._marks) if m[0] >= current - self._window_s]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return 0.0
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
