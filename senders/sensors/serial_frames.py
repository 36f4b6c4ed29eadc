"""Samples in binary frames, as a serial port delivers them: any bytes, cut anywhere; pure."""

from __future__ import annotations

import binascii
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import xor
from typing import Literal

__all__ = ["CHECKSUMS", "MAX_FRAME", "TYPES", "FrameFormat", "FrameParser", "crc16_modbus"]

MAX_FRAME = 256

TYPES = {
    "int8": "b",
    "uint8": "B",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "float32": "f",
    "float64": "d",
}


def _modbus_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)  # noqa: PLW2901
        table.append(value)
    return tuple(table)


_MODBUS = _modbus_table()


def crc16_modbus(data: bytes) -> int:
    """CRC-16 with polynomial 0x8005 reflected, from 0xFFFF (Modbus over serial line, 6.2.2)."""
    crc = 0xFFFF
    for byte in data:
        crc = crc >> 8 ^ _MODBUS[(crc ^ byte) & 0xFF]
    return crc


CHECKSUMS: dict[str, tuple[int, Callable[[bytes], int]]] = {
    "none": (0, lambda data: 0),
    "sum8": (1, lambda data: sum(data) & 0xFF),
    "xor8": (1, lambda data: reduce(xor, data, 0)),
    "crc16-modbus": (2, crc16_modbus),
    # Polynomial 0x1021 from 0xFFFF, not reflected.
    "crc16-ccitt": (2, lambda data: binascii.crc_hqx(data, 0xFFFF)),
}
"""Bytes at the end of the frame, and what they must be for the bytes before them."""


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """What a frame is made of; places are bytes from its beginning.

    Attributes:
        sync: the bytes that it begins with.
        length: bytes of the whole frame, sync and checksum included.
        force_type, force_at: the force, one of TYPES.
        ticks_type, ticks_at: what counts samples or time; an empty type for none.
        endian: `little` or `big`, for the values.
        checksum: one of CHECKSUMS; it ends the frame.
        checksum_from: the first byte that it covers.
        checksum_endian: `little` or `big`.
    """

    sync: bytes
    length: int
    force_type: str = "int16"
    force_at: int = 2
    ticks_type: str = ""
    ticks_at: int = 0
    endian: str = "little"
    checksum: str = "none"
    checksum_from: int = 0
    checksum_endian: str = "little"

    def __post_init__(self) -> None:
        """ValueError for a format that no frame can have."""
        for name, value in (("endian", self.endian), ("checksum_endian", self.checksum_endian)):
            if value not in ("little", "big"):
                raise ValueError(f"{name} must be little or big, not {value!r}")
        if self.checksum not in CHECKSUMS:
            raise ValueError(f"checksum must be one of {', '.join(CHECKSUMS)}")
        if not self.sync:
            raise ValueError("binary frames need sync, the bytes that they begin with, e.g. aa55")
        end = self.length - CHECKSUMS[self.checksum][0]
        if not len(self.sync) < end or self.length > MAX_FRAME:
            raise ValueError(
                f"length must be that of the whole frame, over {len(self.sync)} bytes and "
                f"{MAX_FRAME} at most, not {self.length}"
            )
        if not 0 <= self.checksum_from < end:
            raise ValueError(f"checksum_from must be from 0 to {end - 1}")
        places = [("force", self.force_type, self.force_at)]
        if self.ticks_type:
            places.append(("ticks", self.ticks_type, self.ticks_at))
        for name, kind, at in places:
            if kind not in TYPES:
                raise ValueError(f"{name}_type must be one of {', '.join(TYPES)}, not {kind!r}")
            if not len(self.sync) <= at <= end - struct.calcsize(TYPES[kind]):
                raise ValueError(f"{name}_at: {kind} at byte {at} is not within the frame")


class FrameParser:
    """Takes bytes in any pieces, gives (value, ticks) of each frame; ticks NaN without a field.

    Sync bytes may occur within a frame, so that after anything wrong a frame counts only when
    another one begins right after it. From then on each must begin where the last one ended.
    """

    def __init__(self, form: FrameFormat) -> None:
        """Look for frames of this format."""
        order = "<" if form.endian == "little" else ">"
        self._form = form
        self._force = struct.Struct(order + TYPES[form.force_type])
        self._ticks = struct.Struct(order + TYPES[form.ticks_type]) if form.ticks_type else None
        self._check_size, self._check = CHECKSUMS[form.checksum]
        self._check_order: Literal["little", "big"] = (
            "little" if form.checksum_endian == "little" else "big"
        )
        self.bad = 0
        self._tail = b""
        self._locked = False

    @property
    def held(self) -> int:
        """Bytes of an unfinished frame that are kept."""
        return len(self._tail)

    def begin_again(self) -> None:
        """Forget what came before."""
        self._tail, self._locked = b"", False

    def feed(self, data: bytes) -> list[tuple[float, float]]:
        """(value, ticks) of each good frame that these bytes end, oldest first; never raises."""
        sync, length = self._form.sync, self._form.length
        data, at, found = self._tail + data, 0, []
        while True:
            if not self._locked:
                at = self._next_sync(data, at)
            if len(data) - at < length + (0 if self._locked else len(sync)):
                break
            follows = self._locked or data.startswith(sync, at + length)
            if follows and data.startswith(sync, at) and self._sums_up(data, at):
                found.append(self._sample(data, at))
                at, self._locked = at + length, True
            elif self._locked:
                # Looked at again, from its first byte on: the next frame may have begun in it.
                self.bad += 1
                self._locked = False
            else:
                at += 1
        self._tail = data[at:]
        return found

    def _next_sync(self, data: bytes, at: int) -> int:
        """Where the next frame may begin; the bytes before are of no use."""
        sync = self._form.sync
        there = data.find(sync, at)
        if there >= 0:
            return there
        for kept in range(min(len(sync) - 1, len(data) - at), 0, -1):
            if data.endswith(sync[:kept]):
                return len(data) - kept
        return len(data)

    def _sums_up(self, data: bytes, at: int) -> bool:
        end = at + self._form.length - self._check_size
        given = data[end : end + self._check_size]
        summed = self._check(data[at + self._form.checksum_from : end])
        return summed == int.from_bytes(given, self._check_order)

    def _sample(self, data: bytes, at: int) -> tuple[float, float]:
        (value,) = self._force.unpack_from(data, at + self._form.force_at)
        if self._ticks is None:
            return float(value), math.nan
        (ticks,) = self._ticks.unpack_from(data, at + self._form.ticks_at)
        return float(value), float(ticks)
