"""The three streams in: a socket, a thread, and where what comes in is put."""

from __future__ import annotations

import logging
import math
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import zmq

from common import endpoints, wire
from common.clock import ClockOffset, RateMeter, now
from common.counters import MalformedCounters
from common.ring import SampleRing
from common.wire import CameraFrame, MalformedMessage, RobotState, RobotStatus
from receiver.episodes import Episodes
from receiver.taps import Tap
from receiver.threads import Latest
from receiver.views import view_of

__all__ = ["CameraInput", "InputError", "RobotInput", "SensorInput"]
__all__ += ["StoredFrame", "StoredState", "StoredStatus"]

logger = logging.getLogger(__name__)

_POLL_MS = 100
_MAX_PARTS = 4
_OUTAGE_S = 1.0
_FORCE_WATCHED_S = 0.1
_MAX_UNMAPPED = 32


class InputError(OSError):
    """A socket that cannot be opened; the message is one line."""


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """The newest frame of a view, still compressed, with its times in this process's time base."""

    frame: CameraFrame
    captured_at: float
    arrived_at: float


@dataclass(frozen=True, slots=True)
class StoredState:
    """The newest robot state with its times in this process's time base."""

    state: RobotState
    sampled_at: float
    arrived_at: float


@dataclass(frozen=True, slots=True)
class StoredStatus:
    """What the robot's side last said of the robot's condition, and when that came."""

    status: RobotStatus
    arrived_at: float


def _receive(sock: zmq.Socket[bytes]) -> list[bytes]:
    """One message, of which no more than a few parts are kept."""
    parts = [sock.recv()]
    while sock.getsockopt(zmq.RCVMORE):
        part = sock.recv()
        if len(parts) < _MAX_PARTS:
            parts.append(part)
    return parts


class _ZmqInput(ABC):
    """The loop that both ZeroMQ streams share: wait, take one message, count what is broken."""

    def __init__(self, sock: zmq.Socket[bytes], counters: MalformedCounters) -> None:
        self._socket = sock
        self._counters = counters

    def run(self, stop: threading.Event) -> None:
        """Take messages in until `stop` is set, then close the socket."""
        try:
            while not stop.is_set():
                if not self._socket.poll(_POLL_MS):
                    continue
                parts = _receive(self._socket)
                try:
                    self._take(parts, now())
                except MalformedMessage as error:
                    self._counters.add(error)
        finally:
            self._socket.close(linger=0)

    @abstractmethod
    def _take(self, parts: list[bytes], arrived_at: float) -> None:
        """Use one message; raises MalformedMessage when it cannot be."""


@dataclass(slots=True)
class ViewStream:
    """What is known of one view: its newest frame, its clock, its counts."""

    newest: Latest[StoredFrame] = field(default_factory=Latest)
    clock: ClockOffset = field(default_factory=ClockOffset)
    meter: RateMeter = field(default_factory=RateMeter)
    last_seq: int | None = None
    dropped: int = 0


class CameraInput(_ZmqInput):
    """Frames in; the newest of every view is kept, compressed as it came."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        bind: str,
        port: int,
        views: Collection[str],
        mapping: Mapping[str, str],
        counters: MalformedCounters,
        taps: Sequence[Tap] = (),
    ) -> None:
        """Bind the PULL socket; InputError when the port is taken."""
        sock = context.socket(zmq.PULL)
        sock.setsockopt(zmq.RCVHWM, endpoints.CAMERA.hwm)
        # A peer that announces more than this is disconnected before anything is allocated.
        sock.setsockopt(zmq.MAXMSGSIZE, 2 * wire.MAX_JPEG)
        bind_or_fail(sock, bind, port, "cameras")
        super().__init__(sock, counters)
        self._mapping, self._taps = mapping, taps
        self.views = {view: ViewStream() for view in views}
        self.unmapped: dict[str, int] = {}

    def _take(self, parts: list[bytes], arrived_at: float) -> None:
        frame = wire.decode_camera(parts)
        view = view_of(frame.camera, self._mapping, self.views)
        if view is None:
            if frame.camera in self.unmapped or len(self.unmapped) < _MAX_UNMAPPED:
                self.unmapped[frame.camera] = self.unmapped.get(frame.camera, 0) + 1
                if self.unmapped[frame.camera] == 1:
                    logger.warning(
                        "camera %s is mapped to no view: its frames are ignored (config: views)",
                        frame.camera,
                    )
            return
        stream = self.views[view]
        sent = frame.timestamp if frame.send_timestamp is None else frame.send_timestamp
        if not stream.clock.update(sent, arrived_at):
            raise MalformedMessage(endpoints.CAMERA.stream, "clock", "stamp far from the others")
        if frame.seq is not None:
            # A sender that starts again counts from 0: that is no loss.
            if stream.last_seq is not None and frame.seq > stream.last_seq + 1:
                stream.dropped += frame.seq - stream.last_seq - 1
            stream.last_seq = frame.seq
        stream.meter.add()
        captured_at = min(stream.clock.to_local(frame.timestamp), arrived_at)
        stored = StoredFrame(frame, captured_at, arrived_at)
        stream.newest.put(stored)
        for tap in self._taps:
            tap.frame(view, stored)


class RobotInput(_ZmqInput):
    """Robot states in; the newest is kept, and episodes start and end with them."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        host: str,
        port: int,
        episodes: Episodes,
        counters: MalformedCounters,
        taps: Sequence[Tap] = (),
    ) -> None:
        """Connect the SUB socket; it finds the sender whenever that starts."""
        sock = context.socket(zmq.SUB)
        sock.setsockopt(zmq.RCVHWM, 1000)
        sock.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        sock.setsockopt(zmq.RECONNECT_IVL, 100)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        # Everything, so that an unknown topic is counted rather than silently left out.
        sock.setsockopt(zmq.SUBSCRIBE, b"")
        sock.setsockopt(zmq.IPV6, int(":" in host))
        try:
            sock.connect(endpoints.address(host, port))
        except zmq.ZMQError as error:
            raise InputError(
                f"robot: {host}:{port} is no address to connect to ({error})"
            ) from None
        super().__init__(sock, counters)
        self._episodes, self._taps = episodes, taps
        self.newest: Latest[StoredState] = Latest()
        self.status: Latest[StoredStatus] = Latest()
        self.clock = ClockOffset()
        self.meter = RateMeter()

    def _take(self, parts: list[bytes], arrived_at: float) -> None:
        message = wire.decode_robot(parts)
        if isinstance(message, wire.EpisodeEnd):
            self._episodes.end()
            return
        if isinstance(message, wire.RobotStatus):
            self._take_status(StoredStatus(message, arrived_at))
            return
        if not self.clock.update(message.send_timestamp, arrived_at):
            raise MalformedMessage(endpoints.ROBOT.stream, "clock", "stamp far from the others")
        self.meter.add()
        sampled_at = min(self.clock.to_local(message.origin_timestamp), arrived_at)
        stored = StoredState(message, sampled_at, arrived_at)
        self.newest.put(stored)
        self._episodes.begin_if_none()
        for tap in self._taps:
            tap.state(stored)

    def _take_status(self, said: StoredStatus) -> None:
        before, status = self.status.get(), said.status
        if before is None or before.status.condition != status.condition:
            detail = f": {status.detail}" if status.detail else ""
            if status.condition != "ok":
                logger.warning("[ROBOT] %s%s", status.condition, detail)
            elif before is not None:
                logger.info("[ROBOT] ok again")
        self.status.put(said)


