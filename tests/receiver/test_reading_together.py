"""Messages that wait on real sockets until they are many, or somebody looks."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import zmq

from common import wire
from common.clock import now
from common.counters import MalformedCounters
from common.wire import CameraFrame, RobotState, SampleBatch
from receiver.episodes import Episodes
from receiver.inputs import CameraInput, RobotInput, SensorInput
from receiver.observation import Observer
from tests.support import free_ports, wait_until

HZ = 100.0
JPEG = cv2.imencode(".jpg", np.zeros((36, 64, 3), np.uint8))[1].tobytes()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


class Waiting:
    """All three inputs on real sockets, which nobody reads unless somebody looks."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        camera, robot, self.port = free_ports(3)
        self.episodes, self.counters = Episodes(), MalformedCounters()
        self.cameras = CameraInput(context, "127.0.0.1", camera, ("View1",), {}, self.counters)
        self.robot = RobotInput(context, "127.0.0.1", robot, self.episodes, self.counters)
        self.sensor = SensorInput("127.0.0.1", self.port, 20, 3, HZ, 0.5, self.counters)
        self.observer = Observer(self.cameras, self.robot, self.sensor, 20)
        for one in (self.cameras, self.robot):
            one._socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self.sensor._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 60, 0)
        )
        self.to_cameras, self.to_robot = context.socket(zmq.PUSH), context.socket(zmq.PUB)
        self.to_cameras.connect(f"tcp://127.0.0.1:{camera}")
        self.to_robot.bind(f"tcp://127.0.0.1:{robot}")
        self.to_sensor = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.stop = threading.Event()
        works = (self.cameras, self.robot, self.sensor)
        self.threads = [threading.Thread(target=one.run, args=(self.stop,)) for one in works]
        for thread in self.threads:
            thread.start()

    def frame(self, seq: int, jpeg: bytes = JPEG) -> None:
        at = time.time()
        frame = CameraFrame("View1", at - 0.01, jpeg, seq, at)
        self.to_cameras.send_multipart(wire.encode_camera(frame))

    def state(self) -> None:
        at = time.time()
        self.to_robot.send_multipart(
            wire.encode_robot(RobotState(at, at, 0.0, (1.0,) * 6, (2.0,) * 6))
        )

    def samples(self, first: int) -> None:
        stamps = time.time() + np.arange(-9, 1) / HZ
        forces = (first + np.arange(10)).astype(np.float32)
        batch = SampleBatch(stamps, stamps, forces, np.zeros((10, 3), np.float32))
        self.to_sensor.sendto(wire.encode_samples(batch), ("127.0.0.1", self.port))

    def waiting(self) -> tuple[int, int, int]:
        cameras, robot, sensor = self.cameras, self.robot, self.sensor
        return tuple(len(one._backlog._waiting) for one in (cameras, robot, sensor))

    def begin_episode(self) -> None:
        def begun() -> bool:  # a subscription takes effect when it does
            self.state()
            return self.episodes.current is not None

        wait_until(begun, "an episode", 20)

    def close(self) -> None:
        self.stop.set()

        def over() -> bool:  # something to wake them, as often as it takes
            self.frame(999)
            self.state()
            self.samples(0)
            return not any(thread.is_alive() for thread in self.threads)

        wait_until(over, "the threads to end", 20)
        self.to_sensor.close()


@pytest.fixture
def rig(context: zmq.Context[Any]) -> Iterator[Waiting]:
    made = Waiting(context)
    yield made
    made.close()
    assert not made.counters.snapshot()


def test_who_looks_sees_all_that_came_with_its_time_of_arrival(rig: Waiting) -> None:
    rig.begin_episode()
    rig.observer.observe()
    sent_at = now()
    rig.frame(1)
    rig.state()
    rig.samples(100)
    wait_until(lambda: min(rig.waiting()) > 0, "one of each to wait", 20)
    came_by = now()
    threading.Event().wait(0.05)  # what is read late did not come late
    assert rig.cameras.views["View1"].newest.get() is None
    seen = rig.observer.observe()
    assert rig.waiting() == (0, 0, 0)
    frame = seen.frames["View1"]
    assert frame.frame.seq == 1
    assert seen.sensor[-1, 0] == 109
    assert seen.robot is not None
    for arrived_at in (frame.arrived_at, seen.robot.arrived_at, rig.sensor.arrived_at):
        assert arrived_at is not None and sent_at <= arrived_at <= came_by


def test_nobody_needs_to_look(rig: Waiting) -> None:
    rig.begin_episode()
    for number in range(40):
        rig.frame(number)
        rig.state()
        rig.samples(10 * number)
    wait_until(lambda: rig.cameras.views["View1"].meter.total >= 32, "the frames", 20)
    wait_until(lambda: rig.sensor.meter.total >= 320, "the samples", 20)
    wait_until(lambda: rig.robot.meter.total >= 32, "the states", 20)
    wait_until(lambda: sum(rig.waiting()) == 8 + rig.waiting()[1], "all to have come", 20)
    seen = rig.observer.observe()
    assert seen.frames["View1"].frame.seq == 39
    # Buffers are taken in turns: every sample is itself, the last ones too.
    assert rig.sensor.ring.newest(20)[1][:, 0].tolist() == list(range(380, 400))
    assert (rig.sensor.lost, rig.sensor.reordered) == (0, 0)


def test_rates_are_those_of_the_arrivals(rig: Waiting) -> None:
    began = time.monotonic()
    for number in range(10):
        rig.samples(10 * number)
        wait_until(lambda n=number: rig.sensor.meter.total + 10 * rig.waiting()[2] > 10 * n, "it")
        threading.Event().wait(0.02)
    rig.observer.observe()
    # Read in two lots, they would seem to have come in no time.
    assert 0 < rig.sensor.meter.rate_hz() <= 1.01 * 90 / (9 * 0.02)
    assert rig.sensor.meter.rate_hz() >= 0.9 * 90 / (time.monotonic() - began)


def test_a_stop_is_known_at_once(rig: Waiting) -> None:
    rig.begin_episode()
    rig.observer.observe()
    rig.state()
    stop = wire.RobotStatus("emergency_stop", time.time())
    rig.to_robot.send_multipart(wire.encode_robot_status(stop))
    wait_until(lambda: "emergency_stop" in rig.robot.troubles, "the stop to be known", 20)


def test_episodes_end_and_begin_at_once(rig: Waiting) -> None:
    rig.begin_episode()
    rig.observer.observe()
    rig.to_robot.send_multipart(wire.encode_episode_end())
    wait_until(lambda: not rig.episodes.current.active, "the end", 20)
    rig.state()
    wait_until(lambda: rig.episodes.current.number == 2, "the next one", 20)


def test_a_large_frame_does_not_wait(rig: Waiting) -> None:
    head, tail = JPEG[:2], JPEG[2:]
    comment = b"\xff\xfe\xff\xff" + bytes(65_533)
    rig.frame(5, head + 20 * comment + tail)
    wait_until(lambda: rig.cameras.views["View1"].newest.get() is not None, "it", 20)
