"""The observations that were sent and not answered yet: what an answer was computed from."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["MOST_SENT", "Outstanding", "Sent"]

MOST_SENT = 1 << 14
"""Observations that are remembered: those of 16 s at 1000 ticks a second, the most there can be, by
when a server that does not answer is lost. Of most there is no answer: it takes the newest."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One observation on its way.

    Attributes:
        step: its timestep.
        measured_at: monotonic seconds of its oldest part.
        at: monotonic seconds at which it was handed over to be sent.
    """

    step: int
    measured_at: float
    at: float


class Outstanding:
    """Finds the observation behind an answer, by the timestamp that the server gives back.

    What the server says is not believed: an answer to what was not sent, or was sent to an earlier
    session, is none. The age of an action is known from here, in this computer's own clock.
    """

    def __init__(self) -> None:
        """Nothing was sent."""
        self._sent: OrderedDict[float, Sent] = OrderedDict()

    def add(self, timestamp: float, sent: Sent) -> None:
        """An observation with this timestamp is on its way."""
        self._sent[timestamp] = sent
        if len(self._sent) > MOST_SENT:
            self._sent.popitem(last=False)

    def answered(self, timestamp: float, step: int) -> Sent | None:
        """What was sent; None when nothing was. Older ones will not be answered any more."""
        found = self._sent.get(timestamp)
        if found is None or found.step != step:
            return None
        while self._sent:
            if self._sent.popitem(last=False)[0] == timestamp:
                break
        return found

    def clear(self) -> None:
        """Whatever was sent, answers to it are not wanted."""
        self._sent.clear()

    def __len__(self) -> int:
        """Observations that are remembered."""
        return len(self._sent)
