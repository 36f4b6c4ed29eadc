"""The data of a whole rig at full rate, made beforehand: for measuring a receiver, not a sender.

python scripts/load_rig.py --fps 30 --width 1280 --height 720
"""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs()

import cv2
import numpy as np
import zmq

from common import endpoints, wire
from common.clock import Tick, Ticker, wall
from common.endpoints import address
from common.kinematics import flange_pose
from common.stopping import stopping

_KINDS = 12  # different pictures a view


@dataclass(frozen=True)
class LoadOptions:
    """Send frames, states and samples at a rig's rates with as little work as possible."""

    server_ip: str = "localhost"
    """Where the receiver runs."""
    port_offset: int = 0
    """Added to every port."""
    views: int = 5
    """Cameras."""
    fps: float = 30.0
    """Frames a second and camera."""
    width: int = 1280
    """Pixels."""
    height: int = 720
    """Pixels."""
    frame_kb: float = 86.0
    """Size of a frame in 1,000 bytes, about."""
    together: bool = False
    """The cameras are triggered: their pictures of an instant come together. Free-running ones
    (without it) are spread over time."""
    sensor_hz: float = 650.0
    """Samples a second."""
    batch: int = 10
    """Samples in a datagram."""
    duration: float | None = None
    """Stop after so many seconds; without it, run until Ctrl+C."""


def _picture(rng: np.random.Generator, width: int, height: int, grain: float) -> bytes:
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 4, height))
    phase = rng.uniform(0, 2 * math.pi, 3)
    smooth = np.stack([127 + 90 * np.sin(x + p) * np.cos(y + p) for p in phase], axis=-1)
    image = np.clip(smooth + rng.normal(0, grain, (height, width, 1)), 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes())


def pictures(options: LoadOptions) -> list[bytes]:
    """Different JPEGs of about the size asked for, by the grain that gives it."""
    low, high = 0.0, 60.0
    for _ in range(12):
        grain = (low + high) / 2
        size = len(_picture(np.random.default_rng(0), options.width, options.height, grain))
        low, high = (grain, high) if size < 1000 * options.frame_kb else (low, grain)
    rng = np.random.default_rng(1)
    return [_picture(rng, options.width, options.height, high) for _ in range(_KINDS)]


def _due(tick: Tick) -> range:
    """This tick and those missed before it: a busy machine must not make the load a lighter one."""
    return range(tick.index - tick.skipped, tick.index + 1)


def _cameras(options: LoadOptions, stop: threading.Event) -> None:
    jpegs = pictures(options)
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    sock.setsockopt(zmq.SNDHWM, 8 * options.views)
    sock.setsockopt(zmq.IMMEDIATE, 1)
    sock.setsockopt(zmq.LINGER, 0)
    sock.connect(address(options.server_ip, endpoints.CAMERA.port + options.port_offset))
    at_once = options.views if options.together else 1
    for tick in Ticker(options.fps * options.views / at_once).ticks(stop):
        due = _due(tick)
        for index in range(due.start * at_once, due.stop * at_once):
            view, number = index % options.views, index // options.views
            jpeg, stamp = jpegs[(number + view) % _KINDS], wall()
            frame = wire.CameraFrame(f"View{view + 1}", stamp, jpeg, number, stamp)
            try:
                sock.send_multipart(wire.encode_camera(frame), zmq.NOBLOCK)
            except zmq.Again:
                continue  # nobody takes it: the gap in the numbers tells
    sock.close()


def _robot(options: LoadOptions, stop: threading.Event) -> None:
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
    sock.bind(address("*", endpoints.ROBOT.port + options.port_offset))
    for tick in Ticker(endpoints.ROBOT.rate_hz).ticks(stop):
        sway = 5.0 * math.sin(tick.index / 100)
        joints = np.array((sway, -10.0, 20.0, sway, 35.0, 0.0))
        pose, stamp = tuple(flange_pose(joints).tolist()), wall()
        state = wire.RobotState(stamp, stamp, 0.0, tuple(joints.tolist()), pose)
        sock.send_multipart(wire.encode_robot(state))
    sock.close()


def _sensor(options: LoadOptions, stop: threading.Event) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    where = (options.server_ip, endpoints.SENSOR.port + options.port_offset)
    rng, behind = np.random.default_rng(2), np.arange(1 - options.batch, 1) / options.sensor_hz
    alines = rng.random((64 + options.batch, wire.ALINE_LENGTH), np.float32)
    ticker = Ticker(options.sensor_hz / options.batch)
    # A sensor samples evenly however late its datagrams leave: stamps of the clock's own grid, so
    # that a gap in them is a loss and not a load that had to wait for a processor.
    start = wall() + ticker.start - time.monotonic()
    for tick in ticker.ticks(stop):
        for index in _due(tick):
            sampled, first = start + index * ticker.period_s + behind, index % 64
            forces = np.full(options.batch, 0.3 + 0.1 * math.sin(index / 65), np.float32)
            rows = alines[first : first + options.batch]
            sent = np.full(options.batch, wall())
            sock.sendto(wire.encode_samples(wire.SampleBatch(sampled, sent, forces, rows)), where)
    sock.close()


def main() -> int:
    """Send until stopped; the exit code."""
    options = cli.parse(LoadOptions)
    works: list[Callable[[LoadOptions, threading.Event], None]] = [_cameras, _robot, _sensor]
    with stopping(options.duration) as stop:
        threads = [threading.Thread(target=work, args=(options, stop)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
