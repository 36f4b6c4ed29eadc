"""A body of the project's own drivers: a robot, cameras, and a force sensor where there is one."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.clock import wall
from common.program import ProgramError
from common.step_limiter import StepLimiter
from senders import cameras as camera_table
from senders import registry, robots
from senders import sensors as sensor_table
from senders.drivers import CameraDriver, DriverError, RobotDriver, RobotFault, RobotReading
from senders.limits import MotionLimits
from serving.bodies.cameras import Cameras, DriverSource
from serving.bodies.options import a_map, as_texts, filled, number
from serving.bodies.sensor import SensorWatch
from serving.body import BodyError, BodyFault, BodyState, Seen
from serving.messages import MAX_CAMERAS, MAX_PICTURE_SIDE, MAX_WINDOW

__all__ = ["ArmBody", "DriverBody", "DriverOptions"]

T = TypeVar("T")

logger = logging.getLogger("serving.body")

_ARM_JOINTS = 6
_OLDEST_S = 1.0
_EXTRAS = {
    "pose": ("pose.x", "pose.y", "pose.z", "pose.alpha", "pose.beta", "pose.gamma"),
    "force": ("force",),
}


@dataclass(frozen=True)
class DriverOptions:
    """`--robot.…` of a body of the project's drivers; others go to the robot's driver."""

    driver_options: Any = None
    """The robot driver's options; they may be given as further --robot.KEY too."""
    speed_scale: float = 0.5
    """Fraction of the arm's top speeds that targets may move with."""
    max_step: float = 2.0
    """Furthest that a joint's target may move in one control tick, in degrees."""
    extra_state: Any = ()
    """What the state holds beside the joints: a list of pose, force."""
    cameras: Any = None
    """Name → {type: DRIVER, …}: a camera driver and its options."""
    sensor: Any = None
    """{type: DRIVER, …}: a force sensor's driver and its options."""
    sensor_samples: int = 4096
    """How many samples are kept: the longest window."""
    open_timeout: float = 20.0
    """Seconds to wait for the first picture of each camera and the first samples."""


class ArmBody:
    """A robot driver with cameras and a sensor, as a body. Subclasses and tables make the parts."""

    def __init__(
        self,
        driver: RobotDriver,
        joints: tuple[str, ...],
        limits: MotionLimits,
        cameras: Cameras,
        sensor: SensorWatch | None = None,
        extra_state: tuple[str, ...] = (),
        open_timeout_s: float = 20.0,
    ) -> None:
        """Drive the first of `driver`'s joints, named `joints`, within `limits`.

        `extra_state` is what follows the joints in the state: of `pose`, `force`.
        """
        self._driver, self._limits = driver, limits
        self._cameras, self._sensor = cameras, sensor
        self._extra, self._timeout_s = extra_state, open_timeout_s
        self._count = len(joints)
        self.action_names = tuple(f"{joint}.pos" for joint in joints)
        self.state_names = (*self.action_names, *(n for one in extra_state for n in _EXTRAS[one]))
        self._is_open = False

    @property
    def cameras(self) -> dict[str, tuple[int, int, int]]:
        """Camera → (height, width, 3)."""
        return self._cameras.shapes

    def limiter(self, control_hz: float) -> StepLimiter:
        """The limits of targets (A,) that are sent `control_hz` times a second."""
        every, used = self._limits.joints(control_hz), slice(self._count)
        return StepLimiter(
            every.low[used], every.high[used], every.step[used], every.lead[used], every.turns[used]
        )

    def open(self) -> None:
        """Open the cameras and the sensor, then the robot, which stands still."""
        self.close()
        try:
            # The arm last: nobody waits for a camera with an arm that is switched on.
            self._cameras.open(self._timeout_s)
            if self._sensor is not None:
                self._sensor.open(self._timeout_s)
            self._ask(self._driver.open)
        except BaseException:
            self.close()
            raise
        self._is_open = True

    def read(self) -> BodyState:
        """The joints now, and what else the state holds."""
        reading = self._ask(self._driver.read)
        age_s = min(max(wall() - reading.sampled_at, 0.0), _OLDEST_S)
        values = [reading.joints_deg[: self._count]]
        for one in self._extra:
            values.append(reading.pose if one == "pose" else np.array([reading.force_n]))
        state = np.concatenate(values).astype(np.float64)
        if state.shape != (len(self.state_names),) or not np.isfinite(state).all():
            raise BodyError(f"the robot's state is not sound: {_shown(reading)}")
        return BodyState(state, time.monotonic() - age_s)

    def seen(self) -> dict[str, Seen]:
        """The newest picture of each camera that has given one."""
        return self._cameras.seen()

    def sensor(self, samples: int) -> NDArray[np.float32] | None:
        """The newest `samples` (T, 1 + A-scan): the force in newtons, then the A-scan."""
        return None if self._sensor is None else self._sensor.window(samples)

    def move(self, target: NDArray[np.float64]) -> None:
        """Go to (A,)."""
        joints = np.zeros(max(_ARM_JOINTS, self._count))
        if np.shape(target) != (self._count,) or not np.isfinite(target).all():
            raise BodyError(f"not a target: {target}")
        joints[: self._count] = target
        self._ask(lambda: self._driver.move_joints(joints))

    def hold(self) -> None:
        """Stay where the robot is; BodyError where it cannot be told, nothing when it is closed."""
        if self._is_open:
            self._ask(self._driver.hold)

    def close(self) -> None:
        """Let go of the robot, then of the cameras and the sensor."""
        steps: list[Callable[[], None]] = [self._driver.close, self._cameras.close]
        if self._sensor is not None:
            steps.append(self._sensor.close)
        if self._is_open:
            steps.insert(0, self._driver.hold)
        self._is_open = False
        failed: list[str] = []
        for step in steps:
            try:
                step()
            except Exception as error:  # whatever goes wrong in one, the others must be done
                failed.append(str(error))
        if failed:
            logger.warning("closing the robot: %s", "; ".join(failed))

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RobotFault as fault:
            raise BodyFault(str(fault)) from None
        except DriverError as error:
            raise BodyError(str(error)) from None


