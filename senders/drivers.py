"""The protocols that devices are driven by, and the table of the drivers there are.

A driver knows its device and nothing of the wire; a sender program knows the wire and nothing of
the device. A driver is named in a table as `module:Class` and imported only when asked for by
name, so that a machine needs the vendor package of its own device and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CameraDriver",
    "DriverError",
    "Frame",
    "RobotDriver",
    "RobotReading",
    "SampleBlock",
    "SensorDriver",
]


class DriverError(RuntimeError):
    """A device that cannot be used (now); the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class RobotReading:
    """One sample of a robot.

    Attributes:
        sampled_at: wall-clock seconds at which the robot was sampled.
        joints_deg: (6,) float64 joint angles in degrees.
        pose: (6,) float64: x, y, z in mm, then three mobile XYZ Euler angles in degrees.
        force_n: newtons, 0.0 where the robot has none.
        episode: counts up when the device starts another episode.
    """

    sampled_at: float
    joints_deg: NDArray[np.float64]
    pose: NDArray[np.float64]
    force_n: float = 0.0
    episode: int = 0


class RobotDriver(Protocol):
    """A robot arm. Calls come from one thread. Any of them may raise DriverError."""

    def open(self) -> None:
        """Connect; ready to be read when it returns."""
        ...

    def read(self) -> RobotReading:
        """The newest state; raises DriverError rather than returning a stale one."""
        ...

    def move_joints(self, joints_deg: NDArray[np.float64]) -> None:
        """Go to (6,) joint angles in degrees; called again at every control tick."""
        ...

    def move_pose(self, pose: NDArray[np.float64]) -> None:
        """Go to a pose (6,) in mm and degrees; DriverError where the robot cannot."""
        ...

    def hold(self) -> None:
        """Stay where the robot is now; safe to call at any time and repeatedly."""
        ...

    def close(self) -> None:
        """Leave the robot standing still and let go of it; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of one camera.

    Attributes:
        captured_at: wall-clock seconds of the exposure.
        image: (height, width, 3) uint8 in BGR order, or None when the device encoded it.
        jpeg: the device's own baseline JPEG, or None.
    """

    captured_at: float
    image: NDArray[np.uint8] | None = None
    jpeg: bytes | None = None


class CameraDriver(Protocol):
    """One camera, used by one thread of its own from `open` to `close`."""

    @property
    def name(self) -> str:
        """The name it has on the wire, e.g. `ZED_41182735_left` or `View1`."""
        ...

    def open(self) -> None:
        """Start capturing; raises DriverError."""
        ...

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture, at the device's pace; None when none came in time."""
        ...

    def close(self) -> None:
        """Stop capturing; safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """Samples that a force sensor delivered together, oldest first.

    Attributes:
        timestamps: (N,) float64 wall-clock seconds of each sample.
        forces: (N,) float32 newtons.
        alines: (N, L) float32, one A-scan a sample, ordered by depth.
    """

    timestamps: NDArray[np.float64]
    forces: NDArray[np.float32]
    alines: NDArray[np.float32]


class SensorDriver(Protocol):
    """A force (and OCT) sensor, read in blocks as its device delivers them."""

    def open(self) -> None:
        """Start sampling; raises DriverError."""
        ...

    def read(self, timeout_s: float) -> SampleBlock | None:
        """The samples since the last call (at least one); None when none came in time."""
        ...

    def close(self) -> None:
        """Stop sampling; safe to call twice."""
        ...
