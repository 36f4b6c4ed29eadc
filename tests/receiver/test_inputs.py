"""What the inputs make of what comes in: losses, outages, clocks, episodes."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import zmq

from common import wire
from common.counters import MalformedCounters
from common.wire import CameraFrame, MalformedMessage, RobotState, SampleBatch
from receiver import sockets
from receiver.episodes import Episodes
from receiver.inputs import CameraInput, InputError, RobotInput, SensorInput
from receiver.sender_clock import SenderClock
from receiver.sockets import udp_socket
from tests.support import free_ports, wait_until

START = 1.7e9
HZ = 100.0
JPEG = cv2.imencode(".jpg", np.zeros((36, 64, 3), np.uint8))[1].tobytes()


@pytest.fixture
def sensor() -> Iterator[SensorInput]:
    made = SensorInput("127.0.0.1", free_ports(1)[0], 20, 3, HZ, 0.5, MalformedCounters())
    yield made
    made._socket.close()


def datagram(first: float, count: int = 10, jitter_s: float = 0.0) -> memoryview:
    stamps = START + (first + np.arange(count)) / HZ
    stamps[0] += jitter_s
    forces = (first + np.arange(count)).astype(np.float32)
    batch = SampleBatch(stamps, stamps, forces, np.zeros((count, 3), np.float32))
    return memoryview(wire.encode_samples(batch))


class FixedClock(SenderClock):
    """A sender's clock that is known to be five seconds behind, and stays so."""

    def update(self, sent: float, arrival: float) -> bool:
        return True

    def to_local(self, stamp: float) -> float:
        return stamp + 5.0

    @property
    def calibrated(self) -> bool:
        return True


def give(sensor: SensorInput, data: memoryview, arrived_at: float) -> None:
    """As if it came over the socket."""
    sensor.buffers[0][: len(data)] = data
    sensor.take(len(data), arrived_at)


def arrival(number: int) -> float:
    """When the datagram that ends with sample `number` comes in, in our clock."""
    return START + 5.0 + number / HZ