class SensorInput:
    """Sensor datagrams in; the newest samples are kept in a ring as the model wants them."""

    def __init__(
        self,
        bind: str,
        port: int,
        window: int,
        aline_length: int,
        rate_hz: float,
        stale_after_s: float,
        counters: MalformedCounters,
        taps: Sequence[Tap] = (),
    ) -> None:
        """Bind the UDP socket; InputError when the port is taken."""
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        # Room for what comes in while the thread waits for its turn: about half a second.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        try:
            self._socket.bind(("" if bind == "*" else bind, port))
        except OSError as error:
            self._socket.close()
            raise InputError(f"udp {bind}:{port} for the sensor: {error.strerror}") from None
        self._socket.settimeout(_POLL_MS / 1e3)
        self._aline_length = aline_length
        self._rate_hz = rate_hz
        self._stale_after_s = stale_after_s
        self._counters, self._taps = counters, taps
        # Force is watched over a tenth of a second even for a policy that takes no window.
        rows = max(window, math.ceil(_FORCE_WATCHED_S * rate_hz))
        self.ring = SampleRing(rows, 1 + aline_length, slack=max(int(rate_hz), 64))
        self.clock = ClockOffset()
        self.meter = RateMeter()
        self.lost = 0
        self.arrived_at: float | None = None
        self._last_stamp: float | None = None

    def run(self, stop: threading.Event) -> None:
        """Take datagrams in until `stop` is set, then close the socket."""
        # One byte more than the largest datagram, so that an oversized one shows.
        buffer = bytearray(wire.MAX_DATAGRAM + 1)
        try:
            while not stop.is_set():
                try:
                    size = self._socket.recv_into(buffer)
                except TimeoutError:
                    continue
                try:
                    self._take(memoryview(buffer)[:size], now())
                except MalformedMessage as error:
                    self._counters.add(error)
        finally:
            self._socket.close()

    def _take(self, datagram: memoryview, arrived_at: float) -> None:
        batch = wire.decode_samples(datagram, self._aline_length)
        was_calibrated = self.clock.calibrated
        if not self.clock.update(float(batch.send_timestamps[-1]), arrived_at):
            raise MalformedMessage(endpoints.SENSOR.stream, "clock", "stamp far from the others")
        if self.clock.calibrated and not was_calibrated:
            offset_ms = 1e3 * (self.clock.offset_s or 0.0)
            logger.info("Sensor Clock Offset Calibrated: %.1f ms", offset_ms)
        if self.arrived_at is None or arrived_at - self.arrived_at > self._stale_after_s:
            # What lies before an outage must not stand beside what comes after it.
            self.ring.clear()
        self._count_lost(batch.timestamps)
        self.ring.append(batch.timestamps, batch.forces, batch.alines)
        self.meter.add(len(batch))
        self.arrived_at = arrived_at
        for tap in self._taps:
            tap.samples(datagram, arrived_at)

    def _count_lost(self, stamps: np.ndarray) -> None:
        """Samples carry no number: what is missing shows as a gap between two datagrams."""
        if self._last_stamp is not None:
            gap = float(stamps[0]) - self._last_stamp
            missing = round(gap * self._rate_hz) - 1
            # A datagram holds several samples, so one or two are jitter of the stamps, not a loss;
            # a second or more is a sender that was away.
            if missing > 2 and gap < _OUTAGE_S:
                self.lost += missing
        self._last_stamp = float(stamps[-1])


def bind_or_fail(sock: zmq.Socket[bytes], bind: str, port: int, what: str) -> None:
    """Bind a TCP socket; InputError with one line when that is not possible."""
    sock.setsockopt(zmq.IPV6, int(":" in bind))
    try:
        sock.bind(endpoints.address(bind, port))
    except zmq.ZMQError as error:
        sock.close(linger=0)
        raise InputError(f"tcp {bind}:{port} for {what}: {error.strerror}") from None
