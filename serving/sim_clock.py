"""How the simulation's time passes while the policy thinks: by the wall clock, or stretched."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.clock import Ticker
from serving.control_values import Arrival
from serving.messages import Observation, ServingError

__all__ = ["StretchedClock", "Tick", "WallClock"]

_MOST_SENT = 256


@dataclass(frozen=True, slots=True)
class Tick:
    """A control tick: its time in seconds of the client's clock."""

    now: float


class WallClock:
    """Ticks on the wall clock; where a step of the simulation takes longer, ticks are missed."""

    def __init__(self, fps: float) -> None:
        """Tick `fps` times a second."""
        self._fps = fps

    def ticks(self, stop: threading.Event) -> Iterator[Tick]:
        """Yield ticks as they fall due until `stop` is set."""
        ticker = Ticker(self._fps, start=time.monotonic())
        for _ in ticker.ticks(stop):
            yield Tick(time.monotonic())

    def sent(self, observation: Observation, now: float) -> None:
        """An observation was sent."""

    def arrived(self, arrivals: Sequence[Arrival], now: float) -> list[Arrival]:
        """Which answers have come by now."""
        return list(arrivals)


class StretchedClock:
    """Every tick is a period after the last, however long the simulation's step took.

    Time never passes faster than on the wall clock. An answer that came so many seconds after its
    observation by the wall clock comes that many seconds after it by this one: so the policy is as
    late as it would be with a simulation that keeps up.
    """

    def __init__(self, fps: float) -> None:
        """Tick `fps` times a second of its own."""
        self._period_s = 1.0 / fps
        self._sent: dict[float, tuple[float, float]] = {}
        self._waiting: list[tuple[float, Arrival]] = []

    def ticks(self, stop: threading.Event) -> Iterator[Tick]:
        """Yield ticks until `stop` is set, none before the wall clock has come as far."""
        now = due_at = time.monotonic()
        while not stop.is_set():
            while (left := due_at - time.monotonic()) > 0:
                if stop.wait(left):
                    return
            # What was lost is lost: the next is due a period from here.
            due_at = max(due_at, time.monotonic() - self._period_s) + self._period_s
            yield Tick(now)
            now += self._period_s

    def sent(self, observation: Observation, now: float) -> None:
        """An observation was sent at `now` by this clock."""
        self._sent[observation.timestamp] = (time.monotonic(), now)
        if len(self._sent) > _MOST_SENT:
            del self._sent[next(iter(self._sent))]

    def arrived(self, arrivals: Sequence[Arrival], now: float) -> list[Arrival]:
        """Which answers have come by `now`, with their times by this clock."""
        for arrival in arrivals:
            reply, at = arrival.reply, now
            # Refusals do not say of what they are, and what was never sent is the loop's business.
            known = None if isinstance(reply, ServingError) else self._sent.get(reply.timestamp)
            if known is not None:
                sent_wall, sent_now = known
                at = sent_now + arrival.at - sent_wall
            self._waiting.append((at, Arrival(reply, at)))
        came = [arrival for at, arrival in self._waiting if at <= now]
        self._waiting = [item for item in self._waiting if item[0] > now]
        return came
