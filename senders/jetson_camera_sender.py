"""Captures a rig's cameras and pushes their newest pictures to the receiver as JPEGs."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs()

import tyro
import zmq

from common import endpoints
from common.clock import wall
from common.program import (
    Every,
    OptionError,
    check_host,
    check_number,
    check_port,
    open_socket,
    run,
)
from common.wire import encode_camera
from senders import cameras, registry
from senders.cameras.attached import table
from senders.cameras.rig import RigCamera, open_sources
from senders.capture import CameraCapture, StartLine
from senders.encoding import Encoders
from senders.time_exchange import exchanging_time

__all__ = ["CameraOptions", "main"]

logger = logging.getLogger("senders.camera")

_LEAVE_S = 3.0
_DELIVER_S = 5.0
_LINGER_MS = 2000


@dataclass(frozen=True)
class CameraOptions:
    """Push the newest picture of every camera to the receiver; late ones are dropped, not kept."""

    server_ip: str = "localhost"
    """Where the receiver runs."""
    port: int = endpoints.CAMERA.port
    """TCP port on which it takes pictures."""
    time_port: int = endpoints.TIME.port
    """TCP port on which it exchanges timestamps; 0 does not ask it."""
    fps: float = endpoints.CAMERA.rate_hz
    """Pictures a second and camera."""
    width: int = 1280
    """Pixels; a camera with fixed sizes takes its nearest."""
    height: int = 720
    """Pixels."""
    quality: int = 75
    """JPEG quality, 1 to 100."""
    encoders: int = 2
    """Threads that encode JPEGs, for all cameras together."""
    config: Path | None = None
    """YAML file with any of these options and the cameras of a rig; the command line wins."""
    rig: Annotated[tuple[RigCamera, ...], tyro.conf.Suppress] = ()
    """The cameras, in the YAML file only: see rigs/known_rig.yaml."""
    driver: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Cameras of one kind: sim, synthetic, …; without it, the rig's, else all attached."""
    driver_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Passed to the driver."""
    cameras: Annotated[str | None, tyro.conf.arg(metavar="NAME,NAME")] = None
    """Only these cameras; without it, all there are."""
    list: bool = False
    """Show the cameras that are attached, and the drivers there are, then leave."""
    duration: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Stop after so many seconds; without it, run until Ctrl+C."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        check_port("--port", self.port)
        check_number("--time-port", self.time_port, 0, 65_535)
        check_number("--fps", self.fps, 0.1, 240)
        check_number("--width", self.width, 16, 4096)
        check_number("--height", self.height, 16, 4096)
        check_number("--quality", self.quality, 1, 100)
        check_number("--encoders", self.encoders, 1, 16)
        if self.rig and self.driver:
            raise OptionError("--driver: the configuration lists a rig's cameras; give one of them")
        if self.driver_options and not self.driver:
            raise OptionError("--driver-options: for which driver? Give --driver too")
        if self.driver:
            registry.choose(cameras.DRIVERS, self.driver)
        if not self.list:
            for camera in self.rig:
                if not self.names or camera.name in self.names:
                    camera.check()

    @property
    def names(self) -> tuple[str, ...]:
        """The cameras asked for, none when all are."""
        return tuple(filter(None, (name.strip() for name in (self.cameras or "").split(","))))


def connect(options: CameraOptions, views: int) -> zmq.Socket[bytes]:
    """A PUSH socket that holds about one picture a camera, and none while nobody is there."""
    check_host(options.server_ip, options.port)
    settings = {
        zmq.IMMEDIATE: 1,
        zmq.SNDHWM: max(views, 1),
        # Old pictures must wait here, where newer ones replace them, not in the kernel.
        zmq.SNDBUF: 128 * 1024,
        zmq.LINGER: 0,
        zmq.RECONNECT_IVL: 100,
        zmq.RECONNECT_IVL_MAX: 1000,
        zmq.HEARTBEAT_IVL: 1000,
        zmq.HEARTBEAT_TIMEOUT: 5000,
    }
    return open_socket(zmq.PUSH, options.server_ip, options.port, settings, bind=False)


def push(
    socket: zmq.Socket[bytes],
    captures: Sequence[CameraCapture],
    fresh: threading.Event,
    stop: threading.Event,
) -> None:
    """Send pictures, the cameras taking turns, whenever the socket takes one, until `stop`."""
    turns = list(captures)
    while not stop.is_set():
        fresh.clear()  # before looking, so that a picture that comes while looking is seen
        if not any(capture.waits for capture in turns):
            fresh.wait(0.2)
            continue
        if not socket.poll(100, zmq.POLLOUT):
            continue
        # Looked up only now: pictures may have been overtaken while the socket took none.
        capture = next(capture for capture in turns if capture.waits)
        packet = capture.take()
        turns.remove(capture)
        turns.append(capture)
        if packet is None:
            continue
        try:
            socket.send_multipart(
                encode_camera(replace(packet, send_timestamp=wall())), zmq.NOBLOCK
            )
            capture.sent += 1
        except zmq.Again:
            capture.give_back(packet)


def _pushing(
    options: CameraOptions,
    captures: Sequence[CameraCapture],
    fresh: threading.Event,
    stop: threading.Event,
    failed: list[BaseException],
) -> None:
    try:
        socket = connect(options, len(captures))
        try:
            push(socket, captures, fresh, stop)
        finally:
            lossless = any(capture.recorded for capture in captures)
            socket.close(linger=_LINGER_MS if lossless else 0)
            if lossless:
                zmq.Context.instance().term()  # sees that they leave
    except BaseException as error:  # handed to the main thread, which ends the program with it
        failed.append(error)
        stop.set()


def make_captures(
    options: CameraOptions, fresh: threading.Event, encoders: Encoders
) -> Sequence[CameraCapture]:
    """The cameras to send; OptionError when a name that was asked for is not there."""
    offered = {
        "width": options.width,
        "height": options.height,
        "fps": options.fps,
        "quality": options.quality,
    }
    given = options.driver_options
    sources = open_sources(options.rig, options.driver, given, options.names, offered)
    start = StartLine(len(sources))
    return [
        CameraCapture(source.camera, source.fps, options.quality, fresh, encoders, start)
        for source in sources
    ]


def _status(captures: Sequence[CameraCapture]) -> str:
    each = [
        f"{c.name} {c.rate.rate_hz():.1f} fps sent {c.sent} dropped {c.dropped}"
        + (f" failures {c.failures}" if c.failures else "")
        for c in captures
    ]
    return f"[CAMERA] {' | '.join(each)}"


def _play_out(captures: Sequence[CameraCapture], stop: threading.Event) -> None:
    """Wait for the last pictures of recordings that are over to leave, for a while."""
    until = time.monotonic() + _DELIVER_S
    while time.monotonic() < until and not all(c.finished for c in captures):
        if stop.wait(0.05):
            return
    if left := sum(c.captured - c.sent - c.dropped - c.spoilt for c in captures):
        logger.warning("%d pictures were not taken by a receiver", left)


def _watch(captures: Sequence[CameraCapture], stop: threading.Event) -> None:
    """Say the status now and then until `stop`, which is set here once all recordings are over."""
    status = Every()
    while not stop.wait(0.2):
        if status.due():
            logger.info(_status(captures))
        if all(capture.over for capture in captures):
            _play_out(captures, stop)
            stop.set()


def send(options: CameraOptions, stop: threading.Event) -> None:
    """Run the sender until `stop`; raises ProgramError when it cannot start."""
    if options.list:
        wanted = options.driver
        shown = {k: e for k, e in cameras.DRIVERS.items() if wanted in (None, k)}
        print(table(shown), flush=True)
        return
    fresh, failed = threading.Event(), list[BaseException]()
    encoders = Encoders(options.encoders)
    captures = make_captures(options, fresh, encoders)
    logger.info("[CAMERA] %s → %s:%d", [c.name for c in captures], options.server_ip, options.port)
    pushing = (options, captures, fresh, stop, failed)
    threads = [threading.Thread(target=_pushing, args=pushing, name="push", daemon=True)]
    threads += encoders.threads(stop)
    threads += [
        threading.Thread(target=c.run, args=(stop,), name=c.name, daemon=True) for c in captures
    ]
    for thread in threads:
        thread.start()
    names = [capture.name for capture in captures]
    with exchanging_time(options.server_ip, options.time_port, endpoints.CAMERA.stream, names):
        _watch(captures, stop)
    for thread in threads:
        thread.join(_LEAVE_S)
    logger.info(_status(captures))
    if failed:
        raise failed[0]


def main() -> int:
    """Run from the command line; the exit code."""
    return run(CameraOptions, send)


if __name__ == "__main__":
    sys.exit(main())
