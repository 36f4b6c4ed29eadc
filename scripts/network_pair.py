"""One connection through the proxy: a client's socket, ours to the target, a lane each way."""

from __future__ import annotations

import contextlib
import errno
import math
import selectors
import socket
import struct
from random import Random
from typing import Any

from scripts.network_lane import Lane, Network

__all__ = ["Pair", "Side"]

_READ = 1 << 18
_BUFFER = 8 << 20
"""Bytes that may be under way in one direction: 8 MiB fill 100 ms at 80 MB/s."""
_RST = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST instead of FIN


class Side:
    """One socket of a connection, and the lane that leads from it to the other socket.

    Attributes:
        ready: it is connected.
        blocked: it took no more bytes when last written to.
        events: what the selector watches it for.
        pair: the connection that it belongs to.
    """

    def __init__(self, sock: socket.socket, lane: Lane, pair: Pair) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.lane = lane
        self.pair = pair
        self.ready = True
        self.blocked = False
        self.events = 0


class Pair:
    """A client's connection and ours to the target. ConnectionError from a method: reset it."""

    def __init__(
        self, accepted: socket.socket, family: socket.AddressFamily, target: Any, name: str
    ) -> None:
        """Begin to connect to `target` for the client that was accepted; `name` seeds chance."""
        self.client = Side(accepted, Lane(Random(f"{name}/up"), _BUFFER), self)
        outgoing = socket.socket(family, socket.SOCK_STREAM)
        self.target = Side(outgoing, Lane(Random(f"{name}/down"), _BUFFER), self)
        self.target.ready = False
        self.failed = outgoing.connect_ex(target) not in (0, errno.EINPROGRESS)

    @property
    def sides(self) -> tuple[tuple[Side, Side], tuple[Side, Side]]:
        """Source and destination of each direction."""
        return ((self.client, self.target), (self.target, self.client))

    @property
    def stalls(self) -> int:
        """Segments lost both ways."""
        return self.client.lane.stalls + self.target.lane.stalls

    @property
    def finished(self) -> bool:
        """Both ways are at their ends."""
        return self.client.lane.finished and self.target.lane.finished

    @property
    def next_at(self) -> float:
        """When something may be sent next; infinite where the time is not what it waits for."""
        return min(
            (s.lane.next_at for s, other in self.sides if other.ready and not other.blocked),
            default=math.inf,
        )

    def handle(self, side: Side, events: int, network: Network, now: float) -> None:
        """What the selector said of one of the two sockets."""
        if events & selectors.EVENT_WRITE:
            if not side.ready and side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise ConnectionError("the target does not answer")
            side.ready, side.blocked = True, False
        if events & selectors.EVENT_READ and side.ready and side.lane.room:
            with contextlib.suppress(BlockingIOError):
                data = side.sock.recv(min(side.lane.room, _READ))
                side.lane.take(data, network, now)

    def forward(self, now: float) -> None:
        """Send what is due both ways."""
        for side, other in self.sides:
            while other.ready and not other.blocked:
                piece = side.lane.due(now)
                if piece is None:
                    break
                try:
                    if piece:
                        side.lane.sent(other.sock.send(piece))
                    else:
                        side.lane.sent(0)
                        other.sock.shutdown(socket.SHUT_WR)
                except BlockingIOError:
                    other.blocked = True

    def watch(self, selector: selectors.BaseSelector, cut: bool) -> None:
        """Ask the selector for what the sockets can be used for now; nothing while cut."""
        for side, _ in self.sides:
            wanted = 0
            if not cut and side.ready and side.lane.room:
                wanted |= selectors.EVENT_READ
            if not cut and (side.blocked or not side.ready):
                wanted |= selectors.EVENT_WRITE
            if wanted == side.events:
                continue
            if not side.events:
                selector.register(side.sock, wanted, side)
            elif not wanted:
                selector.unregister(side.sock)
            else:
                selector.modify(side.sock, wanted, side)
            side.events = wanted

    def close(self, selector: selectors.BaseSelector, *, reset: bool) -> None:
        """Let go of both sockets, with RST to both ends where `reset`."""
        self.watch(selector, cut=True)
        for side, _ in self.sides:
            if reset:
                with contextlib.suppress(OSError):
                    side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            side.sock.close()