class TestSensor:
    def test_samples_of_lost_datagrams_are_counted(self, sensor: SensorInput) -> None:
        for first in (0, 10, 40, 50):
            give(sensor, datagram(first), arrival(first + 10))
        assert sensor.lost == 20
        assert sensor.meter.total == 40

    def test_jitter_of_the_stamps_is_no_loss(self, sensor: SensorInput) -> None:
        for first in range(0, 100, 10):
            give(sensor, datagram(first, jitter_s=0.02), arrival(first + 10))
        assert sensor.lost == 0

    def test_an_outage_is_no_loss_and_empties_the_window(self, sensor: SensorInput) -> None:
        for first in (0, 10, 20):
            give(sensor, datagram(first), arrival(first + 10))
        assert len(sensor.ring) == 30
        give(sensor, datagram(500), arrival(510))
        assert sensor.lost == 0
        # What lies before the outage must not stand beside what comes after it.
        assert sensor.ring.newest(20)[1][:, 0].tolist() == list(range(500, 510))

    def test_a_broken_stamp_is_refused_and_changes_nothing(self, sensor: SensorInput) -> None:
        for first in range(0, 100, 10):
            give(sensor, datagram(first), arrival(first + 10))
        with pytest.raises(MalformedMessage, match="clock"):
            give(sensor, datagram(100_000), arrival(110))
        assert sensor.ring.newest(1)[1][0, 0] == 99
        give(sensor, datagram(100), arrival(110))
        assert sensor.lost == 0
        assert sensor.clock.offset_s == pytest.approx(5.0, abs=0.02)

    def test_force_is_kept_for_a_policy_without_a_window(self) -> None:
        made = SensorInput("127.0.0.1", free_ports(1)[0], 0, 3, HZ, 0.5, MalformedCounters())
        give(made, datagram(0), arrival(10))
        assert len(made.ring) == 10
        made._socket.close()

    def test_a_datagram_that_comes_late_is_not_lost(self, sensor: SensorInput) -> None:
        for first in (0, 10, 30, 20, 40):
            give(sensor, datagram(first), arrival(50))
        assert (sensor.lost, sensor.reordered, sensor.duplicates) == (0, 10, 0)
        assert len(sensor.ring) == 50

    def test_a_datagram_that_comes_twice_is_left_out(self, sensor: SensorInput) -> None:
        for first in (0, 10, 10, 0, 20):
            give(sensor, datagram(first), arrival(30))
        assert (sensor.lost, sensor.reordered, sensor.duplicates) == (0, 0, 20)
        assert sensor.ring.newest(30)[1][:, 0].tolist() == list(range(30))

    def test_stamps_that_stay_late_are_a_clock_that_was_set(self, sensor: SensorInput) -> None:
        sensor.clock = FixedClock("sensor")
        for first in (500, 510, 520):
            give(sensor, datagram(first), arrival(first + 10))
        for number in range(5):  # the clock was set back by a good half second
            give(sensor, datagram(470.5 + 10 * number), arrival(540 + 10 * number))
        assert sensor.reordered == 0
        # Nothing from before stands among what has other stamps.
        stamps, _ = sensor.ring.newest(sensor.ring.capacity)
        np.testing.assert_allclose(stamps, START + (470.5 + np.arange(50)) / HZ, atol=1e-6)

    def test_stamps_that_leap_ahead_leave_nothing_of_before(self, sensor: SensorInput) -> None:
        for number, first in enumerate((0, 10, 20, 80, 90)):
            give(sensor, datagram(first), arrival(10 * number))
        assert sensor.ring.newest(30)[1][:, 0].tolist() == list(range(80, 100))

    def test_what_is_refused_is_not_in_the_window(self, sensor: SensorInput) -> None:
        give(sensor, datagram(0), arrival(10))
        bad = bytearray(datagram(10))
        bad[-4:] = np.float32(np.nan).tobytes()
        with pytest.raises(MalformedMessage, match="values"):
            give(sensor, memoryview(bad), arrival(20))
        assert len(sensor.ring) == 10
        give(sensor, datagram(20), arrival(30))
        assert sensor.ring.newest(20)[1][:, 0].tolist() == [*range(10), *range(20, 30)]
        assert np.isfinite(sensor.ring.newest(20)[1]).all()

    def test_a_system_that_buffers_too_little_is_said(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Root may exceed the limit, others may not: be one of those.
        monkeypatch.setattr(sockets, "_SO_RCVBUFFORCE", 9999)
        with caplog.at_level("WARNING"):
            made = udp_socket("127.0.0.1", 0, 1 << 30, "the sensor")
        made.close()
        assert "sysctl -w net.core.rmem_max=" in caplog.text

    def test_ten_times_the_rate_for_two_seconds_is_not_lost(self) -> None:
        """1,300 datagrams over a real socket, as fast as the other side makes room for."""
        made = SensorInput("127.0.0.1", 0, 65, 1025, 6500.0, 0.5, MalformedCounters())
        target, stop = made._socket.getsockname(), threading.Event()
        thread = threading.Thread(target=made.run, args=(stop,))
        out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        values = np.random.default_rng(0).random((10, 1026), np.float32)
        start, period_s = time.time(), 10 / 6500
        thread.start()
        try:
            for number in range(1300):
                # Never further ahead than the socket must hold, however slow the machine is.
                wait_until(lambda n=number: n - made.meter.total // 10 < 50, "room", 20)
                stamps = start + period_s * (number + np.arange(10) / 10)
                values[:, 0] = np.arange(10) + 10 * number
                batch = SampleBatch(stamps, stamps, values[:, 0], values[:, 1:])
                out.sendto(wire.encode_samples(batch), target)
            wait_until(lambda: made.meter.total == 13_000, "all samples", 20)
            assert (made.lost, made.reordered, made.duplicates) == (0, 0, 0)
            assert made.ring.newest(65)[1][:, 0].tolist() == list(range(12_935, 13_000))
        finally:
            stop.set()
            thread.join(10)
            out.close()

    def test_a_port_in_use_is_said(self, sensor: SensorInput) -> None:
        port = sensor._socket.getsockname()[1]
        with pytest.raises(InputError, match=f"udp 127.0.0.1:{port}"):
            SensorInput("127.0.0.1", port, 20, 3, HZ, 0.5, MalformedCounters())


class TestCameras:
    @pytest.fixture
    def cameras(self, context: zmq.Context[Any]) -> CameraInput:
        views, mapping = ("View1", "View2"), {"77": "View2", "78": "View9"}
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

    def test_a_view_that_the_policy_does_not_use_is_no_mistake(
        self, cameras: CameraInput, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        for seq in range(3):
            cameras._take(self.frame(seq, "ZED_78_left"), START + seq)
        cameras._take(self.frame(1, "stranger"), START)
        said = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert said == [
            (
                "INFO",
                "camera ZED_78_left: View9 is not used, this policy looks at View1, View2",
            ),
            (
                "WARNING",
                "camera stranger is mapped to no view: its frames are ignored (config: views)",
            ),
        ]
        assert (cameras.unused, cameras.unmapped) == ({"ZED_78_left": 3}, {"stranger": 1})

    def test_a_late_frame_takes_its_place_and_replaces_none(self, cameras: CameraInput) -> None:
        for seq in (0, 1, 3, 2):
            cameras._take(self.frame(seq), START + 1 + seq / 30)
        stream = cameras.views["View1"]
        newest = stream.newest.get()
        assert newest is not None and newest.frame.seq == 3
        assert stream.reordered == 1
        before = stream.newest.as_of(newest.captured_at - 0.01)
        assert before is not None and before.frame.seq == 2

    def test_frames_of_before_a_clock_was_set_are_forgotten(self, cameras: CameraInput) -> None:
        for seq in range(60):
            cameras._take(self.frame(seq), START + 1 + seq / 30)
        stream, ahead = cameras.views["View1"], 60
        # Set back by three seconds: frames seem late until the new clock is believed.
        while not stream.clock.steps:
            cameras._take(self.frame(ahead), START + 4 + ahead / 30)
            ahead += 1
            assert ahead < 200
        newest = stream.newest.get()
        assert newest is not None and newest.frame.seq == ahead - 1
        assert len(stream.newest) == 1
        assert newest.arrived_at - newest.captured_at == pytest.approx(0.01, abs=1e-3)


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
