"""Time: one `now()` for this process, absolute deadlines, and the offset of other machines' clocks.

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
from statistics import median_low

__all__ = ["ClockOffset", "RateMeter", "Tick", "Ticker", "now", "to_now", "wall"]

_STEP_LASTS_S = 0.3
_LATEST_S = 10.0
_ANCHOR = time.time() - time.monotonic()
_WINDOW_MESSAGES = 4096  # over 30 s at 100 messages a second, with every delay above the last


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


class ClockOffset:
    """How far a sender's clock is behind ours, from one-way delays alone.

    Each message gives `arrival − send stamp` = offset + delay. A delay is never negative, so the
    smallest difference over a sliding window is the best bound on the offset (the idea behind
    NTP's clock filter, RFC 5905 section 10, with one direction only); the mean would add the
    network's mean delay and follow its jitter. The window lets it follow a drifting clock.

    A lone difference far from the rest is a broken stamp and is refused (or, when it is up to 10 s
    late, a late message: believed, but not for the clock); a run of them that agree among
    themselves is a clock that was set, and the estimate starts again from them.
    """

    def __init__(
        self, calibrate_after: int = 50, window_s: float = 30.0, step_s: float = 0.5
    ) -> None:
        """Settle after `calibrate_after` messages; believe a jump of over `step_s` only if kept."""
        if calibrate_after < 1:
            raise ValueError("a clock's offset needs at least one message")
        self._calibrate_after = calibrate_after
        self._window_s = window_s
        self._step_s = step_s
        self._first: list[float] = []
        # (arrival, difference), differences rising: the sliding window's minimum is at the left.
        # Bounded, so that a flood cannot grow it: then the oldest falls out before its time.
        self._window: deque[tuple[float, float]] = deque(maxlen=_WINDOW_MESSAGES)
        self._suspects: deque[float] = deque(maxlen=4 * calibrate_after)
        self._suspected_at = 0.0
        self.offset_s: float | None = None
        self.steps = 0
        self.refused = 0

    @property
    def calibrated(self) -> bool:
        """Whether the first messages are in."""
        return len(self._first) >= self._calibrate_after

    def update(self, sent: float, arrival: float) -> bool:
        """Take one message; False when its stamp is not to be believed.

        `sent` is in the sender's clock, `arrival` in ours, both in seconds.
        """
        difference = arrival - sent
        if not self.calibrated:
            self._first.append(difference)
            # The median of a few survives broken stamps among the first messages. The low one is
            # a difference that occurred, where the middle of two may lie far from both.
            middle = median_low(self._first)
            self.offset_s = min(d for d in self._first if abs(d - middle) <= self._step_s)
            if self.calibrated:
                self._window.append((arrival, self.offset_s))
            believed = abs(difference - middle) <= self._step_s
            self.refused += not believed
            return believed
        assert self.offset_s is not None
        if abs(difference - self.offset_s) > self._step_s:
            return self._suspect(difference, arrival)
        self._suspects.clear()
        while self._window and self._window[-1][1] >= difference:
            self._window.pop()
        self._window.append((arrival, difference))
        while self._window[0][0] < arrival - self._window_s:
            self._window.popleft()
        self.offset_s = self._window[0][1]
        return True

    def _suspect(self, difference: float, arrival: float) -> bool:
        if self._suspects and abs(difference - self._suspects[-1]) > self._step_s:
            self._suspects.clear()
        if not self._suspects:
            self._suspected_at = arrival
        self._suspects.append(difference)
        # A burst of old messages after a stall agrees too, but comes all at once.
        if (
            len(self._suspects) < max(self._calibrate_after // 2, 5)
            or arrival - self._suspected_at < _STEP_LASTS_S
        ):
            # One that seems to come from the future has a broken stamp. One that seems late may
            # be just that: it is good for what it holds, and says nothing of the clock.
            believed = 0.0 < difference - (self.offset_s or 0.0) <= _LATEST_S
            self.refused += not believed
            return believed
        self.offset_s = min(self._suspects)
        self._window.clear()
        self._window.append((arrival, self.offset_s))
        self._suspects.clear()
        self.steps += 1
        return True

    def to_local(self, stamp: float) -> float:
        """A stamp of the sender in our time base; as it is while nothing is known."""
        return stamp + (self.offset_s or 0.0)


class RateMeter:
    """The rate of events over the last few seconds; for one thread to feed and others to read."""

    def __init__(self, window_s: float = 2.0) -> None:
        """Average over `window_s` seconds."""
        self._window_s = window_s
        self._marks: deque[tuple[float, int]] = deque(maxlen=4096)
        self.total = 0

    def add(self, count: int = 1) -> None:
        """Count events that happened now."""
        self.total += count
        moment, marks = time.monotonic(), self._marks
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
