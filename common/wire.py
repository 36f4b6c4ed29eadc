"""Every packet on the wire: frozen dataclasses, their encoders, and decoders that trust nothing.

Pure functions over bytes; no sockets. All multi-byte fields are little-endian, timestamps are UNIX
seconds in the sender's clock, angles degrees, lengths millimetres, forces newtons. A decoder either
returns a value that may be used as it is (finite, bounded, of the right size) or raises
`MalformedMessage`, whatever the bytes; it allocates no more than a small multiple of what it got.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import msgpack
import numpy as np
from numpy.typing import NDArray

from common import endpoints
from common.jpeg import JpegError, jpeg_size

__all__ = [
    "ALINE_LENGTH",
    "MAX_DATAGRAM",
    "Action",
    "ActionSpace",
    "Buffer",
    "CameraFrame",
    "EpisodeEnd",
    "MalformedMessage",
    "RobotState",
    "SampleBatch",
    "decode_action",
    "decode_camera",
    "decode_robot",
    "decode_samples",
    "encode_action",
    "encode_camera",
    "encode_episode_end",
    "encode_robot",
    "encode_samples",
    "max_samples",
]

Buffer: TypeAlias = bytes | bytearray | memoryview
ActionSpace: TypeAlias = Literal["joint_position", "joint_delta", "pose_delta"]

ALINE_LENGTH = 1025
"""Values in an A-scan of the reference rig."""
MAX_DATAGRAM = 65_507
"""The largest UDP payload over IPv4: 65,535 less 20 bytes of IP and 8 of UDP header."""
MAX_HEADER = 4096
MAX_JPEG = 16 << 20
MAX_JPEG_PIXELS = 4096 * 4096
MAX_ACTION = 1 << 16
MAX_ACTION_VALUES = 4096
MAX_NAME = 128
"""Bytes of a camera's name; it becomes part of a file's name."""
MAX_ITEMS = 64
"""Elements of a msgpack array: the parser reserves room for as many as an array claims to hold."""
MAX_TIMESTAMP = float(1 << 33)
"""UNIX seconds up to the year 2242: a stamp beyond is a broken one."""
MAX_MAGNITUDE = 1e6
"""Degrees, millimetres and newtons beyond this are noise, not a reading."""

_ROBOT = struct.Struct("<dd13f")
_EPISODE_END = b"episode_end"
_COUNT = struct.Struct("<I")


class MalformedMessage(ValueError):
    """A message that was dropped: the stream it came on and, as a short slug, why."""

    def __init__(self, stream: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{stream}: {reason}{f' ({detail})' if detail else ''}")
        self.stream = stream
        self.reason = reason


def _stamp(stream: str, value: object) -> float:
    """A timestamp that can be computed with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MalformedMessage(stream, "timestamp", "not a number")
    if not 0.0 <= value < MAX_TIMESTAMP:  # false for NaN too
        raise MalformedMessage(stream, "timestamp", "not UNIX seconds")
    return float(value)


def _view(stream: str, data: object) -> memoryview:
    """The bytes of a frame without a copy."""
    try:
        return memoryview(data).cast("B")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise MalformedMessage(stream, "type", "not bytes") from None


# --- robot state ---------------------------------------------------------------------------------


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
    topic = _view(stream, frames[0])
    if topic == _EPISODE_END:
        return EpisodeEnd()
    if topic != endpoints.ROBOT.topic:
        raise MalformedMessage(stream, "topic")
    if len(frames) != 2:
        raise MalformedMessage(stream, "parts", "no payload")
    payload = _view(stream, frames[1])
    if len(payload) != _ROBOT.size:
        raise MalformedMessage(stream, "size", f"{len(payload)} bytes, {_ROBOT.size} expected")
    origin, sent, *values = _ROBOT.unpack(payload)
    if not all(abs(value) <= MAX_MAGNITUDE for value in values):
        raise MalformedMessage(stream, "values", "not finite or absurd")
    return RobotState(
        _stamp(stream, origin),
        _stamp(stream, sent),
        values[0],
        tuple(values[1:7]),
        tuple(values[7:13]),
    )


