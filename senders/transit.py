"""Tells messages that were held up on their way from those that came as fast as they can."""

from __future__ import annotations

__all__ = ["Transit"]

_DRIFT = 1e-4
"""Seconds a second that two machines' clocks may drift apart; quartz keeps to less."""


class Transit:
    """Watches `arrival − stamp` (clock offset + delay) of one sender's messages.

    The least difference ever seen belongs to a message that was not held up. What exceeds it by
    more than the allowed delay was, for as long as that lasts: a queue on the way may stand for
    hours. Only stamps that went back tell that the sender's clock was set: on one connection
    messages keep their order, so that no delay can do that.
    """

    def __init__(self, max_delay_s: float, believe_after_s: float = 2.0) -> None:
        """Allow `max_delay_s` over the least; follow a clock set back after `believe_after_s`."""
        self._max_delay_s, self._believe_after_s = max_delay_s, believe_after_s
        self._least: float | None = None
        self._seen_at = 0.0
        self._stamp: float | None = None
        self._late_since: float | None = None
        self._set_back = False
        self.late_s = 0.0
        """By how much the newest message was later than the fastest one."""

    def late_for_s(self, arrival: float) -> float:
        """Seconds since when all messages have been too late; 0.0 while they are not."""
        return 0.0 if self._late_since is None else arrival - self._late_since

    def on_time(self, stamp: float, arrival: float) -> bool:
        """Take one message: its stamp by the sender's clock, its arrival by ours, in seconds."""
        before, self._stamp = self._stamp, stamp
        if before is not None and stamp < before - self._max_delay_s:
            self._set_back = True
        if self._set_back and self.late_for_s(arrival) > self._believe_after_s:
            self._least = None
        difference = arrival - stamp
        if self._least is not None:
            self._least += _DRIFT * max(arrival - self._seen_at, 0.0)
            self.late_s = max(difference - self._least, 0.0)
            if self.late_s > self._max_delay_s:
                self._late_since = arrival if self._late_since is None else self._late_since
                self._seen_at = arrival
                return False
        self._least = difference if self._least is None else min(self._least, difference)
        self._seen_at, self._late_since, self._set_back = arrival, None, False
        return True
