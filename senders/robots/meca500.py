"""Mecademic's Meca500 arm through its maker's library: velocity mode, so that silence stops it."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from typing import Any, Literal

import mecademicpy.mx_robot_def as codes  # type: ignore[import-untyped]
import mecademicpy.robot as mecademic  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from common.clock import wall
from senders.drivers import DriverError, RobotFault, RobotReading
from senders.limits import MotionLimits
from senders.robots.meca500_condition import check_error, check_ready, check_stops
from senders.robots.meca500_feedback import Feedback, Sample
from senders.robots.meca500_motion import (
    CARTESIAN_LIMIT,
    Follower,
    joint_difference,
    pose_difference,
)
from senders.robots.meca500_setup import Setup, SetupOptions

__all__ = ["Meca500"]

logger = logging.getLogger("senders.meca500")
# What goes wrong is told by the sender, once and in its own words.
logging.getLogger("mecademicpy").setLevel(logging.CRITICAL)

_CLEARED_IN_S = 0.5
_ALREADY_IN_ERROR = 1011
_HUNG_UP = "has no attribute 'id'"  # what the library makes of an end before any welcome
_SMALLEST = 1e-4  # of a velocity: the robot does not read "1e-05"

_ERROR_CODES = frozenset(
    int(code)
    for code, info in codes.robot_status_code_info.items()
    if info.is_error and int(code) != _ALREADY_IN_ERROR
)
_BOUNDS = {
    "control_hz": (1.0, 1000.0),
    "speed_scale": (0.001, 1.0),
    "velocity_timeout_s": (0.01, 1.0),
    "monitor_interval_s": (0.001, 0.05),
    "stale_s": (0.02, 1.0),
    "gain": (0.0, 20.0),
    "connect_s": (0.1, 30.0),
}


class Meca500:
    """The arm at one address; it is told velocities and stops by itself when nothing is said.

    Targets are followed by `MoveJointsVel` or `MoveLinVelWrf`, each of which the robot obeys for
    `velocity_timeout_s` at most. Poses are the flange's, in the base's frame: the tool and world
    frames are set so.
    """

    def __init__(
        self,
        address: str = "192.168.0.100",
        *,
        moves: bool = False,
        speed_scale: float = 1.0,
        home: bool = True,
        control_hz: float = 100.0,
        velocity_timeout_s: float = 0.1,
        monitor_interval_s: float = 0.01,
        stale_s: float = 0.1,
        gain: float = 5.0,
        connect_s: float = 2.0,
    ) -> None:
        """Use the robot at `address`; ValueError for a value that cannot be used.

        Args:
            address: its IPv4 address.
            moves: activate and home it, and take motion; without it, it is only listened to.
            speed_scale: fraction of the top speeds that it is never told to exceed, not even to
                catch up with its target.
            home: home it when it is not; False refuses a robot that is not homed.
            control_hz: targets a second.
            velocity_timeout_s: the robot stops so long after the last thing it was told.
            monitor_interval_s: how often the robot says where it is.
            stale_s: a position older than this is not passed on.
            gain: of the position error, 1/s.
            connect_s: how long to wait for a connection and for each answer.
        """
        ipaddress.IPv4Address(address.partition(":")[0])
        for name, (low, high) in _BOUNDS.items():
            if not low <= locals()[name] <= high:
                raise ValueError(f"{name} must be from {low:g} to {high:g}")
        self._address, self._moves, self._stale_s = address, moves, stale_s
        options = SetupOptions(moves, home, velocity_timeout_s, monitor_interval_s, connect_s)
        self._setup = Setup(address, options)
        limits, period_s = MotionLimits.of_arm(speed_scale=speed_scale), 1.0 / control_hz
        joint_speed = np.array(limits.joint_speed_deg_s)
        pose_speed = np.array([limits.pose_speed_mm_s] * 3 + [limits.pose_speed_deg_s] * 3)
        self._joints = Follower(joint_difference, joint_speed, period_s, gain)
        self._pose = Follower(
            pose_difference, np.minimum(pose_speed, CARTESIAN_LIMIT), period_s, gain
        )
        self._robot: Any = None
        self._feedback = Feedback(_ERROR_CODES)
        self._ready = False
        self._kind: Literal["joints", "pose"] = "joints"

    def open(self) -> None:
        """Connect, and with `moves` activate and home: seconds on a robot that was off.

        Raises RobotFault when it is stopped or in error, DriverError when it does not answer. A
        safety stop is never reset here, an error is: once, and not when it comes back at once.
        """
        if self._robot is not None:
            return
        self._robot, self._feedback = mecademic.Robot(), Feedback(_ERROR_CODES)
        try:
            self._setup.run(self._robot, self._feedback)
            self._ready = self._moves
            self._check()
        except DriverError:
            self.close()
            raise
        except Exception as error:  # the library's errors have no base class but this
            self.close()
            raise DriverError(self._explained(error)) from None

    def read(self) -> RobotReading:
        """Where the arm was when the robot last said so, at most `stale_s` ago."""
        self._opened()
        self._check()
        sample = self._fresh()
        sampled_at = wall() - (time.monotonic() - sample.at)
        return RobotReading(sampled_at, sample.joints_deg, sample.pose)

    def move_joints(self, joints_deg: NDArray[np.float64]) -> None:
        """Follow (6,) degrees at no more than the joints' top speeds."""
        self._follow("joints", joints_deg)

    def move_pose(self, pose: NDArray[np.float64]) -> None:
        """Follow a flange pose (6,) in mm and degrees, in a straight line."""
        self._follow("pose", pose)

    def hold(self) -> None:
        """Stand still: a velocity of zero, which the time-out would come to as well."""
        self._joints.forget()
        self._pose.forget()
        if self._robot is None or not self._ready:
            return
        try:
            self._check()
        except RobotFault:
            return  # it stands still, and must not be told anything to do later
        self._tell(np.zeros(6))

    def close(self) -> None:
        """Stop and disconnect. The motors stay on, so that nothing sags and no part is dropped.

        Deactivating takes the motors' power away: joints without a brake give way, and so does a
        gripper. The robot stays still when a connection ends.
        """
        robot, self._robot = self._robot, None
        ready, self._ready = self._ready, False
        self._joints.forget()
        self._pose.forget()
        if robot is None:
            return
        robot.default_timeout = _CLEARED_IN_S
        try:
            if ready and robot.IsConnected():
                robot.ClearMotion()
                robot.WaitMotionCleared(timeout=_CLEARED_IN_S)
        except Exception as error:
            logger.debug("the robot did not confirm that it stands still: %s", error)
        try:
            robot.Disconnect()
        except Exception as error:
            logger.warning("[ROBOT] could not disconnect properly: %s", error)

    def _opened(self) -> Any:
        if self._robot is None:
            raise DriverError("the robot is not open")
        return self._robot

    def _check(self) -> None:
        """Raise RobotFault unless the robot can be used; without asking it anything."""
        robot = self._robot
        status, safety = robot.GetStatusRobot(), robot.GetSafetyStatus()
        try:
            check_stops(safety)
            check_error(status, self._feedback)
            if self._ready:
                check_ready(status, safety)
        except RobotFault:
            self._setup.forget_activation()
            raise

    def _fresh(self) -> Sample:
        sample = self._feedback.newest
        age_s = math.inf if sample is None else time.monotonic() - sample.at
        if sample is None or age_s > self._stale_s:
            raise DriverError(
                f"the robot at {self._address} has not said where it is for "
                f"{min(age_s, 99.0):.2g} s: is its cable in, is it on?"
            )
        return sample

    def _follow(self, kind: Literal["joints", "pose"], target: NDArray[np.float64]) -> None:
        self._opened()
        if not self._ready:
            raise DriverError("the robot is only listened to: --accept-actions lets it move")
        if np.shape(target) != (6,) or not np.isfinite(target).all():
            raise DriverError(f"not a target: {target}")
        self._check()
        sample = self._fresh()
        if kind != self._kind:
            self._joints.forget()
            self._pose.forget()
            self._kind = kind
        follower = self._joints if kind == "joints" else self._pose
        measured = sample.joints_deg if kind == "joints" else sample.pose
        target = np.asarray(target, dtype=np.float64)
        self._tell(follower.velocity(target, measured, sample.at, time.monotonic()))

    def _tell(self, velocity: NDArray[np.float64]) -> None:
        """Send a velocity of the kind that is being followed, rounded towards standing still."""
        robot = self._opened()
        # + 0.0 makes of -0.0 a zero.
        values = [float(value) for value in np.trunc(velocity / _SMALLEST) * _SMALLEST + 0.0]
        values = [round(value, 4) for value in values]
        send = robot.MoveJointsVel if self._kind == "joints" else robot.MoveLinVelWrf
        try:
            send(*values)
        except Exception as error:
            raise DriverError(self._explained(error)) from None

    def _explained(self, error: Exception) -> str:
        text = " ".join(str(error).split()) or type(error).__name__
        if f"id={int(codes.MxRobotStatusCode.MX_ST_USER_ALREADY)}," in text:
            return f"the robot at {self._address} is controlled by another program: close that"
        if _HUNG_UP in text:
            return (
                f"what answers at {self._address} ends the connection at once: it is no Meca500, "
                "or busy with another program"
            )
        return f"the robot at {self._address} does not answer as it should: {text}"
