"""What is known of one instant: every stream as it was then, with its age."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from common.clock import now
from common.wire import RobotCondition, RobotState
from receiver.inputs import (
    CameraInput,
    RobotInput,
    SensorInput,
    StoredFrame,
    StoredState,
    StoredStatus,
)

__all__ = ["Observation", "Observer", "interpolated", "with_speeds"]

_LARGEST_GAP_S = 0.1
"""Between states further apart nobody knows what the robot did: ten periods of the usual rate."""
_SPEED_S = 0.05
"""Speeds are told over this long: less than a tick, and long enough not to be a sensor's noise."""
_LARGEST_TURN_DEG = 45.0
"""An Euler angle that changes more between two states did not turn: near a gimbal lock the same
attitude has other angles."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A consistent snapshot; time points are in this process's time base.

    Attributes:
        at: the instant.
        frames: view → its newest frame captured by then, only views that have one.
        sensor: (n, channels) float32, the samples up to then, oldest first; n ≤ window.
        sensor_at: when the newest of them was taken; None without samples.
        sensor_age_s: seconds since the newest datagram came; infinite before the first.
        force_peak_n: largest absolute force among the newest samples, whether or not the policy
            takes a sensor window; None without samples.
        robot: the robot's state at the instant: between the two states around it, or the newest
            where there is none after it.
        robot_status: what the robot's side last said of it, if it ever did.
        robot_troubles: when it last said each condition but "ok", whether or not that is over.
    """

    at: float
    frames: dict[str, StoredFrame]
    sensor: NDArray[np.float32]
    sensor_at: float | None
    sensor_age_s: float
    force_peak_n: float | None
    robot: StoredState | None
    robot_status: StoredStatus | None = None
    robot_troubles: Mapping[RobotCondition, StoredStatus] = field(default_factory=dict)

    @property
    def ages_s(self) -> dict[str, float]:
        """Seconds from capture to the instant: `robot`, `sensor`, `camera/View1` and so on."""
        taken_at = {f"camera/{view}": frame.captured_at for view, frame in self.frames.items()}
        if self.robot is not None:
            taken_at["robot"] = self.robot.sampled_at
        if self.sensor_at is not None:
            taken_at["sensor"] = self.sensor_at
        return {stream: self.at - moment for stream, moment in taken_at.items()}


class Observer:
    """Takes snapshots of the inputs; any thread may ask."""

    def __init__(
        self, cameras: CameraInput, robot: RobotInput, sensor: SensorInput, window: int
    ) -> None:
        """Read from these inputs; `window` samples make a whole sensor window."""
        self.cameras = cameras
        self.robot = robot
        self.sensor = sensor
        self.window = window

    def frames(self, at: float | None = None) -> dict[str, StoredFrame]:
        """The newest frame of every view that has one, captured at `at` or before where given."""
        self.cameras.catch_up()
        views = self.cameras.views.items()
        found = {v: s.newest.get() if at is None else s.newest.as_of(at) for v, s in views}
        return {view: frame for view, frame in found.items() if frame is not None}

    def next_picture_at(self) -> float | None:
        """When the view with the oldest picture is due to have another; None when not known.

        A frame comes as long after the one before as that was taken after its own predecessor.
        """
        self.cameras.catch_up()
        due: tuple[float, float] | None = None
        for stream in self.cameras.views.values():
            before, newest = stream.newest.last_two()
            if before is None or newest is None:
                return None
            expected_at = newest.arrived_at + (newest.captured_at - before.captured_at)
            if due is None or newest.captured_at < due[0]:
                due = newest.captured_at, expected_at
        return None if due is None else due[1]

    def observe(self) -> Observation:
        """Everything as it is now."""
        return self.as_of(now())

    def as_of(self, at: float) -> Observation:
        """Everything as it was at `at`, which may be a fraction of a second ago.

        Of each stream no more than that is kept: a quarter of a second of frames, a third of
        states, two windows of samples.
        """
        frames = self.frames(at)
        self.robot.catch_up()
        sensor = self.sensor
        sensor.catch_up()
        stamps, rows = sensor.ring.newest(sensor.ring.capacity)
        arrived_at = sensor.arrived_at
        order: NDArray[np.intp] | None = None
        # In order nearly always: then what the model sees are the ring's own rows, not copies.
        if (stamps[1:] < stamps[:-1]).any():
            order = np.argsort(stamps, kind="stable")
            stamps = stamps[order]
        known = len(stamps)
        # What has come by then is not of the future, whatever its stamp says.
        if arrived_at is None or at < arrived_at:
            known = bisect_right(stamps, at, key=sensor.clock.to_local)
        first = max(known - self.window, 0)
        chosen = rows[first:known] if order is None else rows[order[first:known]]
        return Observation(
            at=at,
            frames=frames,
            sensor=chosen,
            sensor_at=self._sensor_at(stamps[:known], arrived_at),
            sensor_age_s=float("inf") if arrived_at is None else at - arrived_at,
            force_peak_n=self._force_peak_n(rows[:known]),
            robot=self._robot(at),
            robot_status=self.robot.status.get(),
            robot_troubles=self.robot.troubles,
        )

    def _sensor_at(self, stamps: NDArray[np.float64], arrived_at: float | None) -> float | None:
        if not len(stamps):
            return None
        taken_at = self.sensor.clock.to_local(float(stamps[-1]))
        return taken_at if arrived_at is None else min(taken_at, arrived_at)

    def _force_peak_n(self, rows: NDArray[np.float32]) -> float | None:
        # Of the last that came, in whatever order: a force is one, early or late.
        forces = rows[-self.sensor.watched :, 0]
        return float(np.abs(forces).max()) if len(forces) else None

    def _robot(self, at: float) -> StoredState | None:
        before, after = self.robot.newest.around(at)
        if before is None:
            return None
        # Nothing is said of what comes after the newest.
        apart = after is None or after.sampled_at - before.sampled_at > _LARGEST_GAP_S
        seen = before if apart or after is None else interpolated(before, after, at)
        return with_speeds(seen, self.robot.newest.as_of(seen.sampled_at - _SPEED_S))


