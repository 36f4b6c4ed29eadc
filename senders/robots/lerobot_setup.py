"""LeRobot's configuration of a robot from plain options, and what it says in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import pkgutil
from difflib import SequenceMatcher
from typing import Any

from common.program import Every
from senders.drivers import DriverError

__all__ = ["Seldom", "configuration", "joint_order", "line", "register"]

_WIRE_JOINTS = 6
_OURS = ("type", "port", "id", "calibration_dir", "max_relative_target", "cameras", "use_degrees")
_MOST_SHOWN = 300


def configuration(
    type: str,
    wanted: dict[str, Any],
    limp_at_end: bool,
    options: Any,
    use_degrees: bool | None = True,
) -> Any:
    """LeRobot's configuration of the robot; DriverError for one that it does not accept.

    `use_degrees` None leaves the joints' unit as LeRobot has it for that robot.
    """
    import draccus
    from lerobot.robots import RobotConfig

    if options is not None and not isinstance(options, dict):
        raise DriverError('options must be a JSON map, e.g. {"position_p_coefficient": 16}')
    more: dict[str, Any] = options or {}
    if taken := set(more) & set(_OURS):
        raise DriverError(f"not to be given in options: {', '.join(sorted(taken))}")
    register(type)
    fields = {field.name for field in dataclasses.fields(RobotConfig.get_choice_class(type))}
    set_here: dict[str, Any] = {
        "cameras": {},
        "disable_torque_on_disconnect": limp_at_end,
    }
    if use_degrees is not None:
        set_here["use_degrees"] = use_degrees
    mapping = {key: value for key, value in set_here.items() if key in fields} | more
    mapping |= {key: value for key, value in wanted.items() if value}
    try:
        return draccus.decode(RobotConfig, {"type": type, **mapping})
    except Exception as error:
        raise DriverError(f"{type}: {line(error)}") from None


def register(type: str) -> None:
    """Import LeRobot's robots, the best match first, until `type` is known; else DriverError."""
    from lerobot import robots
    from lerobot.utils.import_utils import register_third_party_plugins

    def known() -> set[str]:
        return set(robots.RobotConfig.get_known_choices())

    names = [module.name for module in pkgutil.iter_modules(robots.__path__) if module.ispkg]
    names.sort(key=lambda name: -SequenceMatcher(None, name, type).ratio())
    for name in names:
        if type in known():
            return
        # Some need a package that is not here; that is no reason not to use another.
        with contextlib.suppress(Exception):
            importlib.import_module(f"lerobot.robots.{name}")
    if type not in known():
        register_third_party_plugins()
    if type not in known():
        raise DriverError(
            f"LeRobot has no robot {type!r} here; type= is one of {', '.join(sorted(known()))}"
        )


def joint_order(robot: Any, given: tuple[str, ...]) -> tuple[str, ...]:
    """The joints in the wire's order; DriverError unless there are one to six of them."""
    there = [key.removesuffix(".pos") for key in robot.action_features if key.endswith(".pos")]
    joints = tuple(name.strip() for name in given) or tuple(there)
    unknown = [joint for joint in joints if joint not in there]
    if unknown or len(set(joints)) != len(joints):
        raise DriverError(f"joints= must name each once, of {', '.join(there)}")
    if not 1 <= len(joints) <= _WIRE_JOINTS:
        raise DriverError(
            f"{len(joints)} joints, and the wire has {_WIRE_JOINTS}: pick them with joints=A,B,…, "
            f"of {', '.join(there) or 'none that LeRobot moves by position'}"
        )
    return joints


def line(error: BaseException) -> str:
    """What an error says, and what it came from, in one line of bearable length."""
    cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
    return " ".join(f"{error}{cause}".split())[:_MOST_SHOWN] or type(error).__name__


class Seldom(logging.Filter):
    """Lets LeRobot's line about a target that it clamped through every five seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._next = Every()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written."""
        return not str(record.msg).startswith("Relative goal position") or self._next.due()
