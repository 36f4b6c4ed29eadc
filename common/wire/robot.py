"""The robot's state, its condition, and the end of an episode."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import msgpack

from common import endpoints
from common.wire.checks import (
    MAX_HEADER,
    MAX_MAGNITUDE,
    Buffer,
    MalformedMessage,
    stamp,
    unpack_map,
    view,
)

_ROBOT = struct.Struct("<dd13f")
_EPISODE_END = b"episode_end"
_STATUS = b"robot_status"
_MAX_DETAIL = 200

RobotCondition: TypeAlias = Literal["ok", "lost", "error", "emergency_stop"]
"""ok; lost: its side cannot reach it; error: it reports one; emergency_stop: it was pressed."""


@dataclass(frozen=True, slots=True)
class RobotState:
    """One sample of the robot, 68 bytes on the wire (`<ddf12f`).

    Attributes:
        origin_timestamp: when the robot was sampled.
        send_timestamp: when the sender handed it to the socket.
        force: newtons; a placeholder (0.0) on today's rigs.
        joints: six joint angles in degrees.
        pose: x, y, z in mm, then mobile XYZ Euler angles in degrees.
        speeds: six joint speeds in degrees a second, empty where they are not known. Not on the
            wire: whoever receives states tells them from two.
    """

    origin_timestamp: float
    send_timestamp: float
    force: float
    joints: tuple[float, ...]
    pose: tuple[float, ...]
    speeds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class EpisodeEnd:
    """The robot's side says that the episode is over."""


@dataclass(frozen=True, slots=True)
class RobotStatus:
    """What the robot's side says of the robot: at every change, and once a second.

    Attributes:
        condition: whether it can be used, and if not, why.
        timestamp: when that was found.
        detail: one line for people, empty where there is nothing to add.
    """

    condition: RobotCondition
    timestamp: float
    detail: str = ""


def encode_robot_status(status: RobotStatus) -> list[bytes]:
    """Topic and msgpack map of a robot's condition."""
    shown = "".join(c if c.isprintable() else " " for c in status.detail[:_MAX_DETAIL])
    body = {"condition": status.condition, "timestamp": status.timestamp, "detail": shown}
    packed: bytes = msgpack.packb(body)
    return [_STATUS, packed]


def _decode_status(stream: str, data: memoryview) -> RobotStatus:
    if not 0 < len(data) <= MAX_HEADER:
        raise MalformedMessage(stream, "size", f"{len(data)} bytes of status")
    try:
        body = unpack_map(data)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise MalformedMessage(stream, "status", "not msgpack") from None
    if not isinstance(body, dict):
        raise MalformedMessage(stream, "status", "not a map")
    condition, detail = body.get("condition"), body.get("detail", "")
    if condition not in get_args(RobotCondition):
        raise MalformedMessage(stream, "status", "condition")
    if not isinstance(detail, str) or len(detail) > _MAX_DETAIL or not detail.isprintable():
        raise MalformedMessage(stream, "status", "detail")
    found: RobotCondition = condition  # type: ignore[assignment]
    return RobotStatus(found, stamp(stream, body.get("timestamp")), detail)


def encode_robot(state: RobotState) -> list[bytes]:
    """Topic and payload of a robot state; struct.error unless it has six joints and values."""
    payload = _ROBOT.pack(
        state.origin_timestamp, state.send_timestamp, state.force, *state.joints, *state.pose
    )
    return [endpoints.ROBOT.topic, payload]


def encode_episode_end() -> list[bytes]:
    """Topic and (empty) payload that end an episode."""
    return [_EPISODE_END, b""]


def decode_robot(frames: Sequence[Buffer]) -> RobotState | RobotStatus | EpisodeEnd:
    """Decode a message of the robot stream; raises MalformedMessage and nothing else."""
    stream = endpoints.ROBOT.stream
    if len(frames) not in (1, 2):
        raise MalformedMessage(stream, "parts", str(len(frames)))
    topic = view(stream, frames[0])
    if topic == _EPISODE_END:
        return EpisodeEnd()
    if topic not in (endpoints.ROBOT.topic, _STATUS):
        raise MalformedMessage(stream, "topic")
    if len(frames) != 2:
        raise MalformedMessage(stream, "parts", "no payload")
    payload = view(stream, frames[1])
    if topic == _STATUS:
        return _decode_status(stream, payload)
    if len(payload) != _ROBOT.size:
        raise MalformedMessage(stream, "size", f"{len(payload)} bytes, {_ROBOT.size} expected")
    origin, sent, *values = _ROBOT.unpack(payload)
    if not all(abs(value) <= MAX_MAGNITUDE for value in values):
        raise MalformedMessage(stream, "values", "not finite or absurd")
    return RobotState(
        stamp(stream, origin),
        stamp(stream, sent),
        values[0],
        tuple(values[1:7]),
        tuple(values[7:13]),
    )
