"""The protocols that devices are driven by, and the table of the drivers there are.

A driver knows its device and nothing of the wire; a sender program knows the wire and nothing of
the device. A driver is named in a table as `module:Class` and imported only when asked for by
name, so that a machine needs the vendor package of its own device and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from common.clock import Tick
from common.wire import RobotCondition

__all__ = [
    "CameraDriver",
    "DriverError",
    "Frame",
    "Recorded",
    "RecordedRobot",
    "RecordingOver",
    "RobotDriver",
    "RobotFault",
    "RobotReading",
    "SampleBlock",
    "SensorDriver",
]


class DriverError(RuntimeError):
    """A device that cannot be used (now); the message is one line that says what to do."""


class RecordingOver(Exception):
    """A recording has been played to its end: the program ends cleanly."""


class RobotFault(DriverError):
    """A robot that is there and says that it must not be used: an error, an emergency stop."""

    def __init__(self, condition: RobotCondition, message: str) -> None:
        """`condition` is what the receiver is told beside the message."""
        super().__init__(message)
        self.condition: RobotCondition = condition


@runtime_checkable
class Recorded(Protocol):
    """What a driver is that plays a recording: nothing is left out to keep a rate, or for newer.

    A driver says so by an attribute `recorded` (its value is not looked at).
    """

    recorded: bool


@runtime_checkable
class RecordedRobot(Protocol):
    """A robot that plays a recording: its states come when they came, not on a clock."""

    def ticks(self, stop: Event) -> Iterator[Tick]:
        """A tick when the next reading is due, until `stop` is set or the recording is over."""
        ...


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
    """A robot arm. Calls come one at a time: `open` from a thread of its own, others the loop's.

    Any may raise DriverError, which means that the robot cannot be reached (any more), or
    RobotFault, that it is there and must not be used. After both it is closed, and opened again
    until that works.
    """

    def open(self) -> None:
        """Connect; ready to be read (and moved) when it returns."""
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
