"""A simulated arm with cameras and a force sensor, in real time by the monotonic clock.

It needs no hardware and hardly any processor: joints follow their targets at a limited speed,
pictures and samples are made when they are asked for. It can write down what it was told, so that
a run can be checked against the limits, and fail on purpose.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.step_limiter import StepLimiter
from serving.bodies.command_record import Command, CommandRecord
from serving.bodies.options import filled, number, per_value
from serving.body import BodyError, BodyState, Seen
from serving.messages import MAX_CAMERAS, MAX_PICTURE_SIDE, MAX_VALUES, MAX_WINDOW

__all__ = ["SimulatedBody", "SimulatedOptions"]

_SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
_LEAD_S = 0.25
_STRIPE = 8
_NOISE_ROWS = 64

Size = tuple[int, int, int]


@dataclass(frozen=True)
class SimulatedOptions:
    """`--robot.…` of the simulated arm."""

    arm: Literal["plain", "so101"] = "plain"
    """Names and ranges: joint_1.pos, … from -180 to 180; or those of an SO-101."""
    joints: int = 6
    """How many joints a plain arm has."""
    start: Any = None
    """Where the joints stand at first."""
    joint_min: Any = None
    """Lowest targets."""
    joint_max: Any = None
    """Highest targets."""
    joint_speed: Any = 120.0
    """Top speeds, units a second: of the arm, and of its targets at speed_scale 1."""
    speed_scale: float = 0.5
    """Fraction of the top speeds that targets may move with."""
    max_step: float = 2.0
    """Furthest that a target may move in one control tick, at any rate."""
    cameras: Any = 1
    """How many cameras (camera1, …), or a map of their names to {width, height, fps}."""
    width: int = 640
    """Pixels across, of a camera that does not say."""
    height: int = 480
    """Pixels down, of a camera that does not say."""
    fps: float = 30.0
    """Pictures a second, of a camera that does not say."""
    sensor_channels: int = 0
    """Values of a force sensor's sample: the force, then an A-scan; 0 is no sensor."""
    sensor_rate_hz: float = 650.0
    """Samples a second."""
    camera_stops_after_s: float = 0.0
    """Fault: so long after opening, cameras give no new picture; 0 never."""
    camera_stops_for_s: float = 0.0
    """How long that lasts; 0 for good."""
    stopping_camera: str = ""
    """Which camera stops; all when empty."""
    body_fails_at_s: float = 0.0
    """Fault: so long after it was first opened, the arm does not answer; 0 never."""
    body_fails_for_s: float = 0.0
    """How long that lasts; 0 for good."""
    record: str = ""
    """CSV file for every command: seconds, move or hold, targets, where the joints were."""


@dataclass(slots=True)
class _Camera:
    """A painted scene, and the picture that was drawn on it last."""

    scene: NDArray[np.uint8]
    fps: float
    index: int = -1
    seen: Seen | None = None

    def show(self, opened_at: float, moment: float, mark: float) -> Seen:
        """The picture of this moment: the scene with a stripe that says the joints' state."""
        index = max(int((moment - opened_at) * self.fps), 0)
        if self.seen is None or index != self.index:
            pixels = self.scene.copy()
            height, width = pixels.shape[:2]
            left = int((mark % 1.0) * max(width - _STRIPE, 1))
            pixels[:, left : left + _STRIPE] = (220, 40, 40)
            top = index * 2 % max(height - _STRIPE, 1)
            pixels[top : top + _STRIPE] = (40, 220, 40)
            pixels.flags.writeable = False
            self.index, self.seen = index, Seen(pixels, opened_at + index / self.fps)
        return self.seen


