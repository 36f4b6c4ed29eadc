"""Frames and robot states in: a socket, a thread, and where what comes in is put."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import zmq

from common import endpoints, wire
from common.clock import RateMeter, now
from common.counters import MalformedCounters
from common.wire import (
    Buffer,
    CameraFrame,
    MalformedMessage,
    RobotCondition,
    RobotState,
    RobotStatus,
)
from receiver.backlog import Backlog
from receiver.episodes import Episodes
from receiver.history import History
from receiver.sender_clock import SenderClock
from receiver.sensor_input import SensorInput
from receiver.sockets import InputError, bind_or_fail
from receiver.taps import Tap
from receiver.threads import Latest
from receiver.views import view_of

__all__ = ["CameraInput", "InputError", "RobotInput", "SensorInput", "ViewStream", "bind_or_fail"]
__all__ += ["StoredFrame", "StoredState", "StoredStatus"]

logger = logging.getLogger(__name__)

_POLL_MS = 100
_MAX_PARTS = 4
# As many frames of all cameras, or states, are read together: a tenth of a second of either.
_TOGETHER = 16
_LARGE = 1 << 20  # bytes of a message that does not wait for others
_SMALL = 4096  # bytes; to copy so few costs less than to look at them where they are
_MAX_CAMERAS = 32  # of those that are left out
# For an observation of a moment that is not quite now, and for what comes out of order: a quarter
# of a second of frames; of states a third at the fastest rate, 1000 Hz: speeds are told from two.
_FRAMES_KEPT = 8
_FRAME_BYTES_KEPT = 8 << 20
_STATES_KEPT = 400


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A frame of a view, still compressed, with its times in this process's time base."""

    frame: CameraFrame
    captured_at: float
    arrived_at: float


@dataclass(frozen=True, slots=True)
class StoredState:
    """A robot state with its times in this process's time base."""

    state: RobotState
    sampled_at: float
    arrived_at: float


@dataclass(frozen=True, slots=True)
class StoredStatus:
    """What the robot's side last said of the robot's condition, and when that came."""

    status: RobotStatus
    arrived_at: float


def _content(part: zmq.Frame) -> Buffer:
    """The bytes of a part: a picture stays where ZeroMQ put it, which halves what it costs."""
    return part.buffer if len(part) > _SMALL else part.bytes


class CatchesUp(Protocol):
    """An input that can be asked to read what has come."""

    def catch_up(self) -> None:
        """Read what has come but was not read yet."""
        ...


class _ZmqInput(ABC):
    """The loop that both ZeroMQ streams share: wait, put aside, read, count what is broken."""

    def __init__(self, sock: zmq.Socket[bytes], counters: MalformedCounters) -> None:
        self._socket = sock
        # To wait in the call that receives is half the work of waiting first.
        sock.setsockopt(zmq.RCVTIMEO, _POLL_MS)
        self._counters = counters
        self._backlog: Backlog[tuple[list[zmq.Frame], float]] = Backlog(self._read, _TOGETHER)

    def run(self, stop: threading.Event) -> None:
        """Take messages in until `stop` is set, then close the socket."""
        receive, backlog = self._socket.recv, self._backlog
        # A message wakes this thread cold: as little as can be is done to it here.
        try:
            while not stop.is_set():
                try:
                    part = receive(copy=False)
                except zmq.Again:
                    backlog.read()
                    continue
                parts = [part]
                while part.more:  # asked of a part, this costs less than asked of the socket
                    part = receive(copy=False)
                    if len(parts) < _MAX_PARTS:
                        parts.append(part)
                backlog.add((parts, now()), urgent=self._is_urgent(parts))
            backlog.read()
        finally:
            self._socket.close(linger=0)

    def catch_up(self) -> None:
        """Read what has come but was not read yet; for whoever is going to look."""
        self._backlog.catch_up()

    def _read(self, message: tuple[list[zmq.Frame], float]) -> None:
        parts, arrived_at = message
        try:
            self._take([_content(part) for part in parts], arrived_at)
        except MalformedMessage as error:
            self._counters.add(error)

    @abstractmethod
    def _is_urgent(self, parts: list[zmq.Frame]) -> bool:
        """Whether a message is not to wait for others."""

    @abstractmethod
    def _take(self, parts: list[Buffer], arrived_at: float) -> None:
        """Use one message; raises MalformedMessage when it cannot be."""


class ViewStream:
    """What is known of one view: its newest frames, its clock, its counts."""

    def __init__(self, view: str) -> None:
        """Nothing yet."""
        self.newest: History[StoredFrame] = History(
            _FRAMES_KEPT,
            lambda stored: stored.captured_at,
            _FRAME_BYTES_KEPT,
            lambda stored: len(stored.frame.jpeg),
        )
        self.clock = SenderClock(f"camera {view}")
        self.meter = RateMeter()
        self.dropped = 0
        self.reordered = 0
        self._last_seq: int | None = None
        self._steps = 0

    def count(self, seq: int | None, arrived_at: float) -> None:
        """Count a frame, and what is missing before it."""
        self.meter.add(at=arrived_at)
        if seq is None:
            return
        # A sender that starts again counts from 0: that is no loss.
        if self._last_seq is not None and seq > self._last_seq + 1:
            self.dropped += seq - self._last_seq - 1
        self._last_seq = seq

    def put(self, stored: StoredFrame) -> None:
        """Put a frame in its place by its capture time."""
        if self.clock.steps != self._steps:
            self._steps = self.clock.steps
            self.newest.clear()
        self.reordered += not self.newest.put(stored)


