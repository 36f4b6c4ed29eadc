"""A client's link to this project's policy server over ZeroMQ.

It has two connections: observations go up on one, everything else comes and goes on the other. So
the thread that sends and the one that receives have a socket each, and a picture on its way delays
no answer. The server knows them for one client by the session in each message's envelope.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from common.endpoints import address as endpoint
from common.wire.checks import Buffer
from serving.link import LinkLost, Loading
from serving.messages import (
    BadMessage,
    Chunk,
    FeatureReply,
    Instructions,
    Observation,
    Refusal,
    ServingError,
)
from serving.packed import Message, Note, encode
from serving.transports.security import ClientKeys
from serving.transports.zmq_common import MAX_PARTS, Envelope, tune
from serving.unpacked import decode

__all__ = ["ZmqLink"]

_PING_S = 1.0
_SILENT_S = 4.0
"""A server that answers nothing for so long is not there: three pings and some patience with one
that is loading a model and holds its interpreter meanwhile."""
_HEARTBEAT_MS = 1_000
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_REFUSED = _FAILED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_WATCHED = _REFUSED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_DISCONNECTED


class ZmqLink:
    """Implements `serving.link.Link`."""

    def __init__(self, address: str, *, keys: ClientKeys | None = None) -> None:
        """`address` is host:port; with `keys`, the server must prove its own."""
        host, _, port = address.rpartition(":")
        if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise LinkLost(f"{address!r} is not HOST:PORT")
        self._address, self._where = address, endpoint(host, int(port))
        self._ipv6 = ":" in host
        self._keys = keys
        self._session = uuid.uuid4().bytes
        self._attempt = 0
        self._wires: _Wires | None = None
        self._lock = threading.Lock()
        self._closed = False

    def begin(self, instructions: Instructions, timeout_s: float) -> None:
        """See `Link.begin`. The server says every second that it is still loading."""
        deadline = time.monotonic() + timeout_s
        self._drop()
        self._attempt += 1
        wires = _Wires(
            self._address, self._where, self._ipv6, self._keys,
            Envelope(self._session, self._attempt),
        )  # fmt: skip
        with self._lock:
            if self._closed:
                wires.close()
                raise LinkLost("the link was closed")
            self._wires = wires
        try:
            wires.handshake(instructions, deadline)
        except BaseException:
            self._drop()
            raise

    def send(self, observation: Observation, timeout_s: float) -> None:
        """See `Link.send`. The pictures are not copied: nobody may write to them any more."""
        self._open().send(encode(observation), timeout_s)

    def receive(self, timeout_s: float) -> Chunk | FeatureReply | None:
        """See `Link.receive`."""
        return self._open().receive(timeout_s)

    def _open(self) -> _Wires:
        with self._lock:
            if self._wires is None:
                raise LinkLost("not connected")
            return self._wires

    def _drop(self) -> None:
        with self._lock:
            wires, self._wires = self._wires, None
        if wires is not None:
            wires.close()

    def close(self) -> None:
        """See `Link.close`. The server is told, so that it need not find out."""
        with self._lock:
            self._closed = True
            wires = self._wires
        if wires is not None:
            wires.bye()
        self._drop()


class _Wires:
    """The two sockets of one attempt, each used under a lock of its own."""

    def __init__(
        self, address: str, where: str, ipv6: bool, keys: ClientKeys | None, envelope: Envelope
    ) -> None:
        self._address, self._envelope, self._packed = address, envelope, envelope.pack()
        self._has_keys = keys is not None
        self._awake, self._waker = socket.socketpair()
        self._closed = False
        context: zmq.Context[Any] = zmq.Context.instance()
        self._up, self._down = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
        self._up_lock, self._down_lock = threading.Lock(), threading.Lock()
        for made in (self._up, self._down):
            tune(made, _HEARTBEAT_MS)
            made.ipv6 = ipv6
            made.reconnect_ivl, made.reconnect_ivl_max = 100, 1_000
            if keys is not None:
                keys.apply(made)
        # Nothing waits for a connection that is not there: it would be old when there is one.
        self._up.immediate = True
        self._up_monitor = self._up.get_monitor_socket(_REFUSED)
        self._monitor = self._down.get_monitor_socket(_WATCHED)
        self._asked_at: float | None = None
        self._pinged_at = 0.0
        for made in (self._up, self._down):
            made.connect(where)

    def handshake(self, instructions: Instructions, deadline: float) -> None:
        """Ready, then the instructions; waits while the server says that it is loading."""
        with self._using(self._up_lock):
            self._await_up(deadline)
        with self._using(self._down_lock):
            self._say(Note("ready"), deadline)
            self._await("ready", deadline)
            self._say(instructions, deadline)
            self._await("accepted", deadline)
            while self._monitor.poll(0):  # what was said of earlier tries to connect
                recv_monitor_message(self._monitor)

    def _await_up(self, deadline: float) -> None:
        """Until observations can go up.

        The server judges each connection for itself, and changes its mind when a robot is added:
        it may refuse this one and take the other, and ZeroMQ never tries a refused one again.
        """
        monitors = (self._up_monitor, self._monitor)
        while not self._wait(self._up, zmq.POLLOUT, self._left_s(deadline), *monitors):
            for monitor in monitors:
                self._judge(monitor)
        # Nobody reads it any more, and ZeroMQ would wait for a reader when it is full.
        self._up.disable_monitor()
        self._up_monitor.close(0)

    def _say(self, message: Message, deadline: float) -> None:
        """Send on the socket that listens, which takes nothing for ever once it was refused."""
        while True:
            if self._wait(self._down, zmq.POLLOUT, self._left_s(deadline), self._monitor):
                with contextlib.suppress(zmq.Again):
                    self._down.send_multipart([self._packed, *encode(message)], zmq.NOBLOCK)
                    return
            self._judge(self._monitor)

    def _left_s(self, deadline: float) -> float:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise LinkLost(f"{self._address} did not answer in time; is the server running?")
        return left_s

    def _await(self, word: str, deadline: float) -> None:
        loading = Loading(self._address)
        while True:
            if not self._wait(self._down, zmq.POLLIN, self._left_s(deadline), self._monitor):
                self._judge(self._monitor)
                continue
            message = self._read(self._down)
            if isinstance(message, Refusal):
                raise ServingError(message.kind, message.message)
            if isinstance(message, Note) and message.word == word:
                return
            if isinstance(message, Note) and message.word == "loading":
                loading.heard()
                deadline = max(deadline, time.monotonic() + _SILENT_S)

    def _judge(self, monitor: zmq.Socket[bytes]) -> None:
        """Raise for what a connection's monitor has to say."""
        while monitor.poll(0):
            said = recv_monitor_message(monitor)["event"]
            if said == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise ServingError(
                    "not_allowed", f"{self._address} does not know this client's key"
                )
            if said & _FAILED:
                raise ServingError(
                    "not_allowed",
                    f"{self._address} and this client do not agree on keys: both need "
                    "--curve_keys, or neither",
                )
            if said == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._has_keys:
                raise ServingError(
                    "not_allowed",
                    f"{self._address} ended the handshake: is server.key in --curve_keys its own?",
                )
            if said == zmq.EVENT_CONNECT_RETRIED:
                raise LinkLost(f"nobody listens at {self._address}; is the server running?")

    def send(self, frames: Sequence[Buffer], timeout_s: float) -> None:
        """Hand an observation to ZeroMQ; LinkLost when it takes none in time."""
        with self._using(self._up_lock):
            self._look_for_refusals()
            if not self._wait(self._up, zmq.POLLOUT, timeout_s):
                raise LinkLost(f"{self._address} takes nothing: is the network there?")
            try:
                self._up.send_multipart([self._packed, *frames], zmq.NOBLOCK, copy=False)
            except zmq.Again:
                raise LinkLost(f"{self._address} takes nothing: is the network there?") from None

    def _look_for_refusals(self) -> None:
        """What the server had to say to observations that it cannot tell whose they are."""
        while self._up.poll(0):
            message = self._read(self._up)
            if isinstance(message, Refusal):
                raise ServingError(message.kind, message.message)

    def receive(self, timeout_s: float) -> Chunk | FeatureReply | None:
        """The next answer; asks every second whether the server is there."""
        deadline = time.monotonic() + timeout_s
        with self._using(self._down_lock):
            while True:
                while self._down.poll(0):
                    self._asked_at = None
                    message = self._read(self._down)
                    if isinstance(message, (Chunk, FeatureReply)):
                        return message
                    if isinstance(message, Refusal):
                        raise ServingError(message.kind, message.message)
                moment = time.monotonic()
                if self._asked_at is not None and moment - self._asked_at > _SILENT_S:
                    raise LinkLost(f"{self._address} has not answered for {_SILENT_S:g} s")
                if moment >= deadline:
                    return None
                self._ping(moment)
                left_s = min(deadline - moment, _PING_S)
                if not self._wait(self._down, zmq.POLLIN, left_s, self._monitor):
                    self._look_for_an_end()

    def _look_for_an_end(self) -> None:
        """LinkLost when the connection ended: ZeroMQ would wait for another without a word."""
        while self._monitor.poll(0):
            if recv_monitor_message(self._monitor)["event"] == zmq.EVENT_DISCONNECTED:
                raise LinkLost(f"{self._address} ended the connection")

    def _ping(self, moment: float) -> None:
        if moment - self._pinged_at < _PING_S:
            return
        self._pinged_at = moment
        if self._asked_at is None:
            self._asked_at = moment
        with contextlib.suppress(zmq.Again):  # those before it have not gone out either
            self._down.send_multipart([self._packed, *encode(Note("ping"))], zmq.NOBLOCK)

    def _read(self, made: zmq.Socket[bytes]) -> Message | None:
        """One message; None where it is of an earlier attempt. BadMessage for anything else."""
        frames = made.recv_multipart(copy=False)
        if not 2 <= len(frames) <= MAX_PARTS:
            raise BadMessage(f"{self._address} sent something that is no message of ours")
        if Envelope.unpack(frames[0].buffer) != self._envelope:
            return None
        return decode([frame.buffer for frame in frames[1:]])

    def _wait(
        self,
        made: zmq.Socket[bytes],
        event: int,
        timeout_s: float,
        *monitors: zmq.Socket[bytes],
    ) -> bool:
        """Whether the socket is ready in time; LinkLost when the link is closed meanwhile."""
        poller = zmq.Poller()
        poller.register(made, event)
        poller.register(self._awake, zmq.POLLIN)
        for monitor in monitors:
            poller.register(monitor, zmq.POLLIN)
        ready = dict(poller.poll(max(int(1000 * timeout_s), 0)))
        if self._closed:
            raise LinkLost("the link was closed")
        return made in ready

    @contextlib.contextmanager
    def _using(self, lock: threading.Lock) -> Iterator[None]:
        with lock:
            if self._closed:
                raise LinkLost("the link was closed")
            yield

    def bye(self) -> None:
        """Tell the server that the session is over; whoever waits is let go."""
        self._let_go()
        with self._down_lock, contextlib.suppress(zmq.ZMQError):
            if not self._down.closed:
                # It must get out, but nobody is kept waiting for it.
                self._down.linger = 200
                self._down.disable_monitor()
                self._down.send_multipart([self._packed, *encode(Note("bye"))], zmq.NOBLOCK)
                self._down.close()

    def _let_go(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def close(self) -> None:
        """Close both sockets, as soon as no thread uses them."""
        self._let_go()
        with self._up_lock:
            if not self._up_monitor.closed:
                self._up.disable_monitor()
                self._up_monitor.close(0)
            self._up.close(0)
        with self._down_lock:
            if not self._down.closed:
                self._down.disable_monitor()
                self._down.close(0)
            if not self._monitor.closed:
                self._monitor.close(0)
        self._awake.close()
        self._waker.close()
