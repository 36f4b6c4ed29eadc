"""A robot through LeRobot's own class, whatever it is: every call of it bounded in time.

Several arms, a mobile base, somebody's plugin: nothing moves whose limits are not known.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.program import Every
from common.step_limiter import StepLimiter
from senders.drivers import DriverError, RobotFault
from senders.robots import lerobot_bus
from senders.robots.bounded import Bounded
from senders.robots.lerobot_arm import drop_port
from senders.robots.lerobot_setup import line
from serving.bodies.cameras import Cameras, Grabbed
from serving.bodies.lerobot_setup import Bare, arms, make_robot
from serving.bodies.options import per_value
from serving.body import BodyError, BodyFault, BodyState, Seen

__all__ = ["LeRobotBody", "LeRobotOptions", "limits_of"]

T = TypeVar("T")

_OPEN_S, _CALL_S, _CLOSE_S = 30.0, 1.0, 6.0
_FAULTS_EVERY_S = 1.0
_SPEED = 120.0
"""Degrees (or percent) a second, as for the senders' arm."""
_LEAD_S = 0.25
_POSITIONS = (".pos", ".q")


@dataclass(frozen=True)
class LeRobotOptions:
    """`--robot.…` that are not LeRobot's; each value one for all, a list, or a map by name."""

    joint_min: Any = None
    """Lowest targets, where the calibrated range is not to be used."""
    joint_max: Any = None
    """Highest targets."""
    joint_speed: Any = None
    """Top speeds of targets at speed_scale 1, units a second."""
    speed_scale: float = 0.5
    """Fraction of the top speeds that targets may move with."""
    max_step: float = 2.0
    """Furthest that a joint's target may move in one control tick."""
    open_timeout: float = 20.0
    """Seconds to wait for the first picture of each camera."""


