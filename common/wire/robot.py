"""The robot's state, and the end of an episode."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from common import endpoints
from common.wire.checks import MAX_MAGNITUDE, Buffer, MalformedMessage, stamp, view

_ROBOT = struct.Struct("<dd13f")
_EPISODE_END = b"episode_end"


@dataclass(frozen=True, slots=True)
class RobotState:
    """One sample of the robot, 68 bytes on the wire (`<ddf12f`).

    Attributes:
        origin_timestamp: when the robot was sampled.
        send_timestamp: when the sender handed it to the socket.
        force: newtons; a placeholder (0.0) on today's rigs.
        joints: six joint angles in degrees.
        pose: x, y, z in mm, then mobile XYZ Euler angles in degrees.
    """

    origin_timestamp: float
    send_timestamp: float
    force: float
    joints: tuple[float, ...]
    pose: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EpisodeEnd:
    """The robot's side says that the episode is over."""


def encode_robot(state: RobotState) -> list[bytes]:
    """Topic and payload of a robot state; struct.error unless it has six joints and values."""
    payload = _ROBOT.pack(
        state.origin_timestamp, state.send_timestamp, state.force, *state.joints, *state.pose
    )
    return [endpoints.ROBOT.topic, payload]


def encode_episode_end() -> list[bytes]:
    """Topic and (empty) payload that end an episode."""
    return [_EPISODE_END, b""]


def decode_robot(frames: Sequence[Buffer]) -> RobotState | EpisodeEnd:
    """Decode a message of the robot stream; raises MalformedMessage and nothing else."""
    stream = endpoints.ROBOT.stream
    if len(frames) not in (1, 2):
        raise MalformedMessage(stream, "parts", str(len(frames)))
    topic = view(stream, frames[0])
    if topic == _EPISODE_END:
        return EpisodeEnd()
    if topic != endpoints.ROBOT.topic:
        raise MalformedMessage(stream, "topic")
    if len(frames) != 2:
        raise MalformedMessage(stream, "parts", "no payload")
    payload = view(stream, frames[1])
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
