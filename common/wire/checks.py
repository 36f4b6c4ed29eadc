"""What every decoder checks alike: bounds, stamps, and maps that are not what they claim."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgpack

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


class MalformedMessage(ValueError):
    """A message that was dropped: the stream it came on and, as a short slug, why."""

    def __init__(self, stream: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{stream}: {reason}{f' ({detail})' if detail else ''}")
        self.stream = stream
        self.reason = reason
        self.detail = detail


def stamp(stream: str, value: object) -> float:
    """A timestamp that can be computed with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MalformedMessage(stream, "timestamp", "not a number")
    if not 0.0 <= value < MAX_TIMESTAMP:  # false for NaN too
        raise MalformedMessage(stream, "timestamp", "not UNIX seconds")
    return float(value)


def view(stream: str, data: object) -> memoryview:
    """The bytes of a frame without a copy."""
    try:
        return memoryview(data).cast("B")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise MalformedMessage(stream, "type", "not bytes") from None


def unpack_map(data: memoryview) -> object:
    """What a msgpack message holds; raises what msgpack raises, and reserves little ahead."""
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


def optional_count(stream: str, header: dict[Any, Any], key: str) -> int | None:
    """A count under `key`, None where there is none; MalformedMessage for anything else."""
    value = header.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise MalformedMessage(stream, "header_field", key)
    return value
