"""Captures a rig's cameras and pushes their newest pictures to the receiver as JPEGs."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro
import zmq

from common import endpoints
from common.clock import wall
from common.wire import encode_camera
from senders import cameras, registry
from senders.capture import CameraCapture
from senders.drivers import CameraDriver
from senders.program import (
    Every,
    OptionError,
    SenderError,
    check_number,
    check_port,
    open_socket,
    resolve,
    run,
)

__all__ = ["CameraOptions", "main"]

logger = logging.getLogger("senders.camera")

_LEAVE_S = 3.0


@dataclass(frozen=True)
class CameraOptions:
    """Push the newest picture of every camera to the receiver; late ones are dropped, not kept."""

    server_ip: str = "localhost"
    """Where the receiver runs."""
    port: int = endpoints.CAMERA.port
    """TCP port on which it takes pictures."""
    fps: float = endpoints.CAMERA.rate_hz
    """Pictures a second and camera."""
    width: int = 1280
    """Pixels; a camera with fixed sizes takes its nearest."""
    height: int = 720
    """Pixels."""
    quality: int = 75
    """JPEG quality, 1 to 100."""
    driver: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which cameras: sim, synthetic, …; without it, those whose package is installed."""
    driver_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Passed to the driver."""
    cameras: Annotated[str | None, tyro.conf.arg(metavar="NAME,NAME")] = None
    """Only these cameras; without it, all there are."""
    duration: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Stop after so many seconds; without it, run until Ctrl+C."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        check_port("--port", self.port)
        check_number("--fps", self.fps, 0.1, 240)
        check_number("--width", self.width, 16, 4096)
        check_number("--height", self.height, 16, 4096)
        check_number("--quality", self.quality, 1, 100)
        registry.choose(cameras.DRIVERS, self.driver)

    @property
    def names(self) -> tuple[str, ...]:
        """The cameras asked for, none when all are."""
        return tuple(filter(None, (name.strip() for name in (self.cameras or "").split(","))))


def connect(options: CameraOptions, views: int) -> zmq.Socket[bytes]:
    """A PUSH socket that holds about one picture a camera, and none while nobody is there."""
    try:
        resolve(options.server_ip, options.port)
    except TimeoutError as error:
        logger.warning("%s; trying on", error)  # ZeroMQ looks it up again by itself
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
            socket.close()
    except BaseException as error:  # handed to the main thread, which ends the program with it
        failed.append(error)
        stop.set()


def open_cameras(options: CameraOptions) -> list[CameraDriver]:
    """The cameras to send; OptionError when a name that was asked for is not there."""
    name = registry.choose(cameras.DRIVERS, options.driver)
    offered = {
        "width": options.width,
        "height": options.height,
        "fps": options.fps,
        "names": options.names,
    }
    offered = {key: value for key, value in offered.items() if value}
    found: list[CameraDriver] = registry.make(
        cameras.DRIVERS, name, offered, options.driver_options
    )
    there = [camera.name for camera in found]
    if missing := [wanted for wanted in options.names if wanted not in there]:
        raise OptionError(
            f"--cameras: no {', '.join(missing)}; there are: {', '.join(there) or 'none'}"
        )
    if not found:
        raise SenderError(f"driver {name} found no camera: is one plugged in?")
    if len(set(there)) < len(there):
        raise OptionError(f"--cameras: a name comes twice: {', '.join(there)}")
    return [c for c in found if not options.names or c.name in options.names]


def _status(captures: Sequence[CameraCapture]) -> str:
    each = [
        f"{c.name} {c.rate.rate_hz():.1f} fps sent {c.sent} dropped {c.dropped}"
        + (f" failures {c.failures}" if c.failures else "")
        for c in captures
    ]
    return f"[CAMERA] {' | '.join(each)}"


def send(options: CameraOptions, stop: threading.Event) -> None:
    """Run the sender until `stop`; raises SenderError when it cannot start."""
    fresh, failed = threading.Event(), list[BaseException]()
    captures = [
        CameraCapture(camera, options.fps, options.quality, fresh)
        for camera in open_cameras(options)
    ]
    logger.info("[CAMERA] %s → %s:%d", [c.name for c in captures], options.server_ip, options.port)
    pushing = (options, captures, fresh, stop, failed)
    threads = [threading.Thread(target=_pushing, args=pushing, name="push", daemon=True)]
    threads += [
        threading.Thread(target=c.run, args=(stop,), name=c.name, daemon=True) for c in captures
    ]
    for thread in threads:
        thread.start()
    status = Every()
    while not stop.wait(1.0):
        if status.due():
            logger.info(_status(captures))
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
