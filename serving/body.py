"""What a client moves: a robot with its cameras, whoever drives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.step_limiter import StepLimiter

__all__ = ["Body", "BodyError", "BodyFault", "BodyState", "Seen"]


class BodyError(RuntimeError):
    """A robot or camera that cannot be used (now); one line that says what to do."""


class BodyFault(BodyError):
    """A robot that is there and says that it must not be used: an error, an emergency stop."""


@dataclass(frozen=True, slots=True)
class BodyState:
    """The robot's state values.

    Attributes:
        values: (S,) float64 in the order of `state_names`.
        at: `time.monotonic()` seconds at which it was measured.
    """

    values: NDArray[np.float64]
    at: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest picture of one camera.

    Attributes:
        pixels: (height, width, 3) uint8, RGB.
        at: `time.monotonic()` seconds at which it was taken (or came).
    """

    pixels: NDArray[np.uint8]
    at: float


class Body(Protocol):
    """A robot with its cameras. All calls come from one thread, the control loop's."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state values, LeRobot's way, e.g. `shoulder_pan.pos`."""
        ...

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the action values. Those that are also state names are positions of the same.

        Of the others 0 is standing still, and what a hold makes of them.
        """
        ...

    @property
    def cameras(self) -> Mapping[str, tuple[int, int, int]]:
        """Camera → (height, width, 3)."""
        ...

    def limiter(self, control_hz: float) -> StepLimiter:
        """The limits of targets (A,) that are sent `control_hz` times a second."""
        ...

    def open(self) -> None:
        """Connect; the robot stands still. BodyError with what to do when that fails."""
        ...

    def read(self) -> BodyState:
        """The state now; BodyError rather than a stale one, BodyFault where it is stopped."""
        ...

    def seen(self) -> Mapping[str, Seen]:
        """The newest picture of each camera that has given one; never waits for a camera."""
        ...

    def sensor(self, samples: int) -> NDArray[np.float32] | None:
        """The newest `samples` of the force sensor, (T, channels), oldest first; None without."""
        ...

    def move(self, target: NDArray[np.float64]) -> None:
        """Go to (A,), which has been through the limits; BodyError where that is refused."""
        ...

    def hold(self) -> None:
        """Stay where the robot is; safe at any time and repeatedly."""
        ...

    def close(self) -> None:
        """Leave the robot standing still, and let go of it and the cameras; safe to call twice."""
        ...
