"""What exchanges of four timestamps say of a sender's clock: offset and delay apart.

An exchange bounds the offset from both sides, since no delay is negative: it is at most what the
way to us shows (offset + delay there) and at least what the way back does (offset − delay back).
The tightest bounds of a window leave the two least delays between them. Where these are alike, the
middle is the offset; where not, it is off by half of their difference at most, which nothing in the
stamps can tell (RFC 5905, section 8). NTP's filter takes the exchange with the least round trip;
the least of each direction is at least as tight, for they need not meet in one exchange.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Bounds", "Exchange", "TwoWay"]

_WINDOW_S = 60.0
_KEPT = 128
_TOLERANCE_S = 0.002
_CONFIRM, _GIVE_IN_S = 2, 30.0
_SHORTLY_S = 1.0
_ENOUGH = 4


class Exchange(NamedTuple):
    """One exchange: what it says of the offset (seconds), and the moment of our clock it is for."""

    offset_s: float
    delay_s: float
    at: float


class Bounds(NamedTuple):
    """The offset is within [low_s, high_s]."""

    low_s: float
    high_s: float

    @property
    def middle_s(self) -> float:
        """The offset if both ways take equally long at least."""
        return 0.5 * (self.low_s + self.high_s)

    @property
    def width_s(self) -> float:
        """The least delay there and back."""
        return self.high_s - self.low_s


class TwoWay:
    """A sliding window of exchanges; bounded, and cleared by exchanges that contradict it."""

    def __init__(self, largest_s: float) -> None:
        """Believe by exchanges alone that a clock was set by up to `largest_s`."""
        self._largest_s = largest_s
        self._kept: deque[Exchange] = deque(maxlen=_KEPT)
        self._against: deque[Exchange] = deque(maxlen=16)
        self._not_before = -math.inf

    @property
    def last_at(self) -> float | None:
        """The moment of the newest exchange, None without one."""
        return self._kept[-1].at if self._kept else None

    @property
    def in_doubt(self) -> bool:
        """Whether the newest exchanges contradict those before."""
        return len(self._against) >= _CONFIRM

    def clear(self, since: float) -> None:
        """Forget all exchanges from before `since`, those that are still to come too."""
        self._not_before = since
        later = [e for e in (*self._kept, *self._against) if e.at >= since]
        self._kept.clear()
        self._kept.extend(later)
        self._against.clear()

    def add(self, exchange: Exchange, slope: float, slope_error: float) -> float | None:
        """Take one exchange; how far the offset moved when two in a row say that the clock was set.

        `slope` is the drift and `slope_error` how well it is known. A large step must be seen in
        the messages, too: until then there is doubt.
        """
        kept, against, now = self._kept, self._against, exchange.at
        if now < self._not_before:
            return None
        while kept and kept[0].at < now - _WINDOW_S:
            kept.popleft()
        if not kept:
            kept.append(exchange)
            return None
        before, new = _bounds(kept, slope, now), _bounds([exchange], slope, now)
        # Drift that is not known yet may be the reason, which grows with the time passed.
        allowed = _TOLERANCE_S + slope_error * (now - kept[0].at)
        if new.low_s <= before.high_s + allowed and new.high_s >= before.low_s - allowed:
            against.clear()
            kept.append(exchange)
            return None
        against.append(exchange)
        if len(against) < _CONFIRM:
            return None
        again = _bounds(against, slope, now)
        moved_s = again.middle_s - before.middle_s
        # A few exchanges on a slow link say little of where the clock is now: then more are needed.
        small = 0.5 * again.width_s < abs(moved_s) <= self._largest_s
        if small or now - against[0].at > _GIVE_IN_S:
            kept.clear()
            kept.extend(against)
            against.clear()
        return moved_s if small else None

    def bounds(self, slope: float, now: float) -> Bounds | None:
        """What all exchanges of the window say of the offset at `now`; None where they are few."""
        return _bounds(self._kept, slope, now) if len(self._kept) >= _ENOUGH else None

    def moved(self, since: float, slope: float, now: float) -> tuple[float, float] | None:
        """By how much the offset, and the round trip, changed shortly before `since`, in seconds.

        None unless there are exchanges from before and after.
        """
        before = [e for e in self._kept if e.at < since - _SHORTLY_S]
        after = [e for e in (*self._kept, *self._against) if e.at >= since]
        if not before or not after:
            return None
        old, new = _bounds(before, slope, now), _bounds(after, slope, now)
        return new.middle_s - old.middle_s, new.width_s - max(old.width_s, 0.0)


def _bounds(exchanges: Iterable[Exchange], slope: float, now: float) -> Bounds:
    low, high = float("-inf"), float("inf")
    for offset_s, delay_s, at in exchanges:
        current = offset_s + slope * (now - at)
        low, high = max(low, current - 0.5 * delay_s), min(high, current + 0.5 * delay_s)
    return Bounds(low, high)
