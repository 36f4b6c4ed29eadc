"""What the inputs make of what comes in: losses, outages, clocks, episodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import zmq

from common import wire
from common.counters import MalformedCounters
from common.wire import CameraFrame, MalformedMessage, RobotState, SampleBatch
from receiver.episodes import Episodes
from receiver.inputs import CameraInput, InputError, RobotInput, SensorInput
from tests.support import free_ports

START = 1.7e9
HZ = 100.0
JPEG = cv2.imencode(".jpg", np.zeros((36, 64, 3), np.uint8))[1].tobytes()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def sensor() -> Iterator[SensorInput]:
    made = SensorInput("127.0.0.1", free_ports(1)[0], 20, 3, HZ, 0.5, MalformedCounters())
    yield made
    made._socket.close()


def datagram(first: int, count: int = 10, jitter_s: float = 0.0) -> memoryview:
    stamps = START + (first + np.arange(count)) / HZ
    stamps[0] += jitter_s
    forces = (first + np.arange(count)).astype(np.float32)
    batch = SampleBatch(stamps, stamps, forces, np.zeros((count, 3), np.float32))
    return memoryview(wire.encode_samples(batch))


def arrival(number: int) -> float:
    """When the datagram that ends with sample `number` comes in, in our clock."""
    return START + 5.0 + number / HZ


class TestSensor:
    def test_samples_of_lost_datagrams_are_counted(self, sensor: SensorInput) -> None:
        for first in (0, 10, 40, 50):
            sensor._take(datagram(first), arrival(first + 10))
        assert sensor.lost == 20
        assert sensor.meter.total == 40

    def test_jitter_of_the_stamps_is_no_loss(self, sensor: SensorInput) -> None:
        for first in range(0, 100, 10):
            sensor._take(datagram(first, jitter_s=0.02), arrival(first + 10))
        assert sensor.lost == 0

    def test_an_outage_is_no_loss_and_empties_the_window(self, sensor: SensorInput) -> None:
        for first in (0, 10, 20):
            sensor._take(datagram(first), arrival(first + 10))
        assert len(sensor.ring) == 20
        sensor._take(datagram(500), arrival(510))
        assert sensor.lost == 0
        # What lies before the outage must not stand beside what comes after it.
        assert sensor.ring.newest(20)[1][:, 0].tolist() == list(range(500, 510))

    def test_a_broken_stamp_is_refused_and_changes_nothing(self, sensor: SensorInput) -> None:
        for first in range(0, 100, 10):
            sensor._take(datagram(first), arrival(first + 10))
        with pytest.raises(MalformedMessage, match="clock"):
            sensor._take(datagram(100_000), arrival(110))
        assert sensor.ring.newest(1)[1][0, 0] == 99
        sensor._take(datagram(100), arrival(110))
        assert sensor.lost == 0
        assert sensor.clock.offset_s == pytest.approx(5.0, abs=0.02)

    def test_force_is_kept_for_a_policy_without_a_window(self) -> None:
        made = SensorInput("127.0.0.1", free_ports(1)[0], 0, 3, HZ, 0.5, MalformedCounters())
        made._take(datagram(0), arrival(10))
        assert len(made.ring) == 10
        made._socket.close()

    def test_a_port_in_use_is_said(self, sensor: SensorInput) -> None:
        port = sensor._socket.getsockname()[1]
        with pytest.raises(InputError, match=f"udp 127.0.0.1:{port}"):
            SensorInput("127.0.0.1", port, 20, 3, HZ, 0.5, MalformedCounters())


class TestCameras:
    @pytest.fixture
    def cameras(self, context: zmq.Context[Any]) -> CameraInput:
        views, mapping = ("View1", "View2"), {"77": "View2"}
        port = free_ports(1)[0]
        return CameraInput(context, "127.0.0.1", port, views, mapping, MalformedCounters())

    @staticmethod
    def frame(seq: int | None, camera: str = "View1") -> list[bytes]:
        stamp = START + (seq or 0) / 30
        parts = wire.encode_camera(CameraFrame(camera, stamp, JPEG, seq, stamp + 0.01))
        return [bytes(part) for part in parts]

    def test_gaps_in_the_numbers_are_dropped_frames(self, cameras: CameraInput) -> None:
        for seq in (0, 1, 5, 6, 9):
            cameras._take(self.frame(seq), START + 1 + seq / 30)
        assert cameras.views["View1"].dropped == 3 + 2
        assert cameras.views["View2"].dropped == 0

    def test_a_sender_that_starts_again_loses_nothing(self, cameras: CameraInput) -> None:
        for seq in (100, 101, 0, 1):
            cameras._take(self.frame(seq), START + 1 + seq / 30)
        assert cameras.views["View1"].dropped == 0

    def test_the_capture_time_is_in_our_clock(self, cameras: CameraInput) -> None:
        for seq in range(60):
            cameras._take(self.frame(seq), START + 1 + seq / 30)
        newest = cameras.views["View1"].newest.get()
        assert newest is not None
        # Sent 10 ms after the capture; what the network took cannot be told apart one-way.
        assert newest.arrived_at - newest.captured_at == pytest.approx(0.01, abs=1e-6)

    def test_cameras_find_their_views_and_others_are_counted(self, cameras: CameraInput) -> None:
        cameras._take(self.frame(1, "ZED_77_left"), START)
        for number in range(100):
            cameras._take(self.frame(number, f"stranger {number}"), START)
        assert cameras.views["View2"].newest.get() is not None
        assert cameras.views["View1"].newest.get() is None
        # Nobody's names fill the memory.
        assert len(cameras.unmapped) == 32


class TestRobot:
    def test_states_and_ends_make_episodes(self, context: zmq.Context[Any]) -> None:
        episodes = Episodes()
        robot = RobotInput(context, "127.0.0.1", free_ports(1)[0], episodes, MalformedCounters())

        def state(at: float) -> None:
            sample = RobotState(at, at, 0.0, (1.0,) * 6, (2.0,) * 6)
            robot._take(wire.encode_robot(sample), at + 1.0)

        assert episodes.current is None
        robot._take(wire.encode_episode_end(), START)
        assert episodes.current is None, "an end without a beginning"
        for at in (START, START + 0.01):
            state(at)
        assert episodes.current is not None
        assert (episodes.current.number, episodes.current.active) == (1, True)
        robot._take(wire.encode_episode_end(), START)
        assert not episodes.current.active
        state(START + 0.02)
        assert (episodes.current.number, episodes.current.active) == (2, True)
        assert robot.newest.get() is not None
        robot._socket.close(linger=0)
