"""What is known at one instant: the newest of every stream, with its age."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.clock import now
from receiver.inputs import (
    CameraInput,
    RobotInput,
    SensorInput,
    StoredFrame,
    StoredState,
    StoredStatus,
)

__all__ = ["Observation", "Observer"]


@dataclass(frozen=True, slots=True)
class Observation:
    """A consistent snapshot; time points are in this process's time base.

    Attributes:
        at: the instant.
        frames: view → its newest frame, only views that have one.
        sensor: (n, channels) float32, the newest samples, oldest first; n ≤ window.
        sensor_at: when the newest sample was taken; None without samples.
        sensor_age_s: seconds since the newest datagram came; infinite before the first.
        force_peak_n: largest absolute force among the newest samples, whether or not the policy
            takes a sensor window; None without samples.
        robot: the newest robot state, if any.
        robot_status: what the robot's side last said of it, if it ever did.
    """

    at: float
    frames: dict[str, StoredFrame]
    sensor: NDArray[np.float32]
    sensor_at: float | None
    sensor_age_s: float
    force_peak_n: float | None
    robot: StoredState | None
    robot_status: StoredStatus | None = None


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

    def frames(self) -> dict[str, StoredFrame]:
        """The newest frame of every view that has one."""
        newest = {view: stream.newest.get() for view, stream in self.cameras.views.items()}
        return {view: frame for view, frame in newest.items() if frame is not None}

    def observe(self) -> Observation:
        """The newest of everything, now."""
        stamps, rows = self.sensor.ring.newest(self.sensor.ring.capacity)
        arrived_at, at = self.sensor.arrived_at, now()
        return Observation(
            at=at,
            frames=self.frames(),
            sensor=rows[max(len(rows) - self.window, 0) :],
            sensor_at=self.sensor.clock.to_local(float(stamps[-1])) if len(stamps) else None,
            sensor_age_s=float("inf") if arrived_at is None else at - arrived_at,
            force_peak_n=float(np.abs(rows[:, 0]).max()) if len(rows) else None,
            robot=self.robot.newest.get(),
            robot_status=self.robot.status.get(),
        )
