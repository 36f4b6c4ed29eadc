"""What a network does to one direction of a TCP connection: delay, jitter, loss. No socket here."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from random import Random

__all__ = ["MIN_RTO_S", "SEGMENT", "Lane", "Network"]

MIN_RTO_S = 0.2
"""Shortest retransmission time of TCP, seconds: RFC 6298 (2.4) asks for 1 s; Linux and others use
200 ms (TCP_RTO_MIN), which is what the robots and servers meant here run."""
SEGMENT = 1448
"""Bytes of one segment: Ethernet's 1500 less the headers of IPv4 and TCP with timestamps."""
_MOST_BACKOFFS = 6


@dataclass(frozen=True, slots=True)
class Network:
    """How a network treats what goes through it.

    Attributes:
        delay_s: one-way delay, seconds.
        jitter_s: the delay of each piece is uniform within `delay_s` ± `jitter_s`, never below 0.
            TCP delivers in order, so one that would overtake waits for the one before it.
        loss: chance that a segment (1448 bytes) is lost. TCP hides that as a wait: the segment
            comes one retransmission time later (200 ms; RFC 6298, 5.5: twice as long each time it
            is lost again), and with it all that is behind it. Fast retransmission, by which a long
            stream on a short path recovers sooner, is left out: this is the worse case, and the
            usual one of a short message whose last segment is lost.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        """ValueError for what no network does."""
        for name, value in (("delay", self.delay_s), ("jitter", self.jitter_s)):
            if not (math.isfinite(value) and 0.0 <= value <= 60.0):
                raise ValueError(f"the {name} must be from 0 to 60 s, not {value:g}")
        if not 0.0 <= self.loss < 1.0:
            raise ValueError(f"loss is a share from 0 to below 1, not {self.loss:g}")


@dataclass(slots=True)
class Lane:
    """One direction of one connection: bytes with the time at which they may go on.

    Attributes:
        random: where jitter and losses come from.
        most: bytes that may wait; the source is not read beyond it, as a full window of TCP.
        waiting: bytes that wait.
        stalls: segments lost so far.
        forwarded: bytes that have gone on.
        ended: the source said that it is at its end.
        finished: the end has gone on too.
    """

    random: Random
    most: int
    waiting: int = 0
    stalls: int = 0
    forwarded: int = 0
    ended: bool = False
    finished: bool = False
    _pieces: deque[tuple[float, memoryview]] = field(default_factory=deque)
    _last_at: float = -math.inf
    _until_loss: int = -1
    _loss: float = 0.0

    @property
    def room(self) -> int:
        """How many bytes may still be taken."""
        return 0 if self.ended else max(0, self.most - self.waiting)

    def take(self, data: bytes, network: Network, now: float) -> None:
        """Bytes that came from the source; b"" is its end, which is not lost but waits its turn."""
        if not data:
            self.ended = True
            self._add(memoryview(b""), network, now)
            return
        rest = memoryview(data)
        while rest:
            before = self._before_loss(len(rest), network.loss)
            if before:
                self._add(rest[:before], network, now)
            rest = rest[before:]
            if rest:  # the segment that begins here is lost
                self.stalls += 1
                self._until_loss = -1
                self._add(rest[:SEGMENT], network, now + self._retransmitted_s(network.loss))
                rest = rest[SEGMENT:]

    def _before_loss(self, size: int, loss: float) -> int:
        """How many of `size` bytes go through before one is lost; counts segments on the way."""
        if loss <= 0.0:
            return size
        if self._until_loss < 0 or self._loss != loss:
            # Segments until one is lost follow a geometric distribution: one draw a loss.
            draw = math.log(1.0 - self.random.random()) / math.log1p(-loss)
            self._until_loss, self._loss = int(min(draw, 1e12)), loss
        segments = -(-size // SEGMENT)
        if segments <= self._until_loss:
            self._until_loss -= segments
            return size
        return self._until_loss * SEGMENT

    def _retransmitted_s(self, loss: float) -> float:
        waited, timeout = MIN_RTO_S, MIN_RTO_S
        for _ in range(_MOST_BACKOFFS):
            if self.random.random() >= loss:
                break
            timeout *= 2
            waited += timeout
        return waited

    def _add(self, piece: memoryview, network: Network, now: float) -> None:
        jitter = self.random.uniform(-network.jitter_s, network.jitter_s)
        self._last_at = max(self._last_at, now + max(0.0, network.delay_s + jitter))
        self._pieces.append((self._last_at, piece))
        self.waiting += len(piece)

    @property
    def next_at(self) -> float:
        """When the next piece may go on; infinite while nothing waits."""
        return self._pieces[0][0] if self._pieces else math.inf

    def due(self, now: float) -> memoryview | None:
        """The piece that may go on now, empty for the end; None when there is none."""
        return self._pieces[0][1] if self._pieces and self._pieces[0][0] <= now else None

    def sent(self, count: int) -> None:
        """`count` bytes of the first piece have gone on (0: the end has)."""
        at, piece = self._pieces.popleft()
        self.waiting -= count
        self.forwarded += count
        if count < len(piece):
            self._pieces.appendleft((at, piece[count:]))
        elif not piece:
            self.finished = True
