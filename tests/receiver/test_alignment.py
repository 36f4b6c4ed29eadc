"""An observation is of one instant: every stream as of then, by stamp and not by arrival."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from common import wire
from common.counters import MalformedCounters
from common.wire import CameraFrame, RobotState, SampleBatch
from receiver.episodes import Episodes
from receiver.history import History
from receiver.inputs import CameraInput, RobotInput, SensorInput, StoredFrame, StoredState
from receiver.observation import Observer, interpolated, with_speeds
from receiver.summary import summarize
from tests.receiver.rig import Rig
from tests.receiver.test_inputs import JPEG, FixedClock
from tests.support import free_ports, wait_until

START = 1.7e9
OFFSET_S = 5.0
HZ = 500.0
WINDOW = 20


class Inputs:
    """The three inputs, given messages by hand."""

    def __init__(self, context: zmq.Context[Any], fixed: bool = True) -> None:
        counters, (camera, robot, sensor) = MalformedCounters(), free_ports(3)
        self.cameras = CameraInput(context, "127.0.0.1", camera, ("View1", "View2"), {}, counters)
        self.robot = RobotInput(context, "127.0.0.1", robot, Episodes(), counters)
        self.sensor = SensorInput("127.0.0.1", sensor, WINDOW, 3, HZ, 0.5, counters)
        clocks = [self.robot, self.sensor, *self.cameras.views.values()]
        for stream in clocks if fixed else ():
            stream.clock = FixedClock("known")
        self.observer = Observer(self.cameras, self.robot, self.sensor, WINDOW)

    def frame(self, at: float, view: str = "View1", late_s: float = 0.0) -> None:
        stamp = START + at
        parts = wire.encode_camera(CameraFrame(view, stamp, JPEG, None, stamp))
        self.cameras._take([bytes(part) for part in parts], stamp + OFFSET_S + late_s)

    def state(self, at: float, joint: float, late_s: float = 0.0) -> None:
        stamp = START + at
        state = RobotState(stamp, stamp, 0.0, (joint,) * 6, (joint,) * 6)
        self.robot._take(wire.encode_robot(state), stamp + OFFSET_S + late_s)

    def samples(self, first: int, count: int = 10, late_s: float = 0.0) -> None:
        """Samples that carry their number as their force."""
        numbers = np.arange(first, first + count)
        stamps = START + numbers / HZ
        alines = np.zeros((count, 3), np.float32)
        data = wire.encode_samples(SampleBatch(stamps, stamps, numbers.astype(np.float32), alines))
        self.sensor.buffers[0][: len(data)] = data
        self.sensor.take(len(data), float(stamps[-1]) + OFFSET_S + late_s)


def local(at: float) -> float:
    return START + OFFSET_S + at


@pytest.fixture(params=[True])
def inputs(request: pytest.FixtureRequest) -> Iterator[Inputs]:
    context: zmq.Context[Any] = zmq.Context()
    made = Inputs(context, fixed=request.param)
    yield made
    made.sensor._socket.close()
    context.destroy(linger=0)


def forces(window: np.ndarray) -> list[int]:
    return [int(force) for force in window[:, 0]]


class TestSensor:
    def test_the_window_ends_at_the_instant(self, inputs: Inputs) -> None:
        for first in range(0, 100, 10):
            inputs.samples(first)
        seen = inputs.observer.as_of(local(84.4 / HZ))
        assert forces(seen.sensor) == list(range(65, 85))
        assert seen.sensor_at == pytest.approx(local(84 / HZ), abs=1e-5)
        assert seen.ages_s["sensor"] == pytest.approx(0.4 / HZ, abs=1e-5)
        assert seen.force_peak_n == 84.0, "what comes after the instant is not of it"

    def test_the_newest_window_is_no_copy(self, inputs: Inputs) -> None:
        for first in range(0, 100, 10):
            inputs.samples(first)
        seen = inputs.observer.as_of(local(1.0))
        assert forces(seen.sensor) == list(range(80, 100))
        assert np.shares_memory(seen.sensor, inputs.sensor.ring._rows)
        assert seen.sensor.flags.c_contiguous

    def test_samples_stand_in_the_order_of_their_stamps(self, inputs: Inputs) -> None:
        for first in (0, 10, 20, 40, 30, 50, 70, 60):
            inputs.samples(first, late_s=0.1)
        seen = inputs.observer.as_of(local(1.0))
        assert forces(seen.sensor) == list(range(60, 80))
        assert inputs.sensor.reordered == 20
        # And as it was when the late ones had come, or would have.
        assert forces(inputs.observer.as_of(local(54.5 / HZ)).sensor) == list(range(35, 55))

    def test_a_repeated_datagram_stands_there_once(self, inputs: Inputs) -> None:
        for first in (0, 10, 20, 20, 10, 30):
            inputs.samples(first)
        assert forces(inputs.observer.as_of(local(1.0)).sensor) == list(range(20, 40))
        assert inputs.sensor.duplicates == 20

    def test_before_the_first_sample_there_is_none(self, inputs: Inputs) -> None:
        inputs.samples(0)
        seen = inputs.observer.as_of(local(-0.01))
        assert len(seen.sensor) == 0
        assert (seen.sensor_at, seen.force_peak_n) == (None, None)

    def test_stamps_ahead_of_us_are_not_of_the_future_once_they_came(self, inputs: Inputs) -> None:
        inputs.samples(0, late_s=-0.05)  # the clock's offset is believed 50 ms too large
        arrived_at = inputs.sensor.arrived_at
        assert arrived_at is not None
        seen = inputs.observer.as_of(arrived_at)
        assert len(seen.sensor) == 10
        assert seen.sensor_at == arrived_at

    @pytest.mark.parametrize("inputs", [False], indirect=True)
    def test_a_clock_that_was_set_leaves_no_wrong_window(self, inputs: Inputs) -> None:
        """Set back by 3 s: after four datagrams the window is of the new stamps alone."""
        for first in range(3000, 3600, 10):
            inputs.samples(first)
        for number, first in enumerate(range(2100, 3100, 10)):
            inputs.samples(first, late_s=3.0)
            seen = inputs.observer.as_of(local((first + 9) / HZ + 3.0) + 0.001)
            # A high force is seen at once, whatever its stamp says.
            assert seen.force_peak_n is not None and seen.force_peak_n >= first
            if number >= 3:
                assert min(forces(seen.sensor)) >= 2100
                assert max(forces(seen.sensor)) == first + 9
        assert inputs.sensor.clock.steps == 1
        assert 0.0 <= seen.ages_s["sensor"] < 0.1

    @pytest.mark.parametrize("seed", range(30))
    def test_shuffled_neighbours_give_the_window_of_sorted_ones(
        self, inputs: Inputs, seed: int
    ) -> None:
        rng, order = random.Random(seed), list(range(0, 120, 5))
        for place in range(0, len(order) - 1, 2):
            if rng.random() < 0.5:
                order[place], order[place + 1] = order[place + 1], order[place]
        for first in order:
            inputs.samples(first, 5, late_s=0.05)
            if rng.random() < 0.2:
                inputs.samples(first, 5, late_s=0.05)
        assert inputs.sensor.ring.capacity >= 120
        for cut in rng.sample(range(120), 20):
            seen = inputs.observer.as_of(local((cut + 0.5) / HZ))
            assert forces(seen.sensor) == list(range(max(0, cut + 1 - WINDOW), cut + 1))


class TestFrames:
    def test_the_newest_at_or_before_the_instant(self, inputs: Inputs) -> None:
        for number in range(6):
            inputs.frame(number / 30)
            inputs.frame(number / 30 + 0.01, "View2")
        seen = inputs.observer.as_of(local(3 / 30 + 0.005))
        taken = {view: frame.frame.timestamp - START for view, frame in seen.frames.items()}
        assert taken == pytest.approx({"View1": 3 / 30, "View2": 2 / 30 + 0.01}, abs=1e-5)
        assert seen.ages_s["camera/View1"] == pytest.approx(0.005, abs=1e-5)
        assert seen.ages_s["camera/View2"] == pytest.approx(1 / 30 - 0.005, abs=1e-5)

    def test_a_view_whose_frames_are_all_newer_is_not_there(self, inputs: Inputs) -> None:
        inputs.frame(0.0)
        inputs.frame(0.5, "View2")
        assert list(inputs.observer.as_of(local(0.1)).frames) == ["View1"]
        assert sorted(inputs.observer.as_of(local(0.6)).frames) == ["View1", "View2"]

    def test_a_late_frame_is_no_newest_one(self, inputs: Inputs) -> None:
        for at, late_s in ((0.0, 0.0), (0.066, 0.0), (0.033, 0.1), (0.1, 0.0)):
            inputs.frame(at, late_s=late_s)
        assert inputs.cameras.views["View1"].reordered == 1
        at = inputs.observer.as_of(local(0.05)).frames["View1"].frame.timestamp
        assert at == pytest.approx(START + 0.033, abs=1e-5)


class TestRobot:
    def test_between_two_states_there_is_a_line(self, inputs: Inputs) -> None:
        for number in range(10):
            inputs.state(number / 100, float(number))
        seen = inputs.observer.as_of(local(0.0425))
        assert seen.robot is not None
        assert seen.robot.state.joints == pytest.approx((4.25,) * 6, abs=1e-3)
        assert seen.robot.state.pose == pytest.approx((4.25,) * 6, abs=1e-3)
        assert seen.ages_s["robot"] == pytest.approx(0.0, abs=1e-6)
        # It is not known longer than the older of the two.
        assert seen.robot.arrived_at == pytest.approx(local(0.04), abs=1e-6)

    def test_beyond_the_newest_nothing_is_made_up(self, inputs: Inputs) -> None:
        for number in range(10):
            inputs.state(number / 100, float(number))
        seen = inputs.observer.as_of(local(0.3))
        assert seen.robot is not None
        assert seen.robot.state.joints == (9.0,) * 6
        assert seen.ages_s["robot"] == pytest.approx(0.21, abs=1e-5)

    def test_a_gap_is_not_bridged(self, inputs: Inputs) -> None:
        """What hides that the robot was silent would hide a reason to hold."""
        inputs.state(0.0, 1.0)
        inputs.state(0.4, 2.0)
        seen = inputs.observer.as_of(local(0.3))
        assert seen.robot is not None
        assert seen.robot.state.joints == (1.0,) * 6
        assert seen.ages_s["robot"] == pytest.approx(0.3, abs=1e-5)

    def test_a_late_state_takes_its_place(self, inputs: Inputs) -> None:
        for at, joint, late_s in ((0.0, 0.0, 0.0), (0.02, 2.0, 0.0), (0.01, 5.0, 0.05)):
            inputs.state(at, joint, late_s)
        newest = inputs.observer.as_of(local(0.1)).robot
        assert newest is not None and newest.state.joints[0] == 2.0
        between = inputs.observer.as_of(local(0.015)).robot
        assert between is not None
        assert between.state.joints[0] == pytest.approx(3.5, abs=1e-3)
        assert inputs.robot.reordered == 1

    def test_before_the_first_state_there_is_none(self, inputs: Inputs) -> None:
        inputs.state(0.0, 1.0)
        assert inputs.observer.as_of(local(-0.1)).robot is None


def stored(at: float, angle: float, joint: float = 0.0) -> StoredState:
    state = RobotState(at, at, 0.0, (joint,) * 6, (0.0, 0.0, 0.0, angle, 0.0, 0.0))
    return StoredState(state, at, at + 0.001)


@pytest.mark.parametrize(
    ("first", "second", "share", "angle"),
    [
        (10.0, 20.0, 0.5, 15.0),
        (179.0, -179.0, 0.25, 179.5),
        (179.0, -179.0, 0.75, -179.5),
        (-179.0, 179.0, 0.75, 179.5),
        (350.0, 370.0, 0.5, 360.0),  # a sender that counts on goes on counting
        (0.0, 90.0, 0.4, 0.0),  # no turn, but another name for the attitude
        (0.0, 90.0, 0.6, 90.0),
    ],
)
def test_angles_go_the_shorter_way(first: float, second: float, share: float, angle: float) -> None:
    seen = interpolated(stored(1.0, first), stored(2.0, second), 1.0 + share)
    assert seen.state.pose[3] == pytest.approx(angle)
    assert seen.sampled_at == pytest.approx(1.0 + share)


def test_joints_that_turn_more_than_once_go_the_way_they_went() -> None:
    seen = interpolated(stored(1.0, 0.0, 100.0), stored(2.0, 0.0, 400.0), 1.5)
    assert seen.state.joints[0] == pytest.approx(250.0)


def test_speeds_are_told_from_two_states() -> None:
    moving = with_speeds(stored(1.05, 0.0, 12.0), stored(1.0, 0.0, 10.0))
    assert moving.state.speeds == pytest.approx((40.0,) * 6)
    assert moving.state.joints == (12.0,) * 6
    # Not from one, from the same, or from one of long ago.
    for earlier in (None, stored(1.05, 0.0), stored(0.9, 0.0), stored(1.1, 0.0)):
        assert with_speeds(stored(1.05, 0.0, 12.0), earlier).state.speeds == ()


@pytest.mark.parametrize("rate_hz", [100, 1000])  # the usual rate, and the most a sender has
def test_the_observer_tells_speeds(inputs: Inputs, rate_hz: int) -> None:
    for number in range(8 * rate_hz // 100):
        inputs.state(number / rate_hz, joint=20.0 * number / rate_hz)
    robot = inputs.observer.observe().robot
    assert robot is not None
    assert robot.state.speeds == pytest.approx((20.0,) * 6, abs=0.1)


@settings(max_examples=100, deadline=None)
@given(stamps=st.lists(st.integers(0, 30), max_size=40), at=st.integers(-1, 31))
def test_a_history_is_the_newest_of_all_sorted(stamps: list[int], at: int) -> None:
    history: History[tuple[int, int]] = History(8, lambda value: float(value[0]))
    put = [(stamp, number) for number, stamp in enumerate(stamps)]
    for value in put:
        history.put(value)
    newest = sorted(put)[-8:]
    assert len(history) == len(newest)
    assert history.get() == (newest[-1] if newest else None)
    before = [value for value in newest if value[0] <= at]
    after = [value for value in newest if value[0] > at]
    assert history.as_of(at) == (before[-1] if before else None)
    assert history.around(at)[1] == (after[0] if after else None)


@settings(max_examples=100, deadline=None)
@given(
    stamps=st.lists(st.integers(0, 99), max_size=99), sort=st.booleans(), at=st.integers(-1, 100)
)
def test_a_long_history_keeps_few_more_than_it_has_to(
    stamps: list[int], sort: bool, at: int
) -> None:
    history: History[tuple[int, int]] = History(32, lambda value: float(value[0]))
    put = [(stamp, number) for number, stamp in enumerate(sorted(stamps) if sort else stamps)]
    for value in put:
        history.put(value)
    assert history._values[-32:] == sorted(put)[-32:]
    assert len(history) <= 32 + 2
    before = [value for value in history._values if value[0] <= at]
    assert history.as_of(at) == (before[-1] if before else None)
    assert history.last_two() == ((None, None, *sorted(put))[-2], history.get())


def test_who_looks_at_a_history_sees_what_was_there_when_he_began() -> None:
    history: History[int] = History(64, float)
    for value in range(60):
        history.put(value)
    seen = []

    def stamp_of(value: int) -> float:  # the other thread's turn, at every step
        seen.append(value)
        history._stamp_of = float
        history.put(60 + len(seen))
        history._stamp_of = stamp_of
        return float(value)

    history._stamp_of = stamp_of
    assert history.around(10) == (10, 11)
    assert seen == list(range(59, 9, -1))


@settings(max_examples=200, deadline=None)
@given(puts=st.lists(st.none() | st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=60))
def test_a_history_never_holds_more_bytes_than_it_may(puts: list[tuple[int, int] | None]) -> None:
    """Stamps and sizes; None: its clock was set, all is forgotten."""
    history: History[tuple[int, int, int]] = History(
        5, lambda value: float(value[0]), 100, lambda value: value[1]
    )
    model: list[tuple[int, int, int]] = []
    for number, put in enumerate(puts):
        if put is None:
            history.clear()
            model.clear()
            continue
        value = (put[0], put[1], number)
        history.put(value)
        model = sorted([*model, value], key=lambda kept: (kept[0], kept[2]))[-5:]
        while len(model) > 1 and sum(size for _, size, _ in model) > 100:
            del model[0]
        assert history._values == model


def test_the_next_picture_is_that_of_the_view_with_the_oldest(inputs: Inputs) -> None:
    assert inputs.observer.next_picture_at() is None
    inputs.frame(0.00)
    inputs.frame(0.01, "View2")
    inputs.frame(0.04, late_s=0.003)
    assert inputs.observer.next_picture_at() is None  # one picture has no rhythm
    inputs.frame(0.03, "View2", late_s=0.002)
    # View2's is the older one, taken 20 ms after the one before, and came 2 ms after that.
    expected = START + OFFSET_S + 0.032 + 0.020
    assert inputs.observer.next_picture_at() == pytest.approx(expected, abs=1e-6)


def test_a_history_of_large_frames_is_bounded_in_bytes(inputs: Inputs) -> None:
    stream = inputs.cameras.views["View1"]
    for number in range(6):
        large = cast(CameraFrame, SimpleNamespace(jpeg=bytes(3 << 20)))
        stream.put(StoredFrame(large, float(number), float(number)))
    assert len(stream.newest) == 2
    newest = stream.newest.get()
    assert newest is not None and newest.captured_at == 5.0
    huge = cast(CameraFrame, SimpleNamespace(jpeg=bytes(16 << 20)))
    stream.put(StoredFrame(huge, 6.0, 6.0))
    assert len(stream.newest) == 1, "the newest is always kept"


def test_the_summary_says_how_old_every_stream_was_when_used(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    try:
        rig.wait_for_motion()
        wait_until(lambda: rig.run.actions.total >= 20, "some actions")
    finally:
        rig.close()
    summary = summarize(rig.run)
    ages = summary["capture_to_use_ms"]
    assert set(ages) == {"robot", "sensor", "camera/View1"}
    assert all(0.0 <= age["p50"] <= age["p99"] for age in ages.values())
    # Of the pictures, those in the features: there is one view, so it is the features' age.
    assert ages["camera/View1"]["p50"] == summary["feature_age_ms_p50"] > 0.0
    assert (summary["sensor_reordered"], summary["sensor_duplicates"]) == (0, 0)