class DriverBody(ArmBody):
    """A body whose parts are named in the senders' tables of drivers."""

    def __init__(self, name: str, robot: Mapping[str, Any], control_hz: float) -> None:
        """The robot driver `name` with the options `robot`; BodyError for what cannot be used.

        `control_hz` is how often targets will be sent, which some drivers must know.
        """
        ours = {one.name for one in dataclasses.fields(DriverOptions)}
        given = filled(DriverOptions, {k: v for k, v in robot.items() if k in ours}, "robot")
        own = {k: v for k, v in robot.items() if k not in ours}
        own |= a_map("driver_options", given.driver_options)
        scale = number("speed_scale", given.speed_scale, 0.001, 1)
        step = number("max_step", given.max_step, 0.001, 180)
        extra = tuple(given.extra_state) if isinstance(given.extra_state, (list, tuple)) else ("?",)
        if not set(extra) <= set(_EXTRAS):
            raise BodyError(f"--robot.extra_state must be a list of {', '.join(_EXTRAS)}")
        offered = {"moves": True, "control_hz": control_hz, "speed_scale": scale}
        driver: RobotDriver = _made(robots.DRIVERS, name, offered, own, "robot")
        limits: MotionLimits | None = getattr(driver, "limits", None)
        limits = limits.scaled(scale) if limits else MotionLimits.of_arm(speed_scale=scale)
        numbered = tuple(f"joint_{k}" for k in range(1, _ARM_JOINTS + 1))
        super().__init__(
            driver,
            getattr(driver, "joints", numbered),
            dataclasses.replace(limits, max_step_deg=step),
            _cameras(given),
            _sensor(given),
            extra,
            number("open_timeout", given.open_timeout, 0.1, 600),
        )


def _made(
    table: Mapping[str, registry.DriverEntry],
    name: str,
    offered: Mapping[str, Any],
    own: Mapping[str, Any],
    what: str,
) -> Any:
    if name not in table:
        known = ", ".join(entry.describe(key) for key, entry in table.items())
        raise BodyError(f"--robot.{what}: there is no driver {name!r}: there are {known}")
    entry = table[name]
    if not entry.installed:
        raise BodyError(f"--robot.{what}: {name} needs {entry.needs}: {entry.how_to_install}")
    try:
        return registry.make(table, name, offered, as_texts(own))
    except ProgramError as error:
        said = str(error).replace("--driver-options: ", f"--robot.{what} options: ")
        raise BodyError(f"--robot.{what}: {said}") from None


def _cameras(given: DriverOptions) -> Cameras:
    cameras = a_map("cameras", given.cameras)
    if len(cameras) > MAX_CAMERAS or not all(isinstance(one, dict) for one in cameras.values()):
        raise BodyError(
            f"--robot.cameras must be a map of up to {MAX_CAMERAS} names to {{type: …}} maps"
        )
    made = {name: _camera(name, one) for name, one in cameras.items()}
    return Cameras(made, {name: _size(name, one) for name, one in cameras.items()})


def _size(name: str, given: Mapping[str, Any]) -> tuple[int, int, int]:
    """(height, width, 3) as the options say; the policy is told before the camera is opened."""
    sides = [given.get(side, usual) for side, usual in (("height", 720), ("width", 1280))]
    height, width = (
        int(number(f"cameras.{name} width and height", side, 1, MAX_PICTURE_SIDE)) for side in sides
    )
    return height, width, 3


def _camera(name: str, given: Mapping[str, Any]) -> DriverSource:
    """The one camera that `given` says; BodyError that lists them where it says several."""
    options = dict(given)
    what = f"cameras.{name}"
    type_ = str(options.pop("type", ""))
    if type_ == "replay":  # as they were recorded
        options = {key: one for key, one in options.items() if key not in ("width", "height")}
    device = options.pop("device", None)
    if type_ == "opencv" and "index_or_path" in options:  # as LeRobot calls it
        options["sources"] = options.pop("index_or_path")
    if type_ == "synthetic":
        options["names"], device = str(device or name), None
    made: list[CameraDriver] = _made(camera_table.DRIVERS, type_, {}, options, what)
    there = ", ".join(one.name for one in made) or "none attached"
    if device is not None:
        made = [one for one in made if one.name == device]
    if len(made) != 1:
        raise BodyError(f"--robot.{what}: pick one by device: NAME ({there})")
    return DriverSource(made[0])


def _sensor(given: DriverOptions) -> SensorWatch | None:
    options = a_map("sensor", given.sensor)
    if not options:
        return None
    samples = int(number("sensor_samples", given.sensor_samples, 1, MAX_WINDOW[0]))
    name = str(options.pop("type", ""))
    return SensorWatch(_made(sensor_table.DRIVERS, name, {}, options, "sensor"), samples)


def _shown(reading: RobotReading) -> str:
    joints = " ".join(f"{value:.3g}" for value in np.ravel(reading.joints_deg))
    return (
        f"joints {joints}, force {reading.force_n:.3g}"
        if math.isfinite(reading.force_n)
        else joints
    )
