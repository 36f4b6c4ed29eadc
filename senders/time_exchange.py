"""Asks the receiver for the time now and then, so that it can tell this clock's offset from delay.

A thread of its own with a socket of its own: it disturbs no sending, and a receiver that does not
answer costs nothing but a question every few seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import zmq

from common import endpoints, wire
from common.clock import wall
from common.wire import MAX_NAMES, MAX_TIME, MalformedMessage, TimeRequest

__all__ = ["TimeExchange", "exchanging_time"]

logger = logging.getLogger("senders.time")

_BURST, _BURST_S = 8, 0.1
_AGAIN = 4
_EVERY_S = 1.0 / endpoints.TIME.rate_hz
_SILENT_S = 5.0
_TIMEOUT_S = 1.0
_UNANSWERED = 5
_WATCH_S = 0.1
_SET_S = 0.002
_LEAVE_S = 1.0


def _connected(context: zmq.Context[zmq.Socket[bytes]], host: str, port: int) -> zmq.Socket[bytes]:
    sock = context.socket(zmq.DEALER)
    options = {
        zmq.LINGER: 0,
        # A question that cannot leave at once is not sent: its stamp would be old.
        zmq.IMMEDIATE: 1,
        zmq.SNDHWM: endpoints.TIME.hwm,
        zmq.RCVHWM: endpoints.TIME.hwm,
        zmq.MAXMSGSIZE: MAX_TIME,
        zmq.RECONNECT_IVL: 100,
        zmq.RECONNECT_IVL_MAX: 1000,
        zmq.HEARTBEAT_IVL: 1000,
        zmq.HEARTBEAT_TIMEOUT: 3000,
        zmq.IPV6: int(":" in host),
    }
    for option, value in options.items():
        sock.setsockopt(option, value)
    try:
        sock.connect(endpoints.address(host, port))
    except zmq.ZMQError:
        sock.close()
        raise
    return sock


class TimeExchange:
    """The client: some questions at the start, then one every half second, for as long as it runs.

    After five questions without an answer it asks every 5 s only; when an answer comes, or this
    machine's clock was set, it asks some in a row again.
    """

    def __init__(
        self,
        host: str,
        port: int,
        source: str,
        names: Sequence[str] = (),
        clock: Callable[[], float] = wall,
    ) -> None:
        """Ask the receiver at `host`; `clock` is what stamps the source's messages."""
        self._host, self._port = host, port
        self._source, self._names, self._clock = source, tuple(names[:MAX_NAMES]), clock
        self._seq = 0
        self._unanswered = 0
        self._burst = _BURST
        self.answers = 0

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set."""
        # A context of its own: a program that ends its context waits for every socket in it.
        with zmq.Context() as context, _connected(context, self._host, self._port) as sock:
            ahead_s = self._ahead_s()
            while not stop.is_set():
                self._exchange(sock, stop)
                until = time.monotonic() + self._pause_s()
                while (left := until - time.monotonic()) > 0 and not stop.wait(min(left, _WATCH_S)):
                    before, ahead_s = ahead_s, self._ahead_s()
                    if abs(ahead_s - before) > _SET_S:
                        self._burst = max(self._burst, _AGAIN)
                        break

    def _ahead_s(self) -> float:
        """How far the clock is ahead of the monotonic one, which nobody sets."""
        return self._clock() - time.monotonic()

    def _pause_s(self) -> float:
        if self._unanswered >= _UNANSWERED:
            return _SILENT_S
        if self._burst > 0:
            self._burst -= 1
            return _BURST_S
        return _EVERY_S

    def _exchange(self, sock: zmq.Socket[bytes], stop: threading.Event) -> None:
        self._seq += 1
        asked = TimeRequest(self._source, self._names, self._seq, self._clock())
        try:
            sock.send(wire.encode_time_request(asked), zmq.NOBLOCK)
        except zmq.Again:
            self._unanswered += 1
            return
        answered_at = self._answer(sock, stop)
        if answered_at is None:
            self._unanswered += 1
            return
        if self._unanswered >= _UNANSWERED:
            self._burst = _BURST  # the receiver is new, or was away
        self._unanswered = 0
        self.answers += 1
        report = TimeRequest(
            self._source, self._names, answered_seq=self._seq, answered_at=answered_at
        )
        try:
            sock.send(wire.encode_time_request(report), zmq.NOBLOCK)
        except zmq.Again:
            pass
        if self.answers == 1:
            logger.info("[TIME] the receiver at %s:%d answers", self._host, self._port)

    def _answer(self, sock: zmq.Socket[bytes], stop: threading.Event) -> float | None:
        """When the answer to the newest question came in, by our clock; None without one."""
        until = time.monotonic() + _TIMEOUT_S
        while (left := until - time.monotonic()) > 0 and not stop.is_set():
            if not sock.poll(int(1e3 * min(left, _WATCH_S)) + 1):
                continue
            frames, came_at = sock.recv_multipart(), self._clock()
            try:
                reply = wire.decode_time_reply(frames)
            except MalformedMessage:
                continue
            if reply.seq == self._seq:
                return came_at
        return None


@contextmanager
def exchanging_time(host: str, port: int, source: str, names: Sequence[str] = ()) -> Iterator[None]:
    """Exchange time with the receiver in a thread of its own meanwhile; port 0 does not."""
    if not port:
        yield
        return
    stop = threading.Event()
    exchange = TimeExchange(host, port, source, names)

    def work() -> None:
        try:
            exchange.run(stop)
        except Exception as error:  # a sender must send on without it
            logger.warning("[TIME] no exchange of timestamps: %s", error)

    thread = threading.Thread(target=work, name="time", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_LEAVE_S)
