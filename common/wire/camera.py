"""Camera frames: a header in msgpack or JSON, and a JPEG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgpack

from common import endpoints
from common.jpeg import JpegError, jpeg_size
from common.wire.checks import (
    MAX_HEADER,
    MAX_JPEG,
    MAX_JPEG_PIXELS,
    MAX_NAME,
    Buffer,
    MalformedMessage,
    optional_count,
    stamp,
    unpack_map,
    view,
)


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
        header = json.loads(bytes(data).decode()) if is_json else unpack_map(data)
    # json raises RecursionError on deep nesting; msgpack raises subclasses of ValueError and,
    # for a map with an unhashable key, TypeError.
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise MalformedMessage(stream, "header", "neither msgpack nor JSON") from None
    if not isinstance(header, dict):
        raise MalformedMessage(stream, "header", "not a map")
    return header


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


def decode_camera(frames: Sequence[Buffer]) -> CameraFrame:
    """Decode a message of the camera stream; raises MalformedMessage and nothing else.

    The JPEG is not decompressed here, but its markers are walked, so that what passes is a whole
    JPEG of at most 16 megapixels.
    """
    stream = endpoints.CAMERA.stream
    if len(frames) != 2:
        raise MalformedMessage(stream, "parts", str(len(frames)))
    header = _header_map(stream, view(stream, frames[0]))
    camera, size = _camera_name(stream, header.get("camera")), header.get("size")
    timestamp = stamp(stream, header.get("timestamp"))
    sent = header.get("send_timestamp")
    send_timestamp = None if sent is None else stamp(stream, sent)
    jpeg = view(stream, frames[1])
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
        optional_count(stream, header, key)
    return CameraFrame(
        camera,
        timestamp,
        frames[1],
        optional_count(stream, header, "seq"),
        send_timestamp,
        width,
        height,
    )