# --- camera frames -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CameraFrame:
    """One JPEG of one camera; the fields after `jpeg` are absent (None) from older senders.

    Attributes:
        camera: the sender's name for the camera.
        timestamp: capture time.
        jpeg: baseline JPEG, the very bytes that came in.
        seq: counts the camera's captures, those that were never sent too.
        send_timestamp: when the sender handed it to the socket.
        width: pixels.
        height: pixels.
    """

    camera: str
    timestamp: float
    jpeg: Buffer
    seq: int | None = None
    send_timestamp: float | None = None
    width: int | None = None
    height: int | None = None


def encode_camera(
    frame: CameraFrame, header_format: Literal["msgpack", "json"] = "msgpack"
) -> list[Buffer]:
    """Header and JPEG of a camera frame; `json` writes the header as deployed senders do."""
    header: dict[str, Any] = {
        "camera": frame.camera,
        "timestamp": frame.timestamp,
        "size": len(frame.jpeg),
    }
    for key in ("seq", "send_timestamp", "width", "height"):
        if (value := getattr(frame, key)) is not None:
            header[key] = value
    packed: bytes = (
        msgpack.packb(header) if header_format == "msgpack" else json.dumps(header).encode()
    )
    return [packed, frame.jpeg]


def _header_map(stream: str, data: memoryview) -> dict[Any, Any]:
    """The map in a header, msgpack or (when it begins with a brace) JSON."""
    if not 0 < len(data) <= MAX_HEADER:
        raise MalformedMessage(stream, "header_size", f"{len(data)} bytes")
    try:
        is_json = data[0] == ord("{")
        header = json.loads(bytes(data).decode()) if is_json else _unpack_map(data)
    # json raises RecursionError on deep nesting; msgpack raises subclasses of ValueError and,
    # for a map with an unhashable key, TypeError.
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise MalformedMessage(stream, "header", "neither msgpack nor JSON") from None
    if not isinstance(header, dict):
        raise MalformedMessage(stream, "header", "not a map")
    return header


def _unpack_map(data: memoryview) -> object:
    # What is not reserved ahead is limited by the message's own size: nothing larger can be in it.
    size = len(data)
    return msgpack.unpackb(
        data,
        raw=False,
        strict_map_key=True,
        max_str_len=size,
        max_bin_len=size,
        max_array_len=MAX_ITEMS,
        max_map_len=size,
        max_ext_len=0,
    )


def _camera_name(stream: str, value: object) -> str:
    """A name that can be printed on a line and become part of a file's name."""
    if (
        not isinstance(value, str)
        or not value.isprintable()  # no controls, and no surrogates: it can be encoded
        or not 0 < len(value.encode()) <= MAX_NAME
        or "/" in value
        or "\\" in value
    ):
        raise MalformedMessage(stream, "header_field", "camera")
    return value


def _optional_count(stream: str, header: dict[Any, Any], key: str) -> int | None:
    value = header.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise MalformedMessage(stream, "header_field", key)
    return value


def decode_camera(frames: Sequence[Buffer]) -> CameraFrame:
    """Decode a message of the camera stream; raises MalformedMessage and nothing else.

    The JPEG is not decompressed here, but its markers are walked, so that what passes is a whole
    JPEG of at most 16 megapixels.
    """
    stream = endpoints.CAMERA.stream
    if len(frames) != 2:
        raise MalformedMessage(stream, "parts", str(len(frames)))
    header = _header_map(stream, _view(stream, frames[0]))
    camera, size = _camera_name(stream, header.get("camera")), header.get("size")
    timestamp = _stamp(stream, header.get("timestamp"))
    sent = header.get("send_timestamp")
    send_timestamp = None if sent is None else _stamp(stream, sent)
    jpeg = _view(stream, frames[1])
    if isinstance(size, bool) or not isinstance(size, int) or size != len(jpeg):
        raise MalformedMessage(stream, "size", f"{len(jpeg)} bytes, the header says otherwise")
    if len(jpeg) > MAX_JPEG:
        raise MalformedMessage(stream, "oversized", f"{len(jpeg)} bytes")
    try:
        width, height = jpeg_size(jpeg)
    except JpegError as error:
        raise MalformedMessage(stream, "not_jpeg", str(error)) from None
    if width * height > MAX_JPEG_PIXELS:
        raise MalformedMessage(stream, "oversized", f"{width}x{height} pixels")
    # What the JPEG itself says is believed; what the header says of it is only checked.
    for key in ("width", "height"):
        _optional_count(stream, header, key)
    return CameraFrame(
        camera,
        timestamp,
        frames[1],
        _optional_count(stream, header, "seq"),
        send_timestamp,
        width,
        height,
    )


