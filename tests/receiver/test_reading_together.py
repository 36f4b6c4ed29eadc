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
from receiver.inputs import CameraInput, RobotInput, SensorInput, StoredFrame, StoredState
from receiver.observation import Observer
from tests.support import free_ports, wait_until

HZ = 100.0
JPEG = cv2.imencode(".jpg", np.zeros((36, 64, 3), np.uint8))[1].tobytes()


class Shown:
    """A tap that notes in which episode it was shown something, 0 for none."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self.pictures: list[tuple[int | None, int]] = []
        self.datagrams: list[tuple[float, int]] = []

    @property
    def episode(self) -> int:
        current = self.episodes.current
        return current.number if current and current.active else 0

    def frame(self, view: str, stored: StoredFrame) -> None:
        self.pictures.append((stored.frame.seq, self.episode))

    def samples(self, datagram: memoryview, arrived_at: float) -> None:
        (force,) = wire.decode_samples(bytes(datagram), 3).forces[:1].tolist()
        self.datagrams.append((force, self.episode))

    def state(self, stored: StoredState) -> None:
        pass

    def action(self, record: object) -> None:
        pass


class Waiting:
    """All three inputs on real sockets, which nobody reads unless somebody looks."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        camera, robot, self.port = free_ports(3)
        self.episodes, self.counters = Episodes(), MalformedCounters()
        self.shown = Shown(self.episodes)
        taps = [self.shown]
        self.cameras = CameraInput(
            context, "127.0.0.1", camera, ("View1",), {}, self.counters, taps
        )
        self.sensor = SensorInput("127.0.0.1", self.port, 20, 3, HZ, 0.5, self.counters, taps)
        self.robot = RobotInput(
            context,
            "127.0.0.1",
            robot,
            self.episodes,
            self.counters,
            taps,
            beside=(self.cameras, self.sensor),
        )
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


def test_what_comes_is_shown_in_the_episode_in_which_it_came(rig: Waiting) -> None:
    def send(number: int) -> None:
        rig.frame(number)
        rig.samples(number)
        wait_until(lambda: rig.waiting()[::2] == (1, 1), "a frame and samples to wait", 20)

    rig.observer.observe()
    send(100)  # before the first episode
    rig.begin_episode()
    send(200)
    rig.to_robot.send_multipart(wire.encode_episode_end())
    wait_until(lambda: not rig.episodes.running, "the end", 20)
    send(300)
    rig.state()
    wait_until(lambda: rig.episodes.running, "the next one", 20)
    send(400)
    rig.observer.observe()
    assert rig.shown.pictures == [(100, 0), (200, 1), (300, 0), (400, 2)]
    assert rig.shown.datagrams == [(100, 0), (200, 1), (300, 0), (400, 2)]


def test_an_episode_begins_when_its_first_state_came(rig: Waiting) -> None:
    rig.begin_episode()
    newest = rig.robot.newest.as_of(now())
    first = rig.episodes.current
    assert newest is not None and first is not None
    # That one was read at once; any after it came later.
    assert first.started_at <= newest.arrived_at
    rig.to_robot.send_multipart(wire.encode_episode_end())
    wait_until(lambda: not rig.episodes.running, "the end", 20)
    rig.state()
    wait_until(lambda: rig.episodes.running, "the next one", 20)
    stored, second = rig.robot.newest.get(), rig.episodes.current
    assert stored is not None and second is not None
    assert second.started_at == stored.arrived_at


def test_of_many_parts_few_wait(rig: Waiting) -> None:
    rig.to_cameras.send_multipart([b"part"] * 1000)
    wait_until(lambda: rig.waiting()[0] == 1, "it to wait", 20)
    ((parts, _),) = rig.cameras._backlog._waiting
    assert len(parts) == 4
    rig.observer.observe()
    assert rig.counters.snapshot() == {"camera": {"parts": 1}}
    rig.counters = MalformedCounters()  # the others' end without a complaint


def test_a_large_frame_does_not_wait(rig: Waiting) -> None:
    head, tail = JPEG[:2], JPEG[2:]
    comment = b"\xff\xfe\xff\xff" + bytes(65_533)
    rig.frame(5, head + 20 * comment + tail)
    wait_until(lambda: rig.cameras.views["View1"].newest.get() is not None, "it", 20)