class CameraInput(_ZmqInput):
    """Frames in; the newest few of every view are kept, compressed as they came."""

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
        self.views = {view: ViewStream(view) for view in views}
        self.unmapped: dict[str, int] = {}
        self.unused: dict[str, int] = {}

    def _is_urgent(self, parts: list[zmq.Frame]) -> bool:
        return sum(map(len, parts)) > _LARGE

    def _take(self, parts: list[Buffer], arrived_at: float) -> None:
        frame = wire.decode_camera(parts)
        view = view_of(frame.camera, self._mapping, self.views)
        if view is None or view not in self.views:
            self._leave_out(frame.camera, view)
            return
        stream = self.views[view]
        sent = frame.timestamp if frame.send_timestamp is None else frame.send_timestamp
        if not stream.clock.update(sent, arrived_at):
            raise MalformedMessage(endpoints.CAMERA.stream, "clock", "stamp far from the others")
        stream.count(frame.seq, arrived_at)
        captured_at = min(stream.clock.to_local(frame.timestamp), arrived_at)
        stored = StoredFrame(frame, captured_at, arrived_at)
        stream.put(stored)
        for tap in self._taps:
            tap.frame(view, stored)

    def _leave_out(self, camera: str, view: str | None) -> None:
        """Count a frame that nobody looks at, and say why at a camera's first."""
        counts = self.unmapped if view is None else self.unused
        if camera not in counts and len(counts) >= _MAX_CAMERAS:
            return
        counts[camera] = counts.get(camera, 0) + 1
        if counts[camera] > 1:
            return
        if view is None:
            logger.warning(
                "camera %s is mapped to no view: its frames are ignored (config: views)", camera
            )
        else:
            used = ", ".join(self.views)
            logger.info("camera %s: %s is not used, this policy looks at %s", camera, view, used)


class RobotInput(_ZmqInput):
    """Robot states in; the newest few are kept, and episodes start and end with them."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        host: str,
        port: int,
        episodes: Episodes,
        counters: MalformedCounters,
        taps: Sequence[Tap] = (),
        beside: Sequence[CatchesUp] = (),
    ) -> None:
        """Connect the SUB socket; it finds the sender whenever that starts.

        What has come on the streams `beside` is read before an episode begins or ends, so that it
        is shown as part of the one in which it came.
        """
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
        self._episodes, self._taps, self._beside = episodes, taps, beside
        self.newest: History[StoredState] = History(_STATES_KEPT, lambda stored: stored.sampled_at)
        self.status: Latest[StoredStatus] = Latest()
        # By condition, replaced as a whole: what passes between two ticks must not go unseen.
        self.troubles: Mapping[RobotCondition, StoredStatus] = {}
        self.clock = SenderClock("robot")
        self.meter = RateMeter()
        self.reordered = 0
        self._steps = 0

    def _is_urgent(self, parts: list[zmq.Frame]) -> bool:
        # What stops a robot or ends an episode is known at once, and so is what begins one.
        return parts[0].bytes != endpoints.ROBOT.topic or not self._episodes.running

    def _take(self, parts: list[Buffer], arrived_at: float) -> None:
        message = wire.decode_robot(parts)
        if isinstance(message, wire.EpisodeEnd):
            self._read_beside()
            self._episodes.end()
            return
        if isinstance(message, wire.RobotStatus):
            self._take_status(StoredStatus(message, arrived_at))
            return
        if not self.clock.update(message.send_timestamp, arrived_at):
            raise MalformedMessage(endpoints.ROBOT.stream, "clock", "stamp far from the others")
        self.meter.add(at=arrived_at)
        sampled_at = min(self.clock.to_local(message.origin_timestamp), arrived_at)
        stored = StoredState(message, sampled_at, arrived_at)
        if self.clock.steps != self._steps:
            self._steps = self.clock.steps
            self.newest.clear()
        self.reordered += not self.newest.put(stored)
        if not self._episodes.running:
            self._read_beside()
            self._episodes.begin_if_none(arrived_at)
        for tap in self._taps:
            tap.state(stored)

    def _read_beside(self) -> None:
        for stream in self._beside:
            stream.catch_up()

    def _take_status(self, said: StoredStatus) -> None:
        before, status = self.status.get(), said.status
        if before is None or before.status.condition != status.condition:
            detail = f": {status.detail}" if status.detail else ""
            if status.condition != "ok":
                logger.warning("[ROBOT] %s%s", status.condition, detail)
            elif before is not None:
                logger.info("[ROBOT] ok again")
        if status.condition != "ok":
            self.troubles = {**self.troubles, status.condition: said}
        self.status.put(said)