# --- force sensor --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """The samples of one datagram, oldest first.

    Attributes:
        timestamps: (N,) float64, when each was sampled.
        send_timestamps: (N,) float64.
        forces: (N,) float32, newtons.
        alines: (N, L) float32, one A-scan a sample, ordered by depth.
    """

    timestamps: NDArray[np.float64]
    send_timestamps: NDArray[np.float64]
    forces: NDArray[np.float32]
    alines: NDArray[np.float32]

    def __len__(self) -> int:
        """Samples in the batch."""
        return len(self.timestamps)


def _sample_dtype(aline_length: int) -> np.dtype[np.void]:
    return np.dtype(
        [("t", "<f8"), ("sent", "<f8"), ("force", "<f4"), ("aline", "<f4", (aline_length,))]
    )


_REFERENCE_SAMPLE = _sample_dtype(ALINE_LENGTH)


def max_samples(aline_length: int = ALINE_LENGTH) -> int:
    """How many samples fit into one datagram (15 of the reference rig's)."""
    return (MAX_DATAGRAM - _COUNT.size) // _sample_dtype(aline_length).itemsize


def encode_samples(batch: SampleBatch) -> bytes:
    """One datagram; ValueError when the batch is empty or does not fit."""
    count, length = batch.alines.shape
    if not 1 <= count <= max_samples(length):
        raise ValueError(f"{count} samples do not make a datagram of 1 to {max_samples(length)}")
    rows = np.empty(count, _sample_dtype(length))
    rows["t"], rows["sent"] = batch.timestamps, batch.send_timestamps
    rows["force"], rows["aline"] = batch.forces, batch.alines
    return _COUNT.pack(count) + rows.tobytes()


def decode_samples(datagram: Buffer, aline_length: int = ALINE_LENGTH) -> SampleBatch:
    """Decode one datagram; raises MalformedMessage and nothing else.

    The arrays are views of the datagram where it was given: copy what is to outlive the buffer.
    """
    stream = endpoints.SENSOR.stream
    data = _view(stream, datagram)
    if len(data) < _COUNT.size:
        raise MalformedMessage(stream, "truncated", f"{len(data)} bytes")
    if len(data) > MAX_DATAGRAM:
        raise MalformedMessage(stream, "oversized", f"{len(data)} bytes")
    dtype = _REFERENCE_SAMPLE if aline_length == ALINE_LENGTH else _sample_dtype(aline_length)
    (count,) = _COUNT.unpack_from(data)
    if count < 1:
        raise MalformedMessage(stream, "count", "no samples")
    if len(data) != _COUNT.size + count * dtype.itemsize:
        raise MalformedMessage(stream, "size", f"{len(data)} bytes for {count} samples")
    rows = np.frombuffer(data, dtype, offset=_COUNT.size)
    for stamps in (rows["t"], rows["sent"]):
        if not (stamps.min() >= 0.0 and stamps.max() < MAX_TIMESTAMP):  # false for NaN too
            raise MalformedMessage(stream, "timestamp", "not UNIX seconds")
    with np.errstate(invalid="ignore"):
        largest = [np.abs(rows[name]).max(initial=0.0) for name in ("force", "aline")]
    if not all(value <= MAX_MAGNITUDE for value in largest):  # false for NaN too
        raise MalformedMessage(stream, "values", "not finite or absurd")
    return SampleBatch(rows["t"], rows["sent"], rows["force"], rows["aline"])


# --- actions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Action:
    """A chunk of actions for the robot, or the order to hold.

    Attributes:
        seq: counts the published messages.
        timestamp: when inference ended.
        observed_at: capture time of the oldest input used.
        feature_update: number of the vision-language update used.
        feature_age: seconds.
        dt: seconds between rows.
        space: what the rows mean.
        actions: (H, A) float32; the columns are six joint (or pose) values and a gripper value.
        hold: stay where you are; then the rows mean nothing.
        reason: why to hold, empty otherwise.
    """

    seq: int
    timestamp: float
    observed_at: float
    feature_update: int
    feature_age: float
    dt: float
    space: ActionSpace
    actions: NDArray[np.float32]
    hold: bool = False
    reason: str = ""


def encode_action(action: Action) -> list[bytes]:
    """Topic and msgpack map of an action message."""
    rows = np.ascontiguousarray(action.actions, dtype="<f4")
    body = {
        "seq": action.seq,
        "timestamp": action.timestamp,
        "observed_at": action.observed_at,
        "feature_update": action.feature_update,
        "feature_age": action.feature_age,
        "dt": action.dt,
        "space": action.space,
        "actions": rows.tobytes(),
        "shape": list(rows.shape),
        "dtype": "float32",
        "hold": action.hold,
        "reason": action.reason,
    }
    packed: bytes = msgpack.packb(body)
    return [endpoints.ACTION.topic, packed]


def _rows(stream: str, body: dict[Any, Any]) -> NDArray[np.float32]:
    raw, shape = body.get("actions"), body.get("shape")
    if body.get("dtype") != "float32" or not isinstance(raw, bytes):
        raise MalformedMessage(stream, "actions", "not float32 bytes")
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape)
        and shape[0] * shape[1] <= MAX_ACTION_VALUES
        and len(raw) == 4 * shape[0] * shape[1]
    ):
        raise MalformedMessage(stream, "actions", "shape")
    rows = np.frombuffer(raw, "<f4").reshape(shape)
    if not float(np.abs(rows).max()) <= MAX_MAGNITUDE:
        raise MalformedMessage(stream, "values", "not finite or absurd")
    return rows


