"""Answers senders that ask for the time, and hands what they report to their clocks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from common import endpoints, wire
from common.clock import now
from common.clock_offset import ClockOffset
from common.counters import MalformedCounters
from common.wire import MalformedMessage, TimeReply, TimeRequest
from receiver.sockets import bind_or_fail

__all__ = ["Clocks", "TimeServer"]

_POLL_MS = 100
_MAX_PARTS = 4
_MAX_PEERS = 64
_KEPT_EACH = 16
_LONGEST_S = 10.0

Clocks = Callable[[str, Sequence[str]], Sequence[ClockOffset]]
"""The clocks that a source (`robot`, `camera`, `sensor`) with these camera names stamps by."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was answered, kept until the sender says when it got it."""

    sent_at: float
    received_at: float
    replied_at: float


class TimeServer:
    """Four timestamps: t0 sender out, t1 here in, t2 here out, t3 sender in.

    t0 and t3 are the sender's word; t1 and t2 are remembered here and never taken from a message.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        bind: str,
        port: int,
        clocks: Clocks,
        counters: MalformedCounters,
    ) -> None:
        """Bind the ROUTER socket; InputError when the port is taken."""
        sock = context.socket(zmq.ROUTER)
        sock.setsockopt(zmq.RCVHWM, 100)
        sock.setsockopt(zmq.SNDHWM, endpoints.TIME.hwm)
        # A peer that announces more than this is disconnected before anything is allocated.
        sock.setsockopt(zmq.MAXMSGSIZE, wire.MAX_TIME)
        bind_or_fail(sock, bind, port, "the time exchange")
        self._socket = sock
        self._clocks, self._counters = clocks, counters
        # The peer that spoke last is last; the one silent for longest is forgotten first.
        self._peers: OrderedDict[bytes, OrderedDict[int, _Answer]] = OrderedDict()
        self.answered = 0
        self.exchanges = 0

    def run(self, stop: threading.Event) -> None:
        """Answer until `stop` is set, then close the socket."""
        try:
            while not stop.is_set():
                if not self._socket.poll(_POLL_MS):
                    continue
                parts, received_at = self._receive(), now()
                try:
                    self._take(parts, received_at)
                except MalformedMessage as error:
                    self._counters.add(error)
        finally:
            self._socket.close(linger=0)

    def _receive(self) -> list[bytes]:
        """One message, of which no more than a few parts are kept."""
        parts = [self._socket.recv()]
        while self._socket.getsockopt(zmq.RCVMORE):
            part = self._socket.recv()
            if len(parts) < _MAX_PARTS:
                parts.append(part)
        return parts

    def _take(self, parts: list[bytes], received_at: float) -> None:
        peer, *frames = parts
        # A REQ socket puts an empty frame before its message, and wants it back.
        envelope = [peer, b""] if len(frames) > 1 and not frames[0] else [peer]
        request = wire.decode_time_request(parts[len(envelope) :])
        if request.answered_seq is not None:
            self._conclude(peer, request)
        if request.seq is not None and request.sent_at is not None:
            self._answer(envelope, request.seq, request.sent_at, received_at)

    def _answer(self, envelope: list[bytes], seq: int, sent_at: float, received_at: float) -> None:
        replied_at = now()
        reply = wire.encode_time_reply(TimeReply(seq, received_at, replied_at))
        try:
            self._socket.send_multipart([*envelope, reply], zmq.NOBLOCK)
        except zmq.ZMQError:  # a peer that takes no answers, or is gone
            return
        self.answered += 1
        given = self._peers.setdefault(envelope[0], OrderedDict())
        self._peers.move_to_end(envelope[0])
        given[seq] = _Answer(sent_at, received_at, replied_at)
        if len(given) > _KEPT_EACH:
            given.popitem(last=False)
        if len(self._peers) > _MAX_PEERS:
            self._peers.popitem(last=False)

    def _conclude(self, peer: bytes, request: TimeRequest) -> None:
        given = self._peers.get(peer)
        if given is None or request.answered_seq is None or request.answered_at is None:
            return
        answer = given.pop(request.answered_seq, None)
        if answer is None:
            return
        there_s = answer.received_at - answer.sent_at
        back_s = answer.replied_at - request.answered_at
        delay_s = there_s - back_s
        # Below zero where the sender's clock was set meanwhile.
        if not 0.0 <= delay_s <= _LONGEST_S:
            return
        self.exchanges += 1
        middle = 0.5 * (answer.received_at + answer.replied_at)
        for clock in self._clocks(request.source, request.names):
            clock.exchanged(0.5 * (there_s + back_s), delay_s, middle)
