"""Any arm that LeRobot (0.6, `lerobot.robots`) knows, e.g. an SO-101, through LeRobot's own class.

LeRobot gives joints alone: degrees (unless told otherwise), and for a gripper 0 (closed) to 100
(open), which is a joint like the others here. The pose is zeros. The cameras of the robot's
configuration are not used.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.clock import wall
from common.program import Every
from senders.drivers import DriverError, RobotFault, RobotReading
from senders.limits import MotionLimits
from senders.robots import lerobot_bus
from senders.robots.bounded import Bounded
from senders.robots.lerobot_setup import Seldom, configuration, joint_order, line

__all__ = ["LeRobotArm", "drop_port"]

T = TypeVar("T")

_WIRE_JOINTS = 6
_FAULTS_EVERY_S = 1.0
_OPEN_S, _CALL_S, _CLOSE_S = 15.0, 1.0, 6.0
_JOINT_SPEED = 120.0
"""Degrees (or percent) a second; ours, well below an STS3215's no-load speed of about 270."""


class LeRobotArm:
    """One arm of up to six joints, in the order in which LeRobot names them.

    Attributes:
        joints: their names, without LeRobot's `.pos`.
        limits: the calibrated ranges, or what was given instead.
    """

    def __init__(
        self,
        type: str = "so101_follower",
        port: str = "",
        id: str = "",
        calibration_dir: str = "",
        joints: tuple[str, ...] = (),
        max_relative_target: float | dict[str, float] = 0.0,
        joint_min: tuple[str, ...] = (),
        joint_max: tuple[str, ...] = (),
        joint_speed: tuple[str, ...] = (),
        torque: bool = True,
        limp_at_end: bool = False,
        options: Any = None,
        use_degrees: bool | None = True,
    ) -> None:
        """Read LeRobot's configuration and calibration; the arm itself is not touched yet.

        Args:
            type: LeRobot's name of the robot.
            port: serial port (or what LeRobot calls port for that robot).
            id: the name that the arm was calibrated under.
            calibration_dir: where its calibration is, if not where LeRobot keeps them.
            joints: LeRobot's names of the joints in the wire's order; all by default.
            max_relative_target: LeRobot's own limit on a target's distance; 0 is none. It costs
                one more reading for every command.
            joint_min: lowest value of each joint, where the calibration's range is not to be used.
            joint_max: highest value of each joint.
            joint_speed: top speed of each joint (or one for all), in degrees a second.
            torque: false leaves the motors off: the arm is read and moved by hand.
            limp_at_end: switch the motors off at the end; the arm sinks. Else it keeps its place.
            options: more fields of LeRobot's configuration, as a JSON map.
            use_degrees: false counts joints from -100 to 100 of their calibrated range, where
                LeRobot has the choice; None leaves it as LeRobot has it for that robot.

        Raises:
            DriverError: LeRobot does not know the type, a field or the calibration.
        """
        wanted: dict[str, Any] = {"port": port, "id": id, "calibration_dir": calibration_dir}
        wanted |= {"max_relative_target": max_relative_target}
        self._config = configuration(type, wanted, limp_at_end, options, use_degrees)
        self._how_to_calibrate = "run lerobot-calibrate " + " ".join(
            shlex.quote(f"--robot.{key}={value}")
            for key, value in {"type": type, **wanted}.items()
            if value and key != "max_relative_target"
        )
        if max_relative_target:
            logging.getLogger().addFilter(Seldom())  # LeRobot says so at every command
        robot = self._make()
        self._joints = self.joints = joint_order(robot, joints)
        self.limits = self._limits(robot, joint_min, joint_max, joint_speed)
        self._torque = torque
        self._robot: Any = None
        self._bounded: Bounded | None = None
        self._holding = False
        self._faults = Every(_FAULTS_EVERY_S)

    def open(self) -> None:
        """Check the arm, then let LeRobot connect; its motors are off for a moment meanwhile."""
        self.close()
        self._robot = self._make()
        self._bounded = Bounded("lerobot")
        self._ask("open", self._connect, _OPEN_S)

    def _connect(self) -> None:
        robot = self._robot
        lerobot_bus.make_ready(robot, self._how_to_calibrate)
        robot.connect(calibrate=False)
        if not robot.is_calibrated:
            raise DriverError(f"the arm is not calibrated: {self._how_to_calibrate}")
        if self._torque:
            robot.send_action(self._measured(robot))
        else:
            lerobot_bus.switch_torque(robot, on=False)
        self._holding = True

    def read(self) -> RobotReading:
        """The joints now; once a second the servos' errors too."""

        def look() -> tuple[float, dict[str, float], float]:
            asked = wall()
            measured = self._measured(self._robot)
            answered = wall()
            if self._faults.due():
                lerobot_bus.raise_faults(self._robot)
            return asked, measured, answered

        asked, measured, answered = self._ask("read", look, _CALL_S)
        values = np.zeros(_WIRE_JOINTS)
        values[: len(measured)] = list(measured.values())
        return RobotReading((asked + answered) / 2, values, np.zeros(6))

    def move_joints(self, joints_deg: NDArray[np.float64]) -> None:
        """Send LeRobot an action of the first values of (6,), as many as there are joints."""
        if not self._torque:
            raise DriverError("the motors are off (torque=false): this arm is read only")
        target = {f"{joint}.pos": float(joints_deg[k]) for k, joint in enumerate(self._joints)}
        if not all(map(math.isfinite, target.values())):
            raise DriverError(f"not a target: {joints_deg}")
        self._holding = False
        self._ask("move", lambda: self._robot.send_action(target), _CALL_S)

    def move_pose(self, pose: NDArray[np.float64]) -> None:
        """Refused: LeRobot's robots have no inverse kinematics."""
        raise DriverError("LeRobot's arms go to joint angles only, not to poses")

    def hold(self) -> None:
        """Make the measured joints the target, once: again and again would let the arm sink."""
        if self._holding or self._robot is None or not self._torque:
            return
        self._ask("hold", lambda: self._robot.send_action(self._measured(self._robot)), _CALL_S)
        self._holding = True

    def close(self) -> None:
        """Let go of the bus; the motors keep the arm where it is, unless `limp_at_end`."""
        robot, bounded = self._robot, self._bounded
        self._robot = self._bounded = None
        if robot is None or bounded is None:
            return
        try:
            # A robot that did not connect to the end is not `is_connected` as LeRobot sees it.
            bounded.call(robot.disconnect, _CLOSE_S)
        except Exception:
            drop_port(robot)
        bounded.end()

    def _make(self) -> Any:
        from lerobot.robots import make_robot_from_config

        try:
            robot = make_robot_from_config(self._config)
        except Exception as error:
            raise DriverError(f"LeRobot cannot make this robot: {line(error)}") from None
        if lerobot_bus.serial_bus(robot) is not None and not robot.calibration:
            raise DriverError(
                f"there is no calibration {robot.calibration_fpath}: {self._how_to_calibrate}"
            )
        return robot

    def _limits(self, robot: Any, *given: tuple[str, ...]) -> MotionLimits:
        low, high, speed = (tuple(float(value) for value in values) for values in given)
        count = len(self._joints)
        ranges = lerobot_bus.joint_ranges(robot, self._joints)
        if ranges is None and not (low and high):
            raise DriverError(
                "LeRobot does not know this robot's ranges: give joint_min=… and joint_max=…, "
                f"a value for each of {', '.join(self._joints)}"
            )
        low = low or tuple(pair[0] for pair in ranges or ())
        high = high or tuple(pair[1] for pair in ranges or ())
        speed = speed or (_JOINT_SPEED,)
        speed = speed * count if len(speed) == 1 else speed
        if not len(low) == len(high) == len(speed) == count:
            raise DriverError(f"joint_min, joint_max and joint_speed need {count} values each")
        if not all(map(math.isfinite, (*low, *high, *speed))):
            raise DriverError("joint_min, joint_max and joint_speed must be finite numbers")
        if not all(a < b for a, b in zip(low, high, strict=True)) or not min(speed) > 0:
            raise DriverError("joint_min must be below joint_max, and joint_speed above 0")
        unused = (0.0,) * (_WIRE_JOINTS - count)
        return MotionLimits(low + unused, high + unused, speed + unused)

    def _measured(self, robot: Any) -> dict[str, float]:
        """LeRobot's observation of the joints in the wire's order; DriverError for a bad one."""
        lerobot_bus.drop_late_answers(robot)
        seen = robot.get_observation()
        try:
            values = {f"{joint}.pos": float(seen[f"{joint}.pos"]) for joint in self._joints}
        except (KeyError, TypeError, ValueError) as error:
            raise DriverError(f"LeRobot's observation lacks a joint: {line(error)}") from None
        if not all(map(math.isfinite, values.values())):
            raise DriverError(f"LeRobot's observation is not finite: {values}")
        lerobot_bus.check_possible(robot, values)
        return values

    def _ask(self, doing: str, call: Callable[[], T], timeout_s: float) -> T:
        """Make a call of LeRobot in time, and turn what it raises into the drivers' errors."""
        if self._bounded is None or self._robot is None:
            raise DriverError("the arm is not connected")
        try:
            return self._bounded.call(call, timeout_s)
        except DriverError:
            raise
        except TimeoutError:
            drop_port(self._robot)
            raise DriverError(
                f"no end to {doing} after {timeout_s:g} s: check the arm's power and cable"
            ) from None
        except Exception as error:
            if "[RxPacketError]" in str(error):  # an error byte, as both servo SDKs word it
                raise RobotFault("error", line(error)) from None
            raise DriverError(line(error)) from None


def drop_port(robot: Any) -> None:
    """Close the serial port under whatever is stuck on it; closing may be stuck as well."""
    bus = lerobot_bus.serial_bus(robot)
    if bus is None or not bus.is_connected:
        return

    def close() -> None:
        with contextlib.suppress(Exception):
            bus.port_handler.closePort()

    threading.Thread(target=close, name="lerobot-port", daemon=True).start()