def with_speeds(seen: StoredState, earlier: StoredState | None) -> StoredState:
    """The state with its joint speeds, told from an earlier one; as it is where that is too old."""
    span_s = seen.sampled_at - earlier.sampled_at if earlier is not None else math.inf
    if earlier is None or not 0 < span_s <= _LARGEST_GAP_S:
        return seen
    pairs = zip(seen.state.joints, earlier.state.joints, strict=True)
    speeds = tuple((now_deg - then_deg) / span_s for now_deg, then_deg in pairs)
    return replace(seen, state=replace(seen.state, speeds=speeds))


def interpolated(before: StoredState, after: StoredState, at: float) -> StoredState:
    """The robot's state between two, at `at`: straight lines in time.

    Joints may turn more than once and are taken as they are. The pose's angles go the shorter way
    round, each for itself, which is right for the small turn between two states; where one jumps,
    the angles of the nearer state are taken. It counts as arrived when the earlier one did.
    """
    span_s = after.sampled_at - before.sampled_at
    share = min(max((at - before.sampled_at) / span_s, 0.0), 1.0) if span_s > 0 else 1.0
    a, b = before.state, after.state
    state = RobotState(
        _between(a.origin_timestamp, b.origin_timestamp, share),
        _between(a.send_timestamp, b.send_timestamp, share),
        _between(a.force, b.force, share),
        tuple(_between(x, y, share) for x, y in zip(a.joints, b.joints, strict=True)),
        tuple(_between(x, y, share) for x, y in zip(a.pose[:3], b.pose[:3], strict=True))
        + _angles_between(a.pose[3:], b.pose[3:], share),
    )
    return StoredState(
        state, _between(before.sampled_at, after.sampled_at, share), before.arrived_at
    )


def _between(a: float, b: float, share: float) -> float:
    return a + (b - a) * share


def _angles_between(a: Sequence[float], b: Sequence[float], share: float) -> tuple[float, ...]:
    turns = [(y - x + 180.0) % 360.0 - 180.0 for x, y in zip(a, b, strict=True)]
    if max(map(abs, turns), default=0.0) > _LARGEST_TURN_DEG:
        return tuple(a if share < 0.5 else b)
    return tuple(_turned(x, turn * share) for x, turn in zip(a, turns, strict=True))


def _turned(angle: float, turn: float) -> float:
    """The angle after a turn, in the sender's range where that ends at half a turn."""
    turned = angle + turn
    return turned - math.copysign(360.0, turned) if abs(angle) <= 180.0 < abs(turned) else turned
