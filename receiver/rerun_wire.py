"""What the receiver tells its viewer process: messages of one kind each, checked on both ends.

They never leave this machine and both ends are of one version, so the format is nobody else's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from common.wire import MAX_ACTION_VALUES, MAX_DATAGRAM, MAX_JPEG, MAX_TIMESTAMP

__all__ = ["ActionSeen", "FrameSeen", "LineSaid", "Message", "SamplesSeen", "StateSeen", "decode"]
__all__ += ["FRAME", "STATE", "action_parts", "frame_parts", "line_parts", "samples_parts"]
__all__ += ["state_parts"]

FRAME, STATE, SAMPLES, ACTION, LINE = b"f", b"s", b"d", b"a", b"l"
_STATE = struct.Struct("<2d13d")
_TIMES = struct.Struct("<2d")
_ARRIVED = struct.Struct("<d")
_MOST_HEADER = 64 << 10
_MOST_NUMBERS = 64


@dataclass(frozen=True, slots=True)
class FrameSeen:
    """A picture of a view, a JPEG."""

    view: str
    captured_at: float
    arrived_at: float
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class StateSeen:
    """A robot state: degrees; mm and degrees; newtons."""

    sampled_at: float
    arrived_at: float
    force: float
    joints: tuple[float, ...]
    pose: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SamplesSeen:
    """A datagram of the force sensor, as it came."""

    arrived_at: float
    datagram: bytes


@dataclass(frozen=True, slots=True)
class ActionSeen:
    """An action: when it was out, its rows, and figures by name in milliseconds or as named."""

    at: float
    task: str
    rows: NDArray[np.float32]
    numbers: dict[str, float]
    ages_ms: dict[str, float]
    cut: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LineSaid:
    """A line that the receiver printed, with logging's level."""

    at: float
    level: int
    text: str


Message: TypeAlias = FrameSeen | StateSeen | SamplesSeen | ActionSeen | LineSaid


def frame_parts(view: str, captured_at: float, arrived_at: float, jpeg: Any) -> list[Any]:
    """A picture."""
    return [FRAME, _TIMES.pack(captured_at, arrived_at), view.encode(), jpeg]


def state_parts(
    sampled_at: float, arrived_at: float, force: float, joints: Sequence[float], pose: Any
) -> list[Any]:
    """A robot state."""
    return [STATE, _STATE.pack(sampled_at, arrived_at, force, *joints, *pose)]


def samples_parts(arrived_at: float, datagram: Any) -> list[Any]:
    """A datagram."""
    return [SAMPLES, _ARRIVED.pack(arrived_at), datagram]


def action_parts(
    at: float,
    task: str,
    rows: NDArray[np.float32],
    numbers: Mapping[str, float],
    ages_ms: Mapping[str, float],
    cut: Sequence[str],
) -> list[Any]:
    """An action."""
    header = (at, task, rows.shape, dict(numbers), dict(ages_ms), list(cut))
    return [ACTION, msgpack.packb(header), rows.tobytes()]


def line_parts(at: float, level: int, text: str) -> list[Any]:
    """A line."""
    return [LINE, msgpack.packb((at, level, text))]


def decode(parts: Sequence[bytes]) -> Message:
    """One message; ValueError and nothing else when it is none."""
    try:
        return _decode(parts[0], [bytes(part) for part in parts[1:]])
    # A header of another shape shows as any of these.
    except (IndexError, KeyError, TypeError, struct.error, msgpack.UnpackException) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _decode(kind: bytes, parts: list[bytes]) -> Message:
    if kind == FRAME:
        times, view, jpeg = parts
        captured_at, arrived_at = _TIMES.unpack(times)
        if not 0 < len(jpeg) <= MAX_JPEG:
            raise ValueError("no picture")
        return FrameSeen(_name(view.decode()), _time(captured_at), _time(arrived_at), jpeg)
    if kind == STATE:
        (payload,) = parts
        sampled_at, arrived_at, *values = map(float, _STATE.unpack(payload))
        numbers = tuple(_finite(value) for value in values)
        return StateSeen(
            _time(sampled_at), _time(arrived_at), numbers[0], numbers[1:7], numbers[7:]
        )
    if kind == SAMPLES:
        arrived, datagram = parts
        if len(datagram) > MAX_DATAGRAM:
            raise ValueError("no datagram")
        return SamplesSeen(_time(_ARRIVED.unpack(arrived)[0]), datagram)
    if kind == ACTION:
        header, rows = parts
        return _decode_action(_unpacked(header), rows)
    if kind == LINE:
        (header,) = parts
        at, level, text = _unpacked(header)
        return LineSaid(_time(at), int(level), str(text))
    raise ValueError(f"unknown kind {kind[:8]!r}")


def _decode_action(header: Any, data: bytes) -> ActionSeen:
    at, task, (height, width), numbers, ages_ms, cut = header
    if not 0 < height * width <= MAX_ACTION_VALUES or len(data) != 4 * height * width:
        raise ValueError("rows of another size")
    rows = np.frombuffer(data, "<f4").reshape(height, width)
    if not np.isfinite(rows).all():
        raise ValueError("rows that are not finite")
    return ActionSeen(
        _time(at),
        str(task),
        rows,
        _numbers(numbers),
        _numbers(ages_ms),
        tuple(str(name) for name in cut[:_MOST_NUMBERS]),
    )


def _unpacked(header: bytes) -> Any:
    if len(header) > _MOST_HEADER:
        raise ValueError("header too long")
    return msgpack.unpackb(header, raw=False)


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, dict) or len(values) > _MOST_NUMBERS:
        raise ValueError("no figures by name")
    return {_name(key): _finite(value) for key, value in values.items()}


def _name(text: Any) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= 64 or not text.isprintable():
        raise ValueError("no name")
    return text


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _time(value: Any) -> float:
    moment = _finite(value)
    if not 0.0 <= moment < MAX_TIMESTAMP:
        raise ValueError("not UNIX seconds")
    return moment