def decode_action(frames: Sequence[Buffer]) -> Action:
    """Decode a message of the action stream; raises MalformedMessage and nothing else."""
    stream = endpoints.ACTION.stream
    if len(frames) != 2:
        raise MalformedMessage(stream, "parts", str(len(frames)))
    if _view(stream, frames[0]) != endpoints.ACTION.topic:
        raise MalformedMessage(stream, "topic")
    data = _view(stream, frames[1])
    if not 0 < len(data) <= MAX_ACTION:
        raise MalformedMessage(stream, "size", f"{len(data)} bytes")
    try:
        body = _unpack_map(data)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise MalformedMessage(stream, "body", "not msgpack") from None
    if not isinstance(body, dict):
        raise MalformedMessage(stream, "body", "not a map")
    seq = _optional_count(stream, body, "seq")
    update = _optional_count(stream, body, "feature_update")
    hold, reason, space = body.get("hold"), body.get("reason", ""), body.get("space")
    if seq is None or update is None or not isinstance(hold, bool):
        raise MalformedMessage(stream, "body", "seq, feature_update or hold")
    if not isinstance(reason, str) or len(reason) > MAX_HEADER:
        raise MalformedMessage(stream, "body", "reason")
    if space not in get_args(ActionSpace):
        raise MalformedMessage(stream, "space")
    seconds = [body.get(key) for key in ("feature_age", "dt")]
    for value in seconds:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise MalformedMessage(stream, "body", "feature_age or dt")
        if not (math.isfinite(value) and 0.0 <= value <= MAX_MAGNITUDE):
            raise MalformedMessage(stream, "values", "feature_age or dt")
    return Action(
        seq=seq,
        timestamp=_stamp(stream, body.get("timestamp")),
        observed_at=_stamp(stream, body.get("observed_at")),
        feature_update=update,
        feature_age=float(seconds[0]),  # type: ignore[arg-type]
        dt=float(seconds[1]),  # type: ignore[arg-type]
        space=space,  # type: ignore[arg-type]
        actions=_rows(stream, body),
        hold=hold,
        reason=reason,
    )
