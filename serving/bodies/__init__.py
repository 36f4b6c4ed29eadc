"""Robots that a client can move, by the name given as `--robot.type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from senders import robots
from serving.body import Body, BodyError

__all__ = ["make"]

_NOT_MOVABLE = ("replay",)


def make(robot: Mapping[str, Any], control_hz: float = 30.0) -> Body:
    """The body that the options `robot` describe, not connected yet.

    Its `type` is `simulated`, one of the project's robot drivers, or else a robot of LeRobot's by
    the name that LeRobot gives it. `control_hz` is how often targets will be sent. Raises
    BodyError, one line that says what to do, for a type or an option that cannot be used.
    """
    options = dict(robot)
    type_ = str(options.pop("type", "") or "")
    movable = {name: one for name, one in robots.DRIVERS.items() if name not in _NOT_MOVABLE}
    others = ", ".join(
        ["simulated (needs nothing)", *(entry.describe(name) for name, entry in movable.items())]
    )
    if not type_:
        raise BodyError(
            f"no robot is given: --robot.type is one of {others}; or any robot of LeRobot, "
            "e.g. so101_follower (pip install '.[lerobot]' with Python 3.12)"
        )
    if type_ in _NOT_MOVABLE:
        raise BodyError(f"the robot {type_!r} plays a recording and cannot be moved: use {others}")
    if type_ == "simulated":
        from serving.bodies.simulated import SimulatedBody

        return SimulatedBody(options)
    if type_ in movable:
        from serving.bodies.driver import DriverBody

        return DriverBody(type_, options, control_hz)
    from serving.bodies.lerobot_robot import make_lerobot

    return make_lerobot(type_, options, others)
