"""Tells messages that were held up on their way from those that came as fast as they can."""

from __future__ import annotations

__all__ = ["Transit"]

_DRIFT = 1e-4
"""Seconds a second that two machines' clocks may drift apart; quartz keeps to less."""


class Transit:
    """Watches `arrival − stamp` (clock offset + delay) of one sender's messages.

    The least difference ever seen belongs to a message that was not held up. What exceeds it by
    more than the allowed delay was; unless it goes on for so long that it must be the clock that
    was set. A queue that empties in a burst does not take long, so it is never mistaken for that.
    """

    def __init__(self, max_delay_s: float, believe_after_s: float = 2.0) -> None:
        """Allow `max_delay_s` over the least; give in after `believe_after_s` without one."""
        self._max_delay_s, self._believe_after_s = max_delay_s, believe_after_s
        self._least: float | None = None
        self._seen_at = 0.0
        self._late_since: float | None = None

    def on_time(self, stamp: float, arrival: float) -> bool:
        """Take one message: its stamp by the sender's clock, its arrival by ours, in seconds."""
        difference = arrival - stamp
        if self._late_since is not None and arrival - self._late_since > self._believe_after_s:
            self._least = None
        if self._least is not None:
            self._least += _DRIFT * max(arrival - self._seen_at, 0.0)
            if difference > self._least + self._max_delay_s:
                self._late_since = arrival if self._late_since is None else self._late_since
                self._seen_at = arrival
                return False
        self._least = difference if self._least is None else min(self._least, difference)
        self._seen_at, self._late_since = arrival, None
        return True
