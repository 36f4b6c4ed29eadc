"""A made-up robot: it goes where it is told at the joints' speeds, and else stands still."""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from common.clock import wall
from common.kinematics import MECA500, flange_pose
from senders.drivers import DriverError, RobotReading

__all__ = ["HOME_DEG", "SyntheticRobot"]

HOME_DEG = (0.0, -10.0, 20.0, 0.0, 35.0, 0.0)
"""Clear of the Euler angles' singularity, which the arm's zero position is at."""


class SyntheticRobot:
    """An arm of the Meca500's geometry that follows joint targets kinematically."""

    def __init__(self, sway_deg: float = 0.0, sway_hz: float = 0.2, episode_s: float = 0.0) -> None:
        """Stand at home, or sway about it until commanded.

        Args:
            sway_deg: amplitude in degrees at which every joint sways; 0 stands still.
            sway_hz: how often a second.
            episode_s: go home and begin another episode every so many seconds; 0 never does.
        """
        self._home = np.array(HOME_DEG)
        self._speed = np.array(MECA500.joint_speed_deg_s)
        self._sway_deg, self._sway_hz, self._episode_s = sway_deg, sway_hz, episode_s
        self._joints = self._home.copy()
        self._target: NDArray[np.float64] | None = None
        self._opened_at = self._moved_at = time.monotonic()
        self._episode = 0
        self._is_open = False

    def open(self) -> None:
        """Stand where it stood."""
        self._moved_at = self._opened_at = time.monotonic()
        self._is_open = True

    def read(self) -> RobotReading:
        """The joints now, and the flange's pose for them."""
        self._advance()
        return RobotReading(wall(), self._joints, flange_pose(self._joints), 0.0, self._episode)

    def move_joints(self, joints_deg: NDArray[np.float64]) -> None:
        """Go towards (6,) degrees, each joint at its speed at most."""
        self._advance()
        self._target = np.array(joints_deg, dtype=np.float64)

    def move_pose(self, pose: NDArray[np.float64]) -> None:
        """Refused: it has no inverse kinematics."""
        raise DriverError("the synthetic robot goes to joint angles only, not to poses")

    def hold(self) -> None:
        """Stay at the joints of this moment."""
        if self._is_open:
            self._advance()
            self._target = self._joints

    def close(self) -> None:
        """Stop."""
        self._is_open = False

    def _advance(self) -> None:
        if not self._is_open:
            raise DriverError("the synthetic robot is not open")
        moment = time.monotonic()
        elapsed, self._moved_at = moment - self._moved_at, moment
        run_s = moment - self._opened_at
        if self._episode_s and run_s // self._episode_s > self._episode:
            self._episode = int(run_s // self._episode_s)
            self._joints, self._target = self._home.copy(), None
        target = self._target
        if target is None:
            swing = self._sway_deg * math.sin(2 * math.pi * self._sway_hz * run_s)
            target = self._home + swing
        reach = self._speed * elapsed
        # A new array each time: readings keep the old one.
        self._joints = self._joints + np.clip(target - self._joints, -reach, reach)