class SimulatedBody:
    """An arm that goes where it is told, each joint at its speed at most, and else stands still."""

    def __init__(self, robot: Mapping[str, Any]) -> None:
        """Of the options `robot`; BodyError for one that cannot be used."""
        given = filled(SimulatedOptions, robot, "robot")
        so101 = given.arm == "so101"
        count = len(_SO101) if so101 else int(number("joints", given.joints, 1, MAX_VALUES))
        joints = _SO101 if so101 else tuple(f"joint_{k}" for k in range(1, count + 1))
        self.state_names = self.action_names = tuple(f"{joint}.pos" for joint in joints)
        names = self.action_names
        low = [-180.0] * count if not so101 else [-100.0] * 5 + [0.0]
        high = [180.0] * count if not so101 else [100.0] * 6
        self._low = per_value("joint_min", given.joint_min, names, low)
        self._high = per_value("joint_max", given.joint_max, names, high)
        self._speed = per_value("joint_speed", given.joint_speed, names, [120.0] * count)
        middle = np.clip(np.zeros(count), self._low, self._high)
        self._joints = per_value("start", given.start, names, middle.tolist())
        if not (self._low < self._high).all() or not (self._speed > 0).all():
            raise BodyError("--robot.joint_min must be below joint_max, and joint_speed above 0")
        self._scale = number("speed_scale", given.speed_scale, 0.001, 1)
        self._max_step = number("max_step", given.max_step, 0.001, 1000)
        self._cameras = _cameras(given)
        self._options = given
        self._noise = _noise(given)
        self._record = CommandRecord(given.record, names)
        self._target = self._joints
        self._moved_at = self._opened_at = 0.0
        self._first_opened_at: float | None = None
        self._is_open = False

    @property
    def cameras(self) -> dict[str, Size]:
        """Camera → (height, width, 3)."""
        shapes = {name: camera.scene.shape for name, camera in self._cameras.items()}
        return {name: (shape[0], shape[1], 3) for name, shape in shapes.items()}

    @property
    def commands(self) -> tuple[Command, ...]:
        """What the arm was told, the newest 20,000, oldest first."""
        return tuple(self._record.newest)

    def limiter(self, control_hz: float) -> StepLimiter:
        """The limits of targets (A,) that are sent `control_hz` times a second."""
        speed = self._scale * self._speed
        step = np.minimum(speed / control_hz, self._max_step)
        turns = np.zeros(len(speed), bool)
        return StepLimiter(self._low, self._high, step, speed * _LEAD_S, turns)

    def open(self) -> None:
        """Stand where it stood."""
        self.close()
        self._opened_at = self._moved_at = time.monotonic()
        if self._first_opened_at is None:
            self._first_opened_at = self._opened_at
        self._check()
        self._record.open()
        self._target = self._joints
        self._is_open = True

    def read(self) -> BodyState:
        """The joints now."""
        at = self._advance()
        return BodyState(self._joints, at)

    def seen(self) -> dict[str, Seen]:
        """The pictures of this moment, drawn now; a camera that stopped gives its last."""
        if not self._is_open:
            return {}
        moment, given = time.monotonic(), self._options
        mark = float(np.sum(self._joints)) / 360.0
        found = {}
        for name, camera in self._cameras.items():
            stops = given.camera_stops_after_s and given.stopping_camera in ("", name)
            until = moment
            if stops and _lies_within(
                moment - self._opened_at, given.camera_stops_after_s, given.camera_stops_for_s
            ):
                until = self._opened_at + given.camera_stops_after_s
            found[name] = camera.show(self._opened_at, until, mark)
        return found

    def sensor(self, samples: int) -> NDArray[np.float32] | None:
        """A slow sine of force and A-scans of noise; None without, or before there are enough."""
        channels, rate_hz = self._options.sensor_channels, self._options.sensor_rate_hz
        newest = int((time.monotonic() - self._opened_at) * rate_hz)
        if not (channels and self._is_open and newest >= samples):
            return None
        index = np.arange(newest - samples, newest)
        rows = self._noise[index % _NOISE_ROWS]
        rows[:, 0] = 0.25 + 0.2 * np.sin(2 * math.pi * 0.5 * index / rate_hz)
        return rows

    def move(self, target: NDArray[np.float64]) -> None:
        """Go towards (A,)."""
        wanted = np.array(target, dtype=np.float64)
        if wanted.shape != self._joints.shape or not np.isfinite(wanted).all():
            raise BodyError(f"not a target: {target}")
        at = self._advance()
        self._target = wanted
        self._record.add(Command(at, wanted, self._joints, is_hold=False))

    def hold(self) -> None:
        """Stay at the joints of this moment."""
        if not self._is_open:
            return
        at = self._advance()
        self._target = self._joints
        self._record.add(Command(at, self._joints, self._joints, is_hold=True))

    def close(self) -> None:
        """Stop where it is."""
        if self._is_open:
            self._is_open = False
            self._record.close()

    def _check(self) -> None:
        given, first = self._options, self._first_opened_at
        if given.body_fails_at_s and first is not None:
            run_s = time.monotonic() - first
            if _lies_within(run_s, given.body_fails_at_s, given.body_fails_for_s):
                raise BodyError(
                    "the simulated arm does not answer, as --robot.body_fails_at_s says"
                )

    def _advance(self) -> float:
        """Move the joints up to now; the `time.monotonic()` of it."""
        if not self._is_open:
            raise BodyError("the simulated arm is not open")
        self._check()
        moment = time.monotonic()
        reach = self._speed * (moment - self._moved_at)
        self._moved_at = moment
        # A new array each time: states and commands keep the old one.
        self._joints = self._joints + np.clip(self._target - self._joints, -reach, reach)
        return moment


def _lies_within(run_s: float, begins_s: float, lasts_s: float) -> bool:
    return run_s >= begins_s and (lasts_s <= 0 or run_s < begins_s + lasts_s)


def _cameras(given: SimulatedOptions) -> dict[str, _Camera]:
    wanted = given.cameras
    if isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted <= MAX_CAMERAS:
        wanted = {f"camera{k}": {} for k in range(1, wanted + 1)}
    if not isinstance(wanted, dict) or len(wanted) > MAX_CAMERAS:
        raise BodyError(
            f"--robot.cameras must be up to {MAX_CAMERAS}, or a map of names to options"
        )
    cameras = {}
    for name, options in wanted.items():
        own = {"width": given.width, "height": given.height, "fps": given.fps} | (options or {})
        if not set(own) <= {"width", "height", "fps"}:
            raise BodyError(f"--robot.cameras: {name} takes width, height and fps only")
        width = int(number(f"cameras.{name}.width", own["width"], 16, MAX_PICTURE_SIDE))
        height = int(number(f"cameras.{name}.height", own["height"], 16, MAX_PICTURE_SIDE))
        fps = number(f"cameras.{name}.fps", own["fps"], 0.1, 1000)
        cameras[str(name)] = _Camera(_scene(str(name), height, width), fps)
    return cameras


def _scene(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """Blotches (height, width, 3), other ones for another name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    rows, columns = -(-height // 16), -(-width // 16)
    blotches = rng.integers(60, 200, (rows, columns, 3), dtype=np.uint8)
    tall = np.repeat(np.repeat(blotches, 16, axis=0), 16, axis=1)
    return np.ascontiguousarray(tall[:height, :width])


def _noise(given: SimulatedOptions) -> NDArray[np.float32]:
    channels = int(number("sensor_channels", given.sensor_channels, 0, MAX_WINDOW[1]))
    number("sensor_rate_hz", given.sensor_rate_hz, 1, 100_000)
    noise = np.random.default_rng(0).normal(0.0, 0.02, (_NOISE_ROWS, channels))
    return noise.astype(np.float32)
