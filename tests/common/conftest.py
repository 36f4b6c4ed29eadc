"""Material for the wire's tests."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest


def _make_jpeg(width: int, height: int, scan: bytes = b"\x12\x34", tail: bytes = b"") -> bytes:
    """The markers of a baseline 4:2:0 JPEG of that size; `scan` stands for the picture."""
    app0 = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0\1\1\0\0\1\0\1\0\0"
    components = b"\x01\x22\0\x02\x11\1\x03\x11\1"
    sof0 = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + components
    sos = b"\xff\xda" + struct.pack(">HB", 12, 3) + b"\x01\x00\x02\x11\x03\x11\x00\x3f\x00"
    return b"\xff\xd8" + app0 + sof0 + sos + scan + b"\xff\xd9" + tail


@pytest.fixture(scope="session")
def make_jpeg() -> Callable[..., bytes]:
    """`make_jpeg(width, height, scan=…, tail=…)`: bytes with a whole JPEG's structure."""
    return _make_jpeg
