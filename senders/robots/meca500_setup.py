"""Brings a Meca500 from whatever state it is in to one in which it can be watched or moved."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mecademicpy.mx_robot_def as codes  # type: ignore[import-untyped]
import mecademicpy.robot as mecademic  # type: ignore[import-untyped]

from senders.drivers import DriverError, RobotFault
from senders.robots.meca500_condition import check_error, check_stops
from senders.robots.meca500_feedback import Feedback

__all__ = ["Setup", "SetupOptions"]

logger = logging.getLogger("senders.meca500")

_ACTIVATED_IN_S = 30.0
_HOMED_IN_S = 60.0
_POLL_S = 0.02
# An error that comes back so soon after its reset is not reset again by a program.
_SAME_ERROR_S = 10.0


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """How the robot is set up.

    Attributes:
        moves: activate it and let it be moved; without it, it is only listened to.
        home: home it when it is not; False refuses a robot that is not homed.
        velocity_timeout_s: the robot stops so long after the last velocity it was told.
        monitor_interval_s: how often the robot says where it is.
        answers_s: how long to wait for a connection and for each answer.
    """

    moves: bool
    home: bool
    velocity_timeout_s: float
    monitor_interval_s: float
    answers_s: float


class Setup:
    """The steps, each with a bounded wait, and what it remembers of errors between two of them."""

    def __init__(self, address: str, options: SetupOptions) -> None:
        """Set up the robot at `address`."""
        self._address, self._options = address, options
        self._reset_at = -math.inf
        self._left_in_error = False
        self._activated = False

    def run(self, robot: Any, feedback: Feedback) -> None:
        """Connect, listen, and with `moves` reset an error, activate, home and empty the queue.

        Raises RobotFault while a safety stop is on, and once when the motors, on before, are off:
        somebody took their power, and whoever is at the arm must know before it comes back.
        DriverError and the library's own errors.
        """
        self._connect(robot, feedback)
        # The first position comes after what the robot says of its stops when one connects (by
        # the same port), so that these are known before it is told anything that matters.
        if not feedback.wait(self._options.answers_s):
            raise DriverError(f"the robot at {self._address} does not say where it is")
        try:
            check_stops(robot.GetSafetyStatus())
        except RobotFault:
            self.forget_activation()
            raise
        if self._options.moves:
            self._reset_error(robot, feedback)
            self._activate(robot, feedback)
            self._set_motion(robot, feedback)
        check_error(robot.GetStatusRobot(), feedback)
        self._left_in_error = False

    def forget_activation(self) -> None:
        """A fault was raised: that the motors are off then is no news."""
        self._activated = False

    def _connect(self, robot: Any, feedback: Feedback) -> None:
        callbacks = mecademic.RobotCallbacks()
        # Positions come by the control port (firmware 9 and later) or by the monitoring port.
        callbacks.on_command_message = callbacks.on_monitor_message = feedback.take
        robot.RegisterCallbacks(callbacks, run_callbacks_in_separate_thread=True)
        robot.default_timeout = self._options.answers_s
        # Asynchronous: a command is handed to a thread of the library's and returns at once.
        robot.Connect(
            self._address,
            enable_synchronous_mode=False,
            disconnect_on_exception=False,
            timeout=self._options.answers_s,
        )
        model = str(robot.GetRobotInfo().model)
        if model.lower() != "meca500":
            raise DriverError(f"the robot at {self._address} is a {model}, not a Meca500")
        robot.GetStatusRobot(synchronous_update=True, timeout=self._options.answers_s)
        robot.SetMonitoringInterval(self._options.monitor_interval_s)
        status_code = codes.MxRobotStatusCode
        robot.SetRealTimeMonitoring(status_code.MX_ST_RT_JOINT_POS, status_code.MX_ST_RT_CART_POS)

    def _reset_error(self, robot: Any, feedback: Feedback) -> None:
        try:
            check_error(robot.GetStatusRobot(), feedback)
        except RobotFault as fault:
            again = time.monotonic() - self._reset_at < _SAME_ERROR_S
            self._left_in_error = self._left_in_error or again
            if self._left_in_error:
                why = "it was reset a moment ago: see to the cause, then reset it in MecaPortal"
                raise RobotFault("error", f"{fault}; {why}") from None
            logger.warning("[ROBOT] %s: resetting it", fault)
            robot.ResetError()
            done_s = self._options.answers_s
            self._until(robot, None, lambda s: not s.error_status, done_s, f"out of it ({fault})")
            self._reset_at = time.monotonic()

    def _activate(self, robot: Any, feedback: Feedback) -> None:
        status = robot.GetStatusRobot()
        if not status.activation_state:
            if self._activated:
                self.forget_activation()
                raise RobotFault("error", "its motors were switched off meanwhile")
            logger.info("[ROBOT] activating")
            robot.ActivateRobot()
            self._until(robot, feedback, lambda s: s.activation_state, _ACTIVATED_IN_S, "activated")
        if not status.homing_state:
            if not self._options.home:
                raise DriverError("the robot is not homed: home it, or leave out home=false")
            logger.info("[ROBOT] homing: the joints move a little")
            robot.Home()
            self._until(robot, feedback, lambda s: s.homing_state, _HOMED_IN_S, "homed")
        self._activated = True

    def _set_motion(self, robot: Any, feedback: Feedback) -> None:
        """An empty queue, known frames, and the time-out that everything here relies on."""
        answers_s, wanted_s = self._options.answers_s, self._options.velocity_timeout_s
        robot.ClearMotion()  # what was left over from before must not be done now
        robot.WaitMotionCleared(timeout=answers_s)
        robot.ResumeMotion()
        self._until(robot, feedback, lambda s: not s.pause_motion_status, answers_s, "resumed")
        robot.SetTrf(0, 0, 0, 0, 0, 0)
        robot.SetWrf(0, 0, 0, 0, 0, 0)
        robot.SetVelTimeout(wanted_s)
        deadline, pause = time.monotonic() + answers_s, threading.Event()
        while abs(robot.GetVelTimeout(timeout=answers_s) - wanted_s) > 1e-3:
            if time.monotonic() > deadline:
                raise DriverError("the robot does not take the velocity time-out: it is not moved")
            pause.wait(_POLL_S)

    def _until(
        self,
        robot: Any,
        feedback: Feedback | None,
        done: Callable[[Any], bool],
        timeout_s: float,
        what: str,
    ) -> None:
        """Wait for a status; RobotFault when it does not come, or the robot is stopped or fails."""
        deadline, pause = time.monotonic() + timeout_s, threading.Event()
        while not done(status := robot.GetStatusRobot()):
            check_stops(robot.GetSafetyStatus())
            if feedback is not None:
                check_error(status, feedback)
            if not robot.IsConnected():
                raise DriverError(f"the connection to the robot at {self._address} was lost")
            if time.monotonic() > deadline:
                late = f"the robot was not {what} within {timeout_s:g} s: switch it off and on?"
                raise RobotFault("error", late)
            pause.wait(_POLL_S)