def limits_of(
    given: LeRobotOptions,
    names: list[str],
    known_low: NDArray[np.float64],
    known_high: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Lowest, highest and fastest (A,); NaN where it is not known. BodyError for what cannot be."""
    low = per_value("joint_min", given.joint_min, names, known_low.tolist())
    high = per_value("joint_max", given.joint_max, names, known_high.tolist())
    # What is no position ramps through its whole range in a second, unless told otherwise.
    usual = [
        _SPEED if name.endswith(_POSITIONS) else top - bottom
        for name, bottom, top in zip(names, low, high, strict=True)
    ]
    speed = per_value("joint_speed", given.joint_speed, names, usual)
    unknown = np.isnan(low) | np.isnan(high)
    if not (unknown | ((low < high) & (speed > 0))).all():
        raise BodyError("--robot.joint_min must be below joint_max, and joint_speed above 0")
    return low, high, speed


class LeRobotBody:
    """A robot through LeRobot's class: several arms, a mobile base, somebody's plugin."""

    def __init__(self, bare: Bare, given: LeRobotOptions, cameras: Cameras) -> None:
        """Drive what `bare` describes; BodyError where not every limit is known."""
        self.state_names, self.action_names = bare.state_names, bare.action_names
        if not self.action_names:
            raise BodyError("LeRobot does not say what this robot's actions are")
        self._bare, self._cameras, self._timeout_s = bare, cameras, given.open_timeout
        self._is_position = np.array([name.endswith(_POSITIONS) for name in self.action_names])
        self._low, self._high, self._speed = self._checked_limits(given)
        self._speed = given.speed_scale * self._speed
        self._max_step = given.max_step
        self._faults = Every(_FAULTS_EVERY_S)
        self._robot: Any = None
        self._bounded: Bounded | None = None
        self._came: dict[str, Seen] = {}
        self._holding = False

    def _checked_limits(
        self, given: LeRobotOptions
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        names = list(self.action_names)
        ranges = _calibrated(make_robot(self._bare.config), names)
        low, high, speed = limits_of(given, names, ranges[:, 0], ranges[:, 1])
        if missing := [n for n, a, b in zip(names, low, high, strict=True) if math.isnan(a + b)]:
            raise BodyError(
                f"the limits of {', '.join(missing)} are not known, and nothing moves without: "
                f'give --robot.joint_min "{{{missing[0]}: …}}" and --robot.joint_max'
            )
        for name, bottom, top in zip(names, low, high, strict=True):
            if name.endswith(_POSITIONS) and name not in self.state_names:
                raise BodyError(f"{name} is moved by position but not measured: it cannot be held")
            if not name.endswith(_POSITIONS) and not bottom <= 0 <= top:
                raise BodyError(f"{name} stands still at 0, which its limits must hold")
        return low, high, speed

    @property
    def cameras(self) -> dict[str, tuple[int, int, int]]:
        """Camera → (height, width, 3)."""
        return self._bare.pictures | self._cameras.shapes

    def limiter(self, control_hz: float) -> StepLimiter:
        """The limits of targets (A,) that are sent `control_hz` times a second."""
        step, still = self._speed / control_hz, ~self._is_position
        return StepLimiter(
            low=self._low,
            high=self._high,
            step=np.where(still, step, np.minimum(step, self._max_step)),
            # A speed's target may be anywhere: what is measured of it is another matter.
            lead=np.where(still, self._high - self._low, self._speed * _LEAD_S),
            turns=np.zeros(len(self._low), bool),
        )

    def open(self) -> None:
        """Open the cameras, check the servos where it has any, then let LeRobot connect."""
        self.close()
        try:
            self._cameras.open(self._timeout_s)
            self._robot = make_robot(self._bare.config)
            self._bounded = Bounded("lerobot")
            self._ask("connect", self._connect, _OPEN_S)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        robot = self._robot
        for prefix, part in arms(robot):
            # Wheels on the same bus have no place that they stand at.
            if all(f"{prefix}{joint}.pos" in self.action_names for joint in part.bus.motors):
                lerobot_bus.make_ready(part, "run lerobot-calibrate")
        robot.connect(calibrate=False)
        if not robot.is_calibrated:
            raise DriverError("the robot is not calibrated: run lerobot-calibrate")
        self._raise_faults()  # of wheels too, which nobody has looked at yet
        robot.send_action(self._still(self._look()[0]))
        self._holding = True

    def read(self) -> BodyState:
        """The state now; once a second the servos' errors too, BodyFault where there is one."""

        def look() -> tuple[NDArray[np.float64], dict[str, Grabbed], float]:
            asked = time.monotonic()
            values, pictures = self._look()
            at = (asked + time.monotonic()) / 2
            if self._faults.due():
                self._raise_faults()
            return values, pictures, at

        values, pictures, at = self._ask("read", look, _CALL_S)
        self._came = {name: Seen(one.rgb(), one.at) for name, one in pictures.items()}
        return BodyState(values, at)

    def seen(self) -> dict[str, Seen]:
        """The newest picture of each camera, and those that came with the state."""
        return self._came | self._cameras.seen()

    def sensor(self, samples: int) -> NDArray[np.float32] | None:
        """None: LeRobot's robots have no force sensor."""
        return None

    def move(self, target: NDArray[np.float64]) -> None:
        """Send LeRobot the action (A,)."""
        if np.shape(target) != (len(self.action_names),) or not np.isfinite(target).all():
            raise BodyError(f"not a target: {target}")
        action = dict(zip(self.action_names, map(float, target), strict=True))
        self._holding = False
        self._ask("move", lambda: self._robot.send_action(action), _CALL_S)

    def hold(self) -> None:
        """Make the measured positions the target and speeds zero; BodyError where that fails.

        Once: again and again would let an arm sink.
        """
        if self._holding or self._robot is None:
            return
        self._ask("hold", lambda: self._robot.send_action(self._still(self._look()[0])), _CALL_S)
        self._holding = True

    def close(self) -> None:
        """Hold, let go of the robot, then of the cameras."""
        robot, bounded = self._robot, self._bounded
        if robot is not None and bounded is not None:
            if getattr(robot, "is_connected", False):
                with contextlib.suppress(BodyError):
                    self.hold()
            try:
                bounded.call(robot.disconnect, _CLOSE_S)
            except Exception:  # a robot that did not connect to the end cannot be disconnected
                self._drop_ports()
            bounded.end()
        self._robot = self._bounded = None
        self._came = {}
        self._cameras.close()

    def _look(self) -> tuple[NDArray[np.float64], dict[str, Grabbed]]:
        """LeRobot's observation: the state (S,), and the pictures that are not read apart."""
        parts = arms(self._robot)
        for _, part in parts:
            lerobot_bus.drop_late_answers(part)
        seen = self._robot.get_observation()
        at = time.monotonic()
        try:
            values = np.array([float(seen[name]) for name in self.state_names])
            pictures = {n: Grabbed(at, image=seen[n]) for n in self._bare.pictures if n in seen}
        except (KeyError, TypeError, ValueError) as error:
            raise DriverError(f"LeRobot's observation lacks a value: {line(error)}") from None
        if not np.isfinite(values).all():
            raise DriverError(f"LeRobot's observation is not finite: {values}")
        for prefix, part in parts:
            joints = [f"{prefix}{joint}.pos" for joint in part.bus.motors]
            lerobot_bus.check_possible(part, {n: float(seen[n]) for n in joints if n in seen})
        for one in pictures.values():
            one.shape()
        return values, pictures

    def _raise_faults(self) -> None:
        for _, part in arms(self._robot):
            lerobot_bus.raise_faults(part)

    def _still(self, state: NDArray[np.float64]) -> dict[str, float]:
        """The action that keeps the robot where it is."""
        measured = dict(zip(self.state_names, state.tolist(), strict=True))
        still = zip(self.action_names, self._is_position.tolist(), strict=True)
        return {name: measured[name] if is_position else 0.0 for name, is_position in still}

    def _drop_ports(self) -> None:
        for _, part in arms(self._robot):
            drop_port(part)

    def _ask(self, doing: str, call: Callable[[], T], timeout_s: float) -> T:
        """Make a call of LeRobot in time; BodyFault for a servo's error, BodyError for the rest."""
        if self._bounded is None or self._robot is None:
            raise BodyError("the robot is not connected")
        try:
            return self._bounded.call(call, timeout_s)
        except TimeoutError:
            self._drop_ports()
            raise BodyError(
                f"no end to {doing} after {timeout_s:g} s: check the robot's power and cable"
            ) from None
        except RobotFault as fault:
            raise BodyFault(str(fault)) from None
        except Exception as error:
            raise BodyError(line(error)) from None


def _calibrated(robot: Any, names: list[str]) -> NDArray[np.float64]:
    """(A, 2) lowest and highest value of each action by the calibration, NaN where unknown."""
    ranges = np.full((len(names), 2), math.nan)
    for prefix, part in arms(robot):
        if not part.calibration:
            raise BodyError(
                f"there is no calibration {part.calibration_fpath}: run lerobot-calibrate"
            )
        for place, name in enumerate(names):
            joint = name.removesuffix(".pos").removeprefix(prefix)
            if name == f"{prefix}{joint}.pos" and joint in part.bus.motors:
                found = lerobot_bus.joint_ranges(part, (joint,))
                if found is not None:
                    ranges[place] = found[0]
    return ranges
