"""Every packet on the wire: frozen dataclasses, their encoders, and decoders that trust nothing.

Pure functions over bytes; no sockets. All multi-byte fields are little-endian, timestamps are UNIX
seconds in the sender's clock, angles degrees, lengths millimetres, forces newtons. A decoder either
returns a value that may be used as it is (finite, bounded, of the right size) or raises
`MalformedMessage`, whatever the bytes; it allocates no more than a small multiple of what it got.
"""

from common.wire.action import Action, decode_action, encode_action
from common.wire.camera import CameraFrame, decode_camera, encode_camera
from common.wire.checks import (
    ALINE_LENGTH,
    MAX_ACTION,
    MAX_ACTION_VALUES,
    MAX_DATAGRAM,
    MAX_HEADER,
    MAX_ITEMS,
    MAX_JPEG,
    MAX_JPEG_PIXELS,
    MAX_MAGNITUDE,
    MAX_NAME,
    MAX_TIMESTAMP,
    ActionSpace,
    Buffer,
    MalformedMessage,
)
from common.wire.robot import (
    EpisodeEnd,
    RobotCondition,
    RobotState,
    RobotStatus,
    decode_robot,
    encode_episode_end,
    encode_robot,
    encode_robot_status,
)
from common.wire.sensor import (
    SampleBatch,
    SampleReader,
    check_values,
    decode_samples,
    encode_samples,
    max_samples,
)
from common.wire.time import (
    MAX_NAMES,
    MAX_TIME,
    TimeReply,
    TimeRequest,
    decode_time_reply,
    decode_time_request,
    encode_time_reply,
    encode_time_request,
)

__all__ = [
    "ALINE_LENGTH",
    "MAX_ACTION",
    "MAX_ACTION_VALUES",
    "MAX_DATAGRAM",
    "MAX_HEADER",
    "MAX_ITEMS",
    "MAX_JPEG",
    "MAX_JPEG_PIXELS",
    "MAX_MAGNITUDE",
    "MAX_NAME",
    "MAX_NAMES",
    "MAX_TIME",
    "MAX_TIMESTAMP",
    "Action",
    "ActionSpace",
    "Buffer",
    "CameraFrame",
    "EpisodeEnd",
    "MalformedMessage",
    "RobotCondition",
    "RobotState",
    "RobotStatus",
    "SampleBatch",
    "SampleReader",
    "TimeReply",
    "TimeRequest",
    "check_values",
    "decode_action",
    "decode_camera",
    "decode_robot",
    "decode_samples",
    "decode_time_reply",
    "decode_time_request",
    "encode_action",
    "encode_camera",
    "encode_episode_end",
    "encode_robot",
    "encode_robot_status",
    "encode_samples",
    "encode_time_reply",
    "encode_time_request",
    "max_samples",
]
