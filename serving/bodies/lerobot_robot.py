"""Any robot that LeRobot (0.6, `lerobot.robots`) knows by its type name, with LeRobot's cameras.

Names, units and order are LeRobot's own, so that a policy sees here what it sees in LeRobot's
client. One arm on a servo bus (SO-101, Koch, …) is driven as the senders drive it, which checks the
servos; other robots through LeRobot's class alone, every call of it bounded in time.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from senders.drivers import DriverError
from senders.robots.lerobot_arm import LeRobotArm
from serving.bodies.cameras import Cameras, LeRobotSource
from serving.bodies.driver import ArmBody
from serving.bodies.lerobot_body import LeRobotBody, LeRobotOptions, limits_of
from serving.bodies.lerobot_setup import bare_robot, look_up, make_cameras
from serving.bodies.options import filled, number
from serving.body import Body, BodyError

__all__ = ["make_lerobot"]


def make_lerobot(type_: str, robot: Mapping[str, Any], others: str) -> Body:
    """The robot `type_` with the options `robot`, not connected.

    BodyError, one line, for a type or an option that cannot be used; `others` says what else
    there is.
    """
    if importlib.util.find_spec("lerobot") is None:
        raise BodyError(
            f"there is no robot {type_!r} without LeRobot: --robot.type is one of {others}; "
            "LeRobot's (so101_follower, …) need pip install '.[lerobot]' with Python 3.12"
        )
    if known := look_up(type_):
        raise BodyError(
            f"there is no robot {type_!r}: --robot.type is one of {others}; or of LeRobot: {known}"
        )
    ours = {one.name for one in dataclasses.fields(LeRobotOptions)}
    given = filled(LeRobotOptions, {k: v for k, v in robot.items() if k in ours}, "robot")
    number("speed_scale", given.speed_scale, 0.001, 1)
    number("max_step", given.max_step, 0.001, 1000)
    number("open_timeout", given.open_timeout, 0.1, 600)
    theirs = {k: v for k, v in robot.items() if k not in ours}
    bare = bare_robot(type_, theirs)
    sources = {name: LeRobotSource(one) for name, one in make_cameras(bare.cameras).items()}
    cameras = Cameras(sources, bare.camera_shapes)
    if bare.is_arm:
        return _arm(type_, theirs, given, cameras)
    return LeRobotBody(bare, given, cameras)


def _arm(
    type_: str, options: Mapping[str, Any], given: LeRobotOptions, cameras: Cameras
) -> ArmBody:
    own = {k: v for k, v in options.items() if v is not None and k != "cameras"}
    port, id_, folder = (str(own.pop(key, "")) for key in ("port", "id", "calibration_dir"))
    use_degrees = own.pop("use_degrees", None)  # None: as LeRobot has it, not as the senders
    relative = own.pop("max_relative_target", 0.0)
    try:
        arm = LeRobotArm(
            type_,
            port,
            id_,
            folder,
            max_relative_target=relative,
            options=own,
            use_degrees=use_degrees,
        )
    except DriverError as error:
        raise BodyError(str(error)) from None
    count, limits = len(arm.joints), arm.limits
    low, high, speed = limits_of(
        given,
        [f"{joint}.pos" for joint in arm.joints],
        np.array(limits.joint_min_deg[:count]),
        np.array(limits.joint_max_deg[:count]),
    )
    unused = (0.0,) * (len(limits.joint_min_deg) - count)
    limits = dataclasses.replace(
        limits,
        joint_min_deg=(*low.tolist(), *unused),
        joint_max_deg=(*high.tolist(), *unused),
        joint_speed_deg_s=(*speed.tolist(), *unused),
        max_step_deg=given.max_step,
    ).scaled(given.speed_scale)
    return ArmBody(arm, arm.joints, limits, cameras, open_timeout_s=given.open_timeout)
