"""A simulated joint body in real time: it follows commands with a lag and at limited speeds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.step_limiter import StepLimiter
from scripts.comparison.policy import state_names
from scripts.comparison.trajectory import Trajectory
from serving.body import BodyError, BodyState, Seen

__all__ = ["LAG_S", "Command", "FollowingBody"]

LAG_S = 0.05
"""Time constant of the joints' servos: about what a small arm's position loop has."""
_SPEED_MARGIN = 2.0
"""Limit of the commands' speed over the fastest that the joint was recorded at: enough to catch up
after a stall, too little for a jump."""
_LEAST_SPEED = 10.0
_RANGE_MARGIN = 5.0
_LEAD_S = 0.25
_SUBSTEP_S = 0.005
_MOST_STEPS = 2_000_000


@dataclass(frozen=True, slots=True)
class Command:
    """One thing that the body was told.

    Attributes:
        at: `time.monotonic()` seconds.
        target: (A,) as sent; of a hold where the joints were.
        is_hold: whether it was told to stay.
    """

    at: float
    target: NDArray[np.float64]
    is_hold: bool


class FollowingBody:
    """A body (`serving.body.Body`) that stands where the trajectory begins.

    Each joint goes towards its target like a first-order servo of time constant `LAG_S`, no faster
    than its top speed. Its state ends with the time since it was first told to move, which is also
    the newest sample of its "force sensor": what a dual-rate policy feels of it.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        """Joints, ranges and speeds as the trajectory needs them."""
        self.action_names = trajectory.names
        self.state_names = state_names(trajectory)
        self.cameras: Mapping[str, tuple[int, int, int]] = {}
        self._low = trajectory.positions.min(axis=0) - _RANGE_MARGIN
        self._high = trajectory.positions.max(axis=0) + _RANGE_MARGIN
        self.speed = np.maximum(_SPEED_MARGIN * trajectory.top_speeds, _LEAST_SPEED)
        self._joints = trajectory.positions[0].copy()
        self._target = self._joints
        self._moved_at: float | None = None
        self.began_at: float | None = None
        self.commands: list[Command] = []
        self.path: list[tuple[float, NDArray[np.float64]]] = []

    def limiter(self, control_hz: float) -> StepLimiter:
        """The limits of targets (A,) that are sent `control_hz` times a second."""
        turns = np.zeros(len(self.speed), bool)
        return StepLimiter(
            self._low, self._high, self.speed / control_hz, self.speed * _LEAD_S, turns
        )

    def open(self) -> None:
        """Begin to stand."""
        self._moved_at = time.monotonic()
        self.path.append((self._moved_at, self._joints))

    def clock(self, moment: float) -> float:
        """Seconds since the first motion, 0.0 before it; `moment` is monotonic."""
        return 0.0 if self.began_at is None else max(moment - self.began_at, 0.0)

    def read(self) -> BodyState:
        """The joints now, and the time."""
        at = self._advance()
        return BodyState(np.append(self._joints, self.clock(at)), at)

    def seen(self) -> dict[str, Seen]:
        """No pictures."""
        return {}

    def sensor(self, samples: int) -> NDArray[np.float32]:
        """One sample, the state (1, A + 1)."""
        return self.read().values.astype(np.float32)[None]

    def move(self, target: NDArray[np.float64]) -> None:
        """Go towards (A,)."""
        wanted = np.array(target, np.float64)
        if wanted.shape != self._joints.shape or not np.isfinite(wanted).all():
            raise BodyError(f"not a target: {target}")
        at = self._advance()
        if self.began_at is None:
            self.began_at = at
        self._target = wanted
        self.commands.append(Command(at, wanted, is_hold=False))

    def hold(self) -> None:
        """Stay at the joints of this moment."""
        if self._moved_at is None:
            return
        at = self._advance()
        self._target = self._joints
        self.commands.append(Command(at, self._joints, is_hold=True))

    def close(self) -> None:
        """Stop where it is."""
        self._moved_at = None

    def measured(self, moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where the joints were (M, A) at monotonic times (M,)."""
        at = np.array([moment for moment, _ in self.path])
        joints = np.array([joints for _, joints in self.path])
        columns = [np.interp(moments, at, joints[:, k]) for k in range(joints.shape[1])]
        return np.stack(columns, axis=1)

    def _advance(self) -> float:
        """Move the joints up to now; the `time.monotonic()` of it."""
        if self._moved_at is None:
            raise BodyError("the simulated body is not open")
        since, now = self._moved_at, time.monotonic()
        steps = math.ceil((now - since) / _SUBSTEP_S)
        if not steps:
            return now
        if len(self.path) + steps > _MOST_STEPS:
            raise BodyError("the simulated body has run for hours: its path fills the memory")
        span = (now - since) / steps
        share = 1.0 - math.exp(-span / LAG_S)
        reach = self.speed * span
        for step in range(1, steps + 1):
            move = np.clip(share * (self._target - self._joints), -reach, reach)
            self._joints = self._joints + move
            self.path.append((since + step * span, self._joints))
        self._moved_at = now
        return now
