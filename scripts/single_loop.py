"""The loop that rigs run today, for comparison: one thread polls, decodes and infers in turn.

Every frame is decoded as it comes, and the slow half runs in the fast loop's place when its
features have served. Parsing, policy, scheduling and clock are the receiver's: only the order of
work differs.

python scripts/single_loop.py --checkpoint runs/tiny-checkpoint --duration 10
"""

from __future__ import annotations

import gc
import json
import resource
import socket
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import zmq
from numpy.typing import NDArray

from common import cli, endpoints, wire
from common.clock import now
from common.endpoints import address
from common.priority import fast_loop_first, this_process_first
from common.ring import SampleRing
from policies.base import ActionChunk
from receiver.loading import PolicyOptions, black_pictures, load, warm_up
from receiver.options import ReceiverOptions

_MOST_A_TURN = 200  # messages of a stream taken before the others have their turn


class Inputs:
    """Three sockets, the newest of each stream, everything decoded at once."""

    def __init__(self, options: ReceiverOptions, window: int) -> None:
        """Open them as the receiver does."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._cameras = context.socket(zmq.PULL)
        self._cameras.setsockopt(zmq.RCVHWM, endpoints.CAMERA.hwm)
        self._cameras.bind(address(options.bind, options.ports.camera))
        self._robot = context.socket(zmq.SUB)
        self._robot.setsockopt(zmq.SUBSCRIBE, b"")
        self._robot.connect(address(options.robot_ip, options.ports.robot))
        self._sensor = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sensor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._sensor.bind(("", options.ports.sensor))
        self._sensor.setblocking(False)
        self._poller = zmq.Poller()
        for sock in (self._cameras, self._robot, self._sensor):
            self._poller.register(sock, zmq.POLLIN)
        self._aline_length = options.aline_length
        self._buffer = bytearray(wire.MAX_DATAGRAM + 1)
        self.ring = SampleRing(max(window, 1), 1 + options.aline_length, slack=650)
        self.images: dict[str, NDArray[np.uint8]] = {}
        self.robot: wire.RobotState | None = None

    def take(self, timeout_s: float) -> None:
        """Wait for up to `timeout_s`, then take in and decode what is there."""
        ready = dict(self._poller.poll(int(max(timeout_s, 0.0) * 1e3)))
        if self._cameras in ready:
            for _ in range(_MOST_A_TURN):
                try:
                    parts = self._cameras.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                frame = wire.decode_camera(parts)
                data = np.frombuffer(frame.jpeg, np.uint8)
                image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
                self.images[frame.camera] = np.asarray(image, np.uint8)
        if self._robot in ready:
            for _ in range(_MOST_A_TURN):
                try:
                    state = wire.decode_robot(self._robot.recv_multipart(zmq.NOBLOCK))
                except zmq.Again:
                    break
                if isinstance(state, wire.RobotState):
                    self.robot = state
        if self._sensor.fileno() in ready:
            for _ in range(_MOST_A_TURN):
                try:
                    size = self._sensor.recv_into(self._buffer)
                except BlockingIOError:
                    break
                datagram = memoryview(self._buffer)[:size]
                batch = wire.decode_samples(datagram, self._aline_length)
                self.ring.append(batch.timestamps, batch.forces, batch.alines)


class Publisher:
    """Sends each chunk as the receiver does, without its limits."""

    def __init__(self, options: ReceiverOptions) -> None:
        """Bind the socket."""
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.bind(address(options.bind, options.ports.action))
        self._seq = 0

    def publish(self, chunk: ActionChunk, dt: float, space: wire.ActionSpace) -> None:
        """Send one."""
        stamp = now()
        action = wire.Action(self._seq, stamp, stamp, 1, 0.0, dt, space, chunk.actions)
        self._socket.send_multipart(wire.encode_action(action))
        self._seq += 1


def run(options: ReceiverOptions) -> dict[str, object]:
    """Poll, decode, infer in turn until the duration is over; deadlines and lateness of all."""
    policy = load(PolicyOptions.of(options))
    warm_up(policy, lambda: policy.encode(black_pictures(policy.spec), policy.spec.task))
    spec = policy.spec
    inputs, publisher = Inputs(options, spec.sensor_window), Publisher(options)
    gc.collect()
    gc.freeze()
    this_process_first()
    fast_loop_first()
    while len(inputs.images) < len(spec.views) or len(inputs.ring.newest(spec.sensor_window)[0]) < (
        spec.sensor_window
    ):
        inputs.take(0.1)
    images = {view: inputs.images[view] for view in spec.views}
    features = policy.encode(images, spec.task)
    print("inference started", flush=True)

    period, begun = 1 / options.action_hz, time.monotonic()
    start, end = begun + period, begun + (options.duration or 10.0)
    deadlines, late_ms, took_ms, passes_ms = [], [], [], []
    previous: ActionChunk | None = None
    index = uses = 0
    while (deadline := start + index * period) < end:
        inputs.take(0.0)
        while (left := deadline - time.monotonic()) > 0:
            inputs.take(left)
        if uses >= options.vl_reuse:
            at = time.monotonic()
            features = policy.encode({view: inputs.images[view] for view in spec.views}, spec.task)
            passes_ms.append(1e3 * (time.monotonic() - at))
            uses = 0
        at = time.monotonic()
        if at - deadline >= period:  # the next is due already: this one is missed
            index += int((at - deadline) / period)
            continue
        deadlines.append(deadline)
        late_ms.append(1e3 * (at - deadline))
        window = inputs.ring.newest(spec.sensor_window)[1]
        previous = policy.act(features, window, inputs.robot, previous)
        took_ms.append(1e3 * (time.monotonic() - at))
        publisher.publish(previous, spec.dt, spec.space)
        uses += 1
        index += 1
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "deadlines": deadlines,
        "lateness_ms": late_ms,
        "action_ms_p50": float(np.median(took_ms)) if took_ms else 0.0,
        "vl_ms_mean": float(np.mean(passes_ms)) if passes_ms else 0.0,
        "vl_hz": len(passes_ms) / (time.monotonic() - begun),
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "duration_s": time.monotonic() - begun,
    }


def main() -> int:
    """Run, write the summary; the exit code."""
    options = cli.parse(ReceiverOptions)
    summary = run(options)
    if options.summary:
        options.summary.write_text(json.dumps(summary) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
