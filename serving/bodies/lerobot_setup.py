"""What LeRobot itself would make of a robot's options: its names, its cameras, its own classes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import logging
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from senders.drivers import DriverError
from senders.robots.lerobot_bus import serial_bus
from senders.robots.lerobot_setup import line, register
from serving.body import BodyError

__all__ = ["Bare", "arms", "bare_robot", "look_up", "make_cameras", "make_robot"]

logger = logging.getLogger("serving.body")

_TEXTS = ("id", "port", "calibration_dir")
_LETS_GO = "disable_torque_on_disconnect"


@dataclass(frozen=True, slots=True)
class Bare:
    """A robot of LeRobot's, without those of its cameras that can be read apart from it.

    Attributes:
        config: LeRobot's configuration of the robot, without the cameras.
        state_names: names of the state values in LeRobot's order.
        action_names: names of the action values in LeRobot's order.
        pictures: name → (height, width, 3) of the pictures that come with the robot's state.
        cameras: name in the observation → LeRobot's configuration of the camera.
        camera_shapes: the same → (height, width, 3) of its pictures.
        is_arm: whether all of it is one servo bus of up to six joints, moved by position.
    """

    config: Any
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    pictures: dict[str, tuple[int, int, int]]
    cameras: dict[str, Any]
    camera_shapes: dict[str, tuple[int, int, int]]
    is_arm: bool


def look_up(type_: str) -> str:
    """Have LeRobot know the robot `type_`; else the names that it knows, in one line."""
    from lerobot.robots import RobotConfig

    try:
        register(type_)
    except DriverError:
        return ", ".join(sorted(RobotConfig.get_known_choices()))
    return ""


def bare_robot(type_: str, options: Mapping[str, Any]) -> Bare:
    """Make what the stock client would make of the options, and look at it; nothing is connected.

    BodyError, one line, for options that LeRobot does not take.
    """
    config = _configuration(type_, options)
    robot = make_robot(config)
    shapes = {k: v for k, v in robot.observation_features.items() if isinstance(v, tuple)}
    for name in [name for name, shape in shapes.items() if len(shape) != 3 or shape[2] != 3]:
        logger.warning("%s: %s is no colour picture, and left out", type_, name)
        del shapes[name]
    cameras = {name: one for name, one in _cameras(robot, config).items() if name in shapes}
    state = tuple(k for k, v in robot.observation_features.items() if v is float)
    action = tuple(k for k, v in robot.action_features.items() if v is float)
    moved_by_position = all(name.endswith(".pos") for name in action)
    return Bare(
        config=_without_cameras(config, options) if cameras else config,
        state_names=state,
        action_names=action,
        pictures={k: (v[0], v[1], 3) for k, v in shapes.items() if k not in cameras},
        cameras=cameras,
        camera_shapes={k: (v[0], v[1], 3) for k, v in shapes.items() if k in cameras},
        is_arm=serial_bus(robot) is not None
        and state == action
        and moved_by_position
        and 1 <= len(action) <= 6
        and len(cameras) == len(shapes),
    )


def make_robot(config: Any) -> Any:
    """LeRobot's robot, not connected; BodyError where LeRobot cannot make it."""
    from lerobot.robots import make_robot_from_config

    try:
        return make_robot_from_config(config)
    except Exception as error:  # whatever a robot's package raises
        raise BodyError(f"LeRobot cannot make this robot: {line(error)}") from None


def make_cameras(configs: Mapping[str, Any]) -> dict[str, Any]:
    """LeRobot's cameras, not connected; BodyError where LeRobot cannot make them."""
    from lerobot.cameras.utils import make_cameras_from_configs

    try:
        return dict(make_cameras_from_configs(dict(configs)))
    except Exception as error:
        raise BodyError(f"LeRobot cannot make these cameras: {line(error)}") from None


def arms(robot: Any) -> list[tuple[str, Any]]:
    """Prefix and part of each arm of the robot on a servo bus, e.g. `left_` and its arm.

    LeRobot's two-armed robots hold two of the one-armed ones.
    """
    parts = [("", robot)]
    parts += [(f"{side}_", getattr(robot, f"{side}_arm", None)) for side in ("left", "right")]
    return [(prefix, part) for prefix, part in parts if part is not None and serial_bus(part)]


def _configuration(type_: str, options: Mapping[str, Any]) -> Any:
    import draccus
    from lerobot.robots import RobotConfig

    mapping = {k: str(v) if k in _TEXTS and v is not None else v for k, v in options.items()}
    _register_cameras(mapping)
    try:
        config = draccus.decode(RobotConfig, {"type": type_, **mapping})
    except Exception as error:
        raise BodyError(f"{type_}: {line(error)}") from None
    # LeRobot lets the arm drop at the end unless told otherwise; here it is left standing.
    for place, given in ((config, options), *_arm_configs(config, options)):
        if hasattr(place, _LETS_GO) and _LETS_GO not in given:
            setattr(place, _LETS_GO, False)
    return config


def _arm_configs(config: Any, options: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    """The configurations of a two-armed robot's arms, each with what was given for it."""
    found = []
    for field in dataclasses.fields(config):
        if field.name.endswith("_arm_config"):
            found.append((getattr(config, field.name), options.get(field.name) or {}))
    return found


def _register_cameras(options: Mapping[str, Any]) -> None:
    """Import LeRobot's cameras of the types that the options name."""
    from lerobot import cameras
    from lerobot.utils.import_utils import register_third_party_plugins

    wanted = _camera_types(options)
    if not wanted:
        return
    for module in pkgutil.iter_modules(cameras.__path__):
        if wanted <= set(cameras.CameraConfig.get_known_choices()):
            return
        if module.ispkg:
            with contextlib.suppress(Exception):  # one that needs a package that is not here
                importlib.import_module(f"lerobot.cameras.{module.name}")
    if not wanted <= set(cameras.CameraConfig.get_known_choices()):
        register_third_party_plugins()


def _camera_types(options: Mapping[str, Any]) -> set[str]:
    found: set[str] = set()
    for key, value in options.items():
        if key == "cameras" and isinstance(value, Mapping):
            found |= {
                str(v["type"]) for v in value.values() if isinstance(v, Mapping) and "type" in v
            }
        elif isinstance(value, Mapping):
            found |= _camera_types(value)
    return found


def _cameras(robot: Any, config: Any) -> dict[str, Any]:
    """Cameras that are this computer's, by their names in the observation.

    A robot that makes `Camera` objects of its configuration reads them here. One that does not
    gets its pictures from elsewhere (LeKiwi's client: over the network, with the state).
    """
    from lerobot.cameras import Camera

    held = [getattr(robot, name, None) for name in ("cameras", "_cameras")]
    made = [one for cameras in held if isinstance(cameras, dict) for one in cameras.values()]
    if not any(isinstance(one, Camera) for one in made):
        return {}
    found = dict(getattr(config, "cameras", None) or {})
    for field in dataclasses.fields(config):
        if field.name.endswith("_arm_config"):
            prefix = field.name.removesuffix("arm_config")
            own = getattr(getattr(config, field.name), "cameras", None) or {}
            found |= {f"{prefix}{name}": one for name, one in own.items()}
    return found


def _without_cameras(config: Any, options: Mapping[str, Any]) -> Any:
    bare = copy.deepcopy(config)
    for place, _ in ((bare, options), *_arm_configs(bare, options)):
        if hasattr(place, "cameras"):
            place.cameras = {}
    return bare
