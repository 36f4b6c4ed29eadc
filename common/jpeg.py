"""Walks the markers of a JPEG without decompressing it (ITU-T T.81, annex B)."""

from __future__ import annotations

import numpy as np

__all__ = ["JpegError", "check_scans", "jpeg_size"]

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_FRAME_HEADERS = {0xC0, 0xC1, 0xC2}  # baseline, extended sequential, progressive Huffman
_SCAN = 0xDA
_MAX_SEGMENTS = 256
_MOST_SCANS = 24
_HEAD = 1024
_LOOKED_AT = 9  # bytes of a segment: marker, length, precision, height, width
_TAIL = 1024  # hardware encoders pad the end with zeros


class JpegError(ValueError):
    """Bytes that are not a whole JPEG."""


def jpeg_size(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Width and height in pixels of a JPEG that is whole from its start to its end marker.

    Raises JpegError for anything else. Reads a few hundred bytes, however large the picture.
    """
    if len(data) < 4 or bytes(data[:2]) != _START:
        raise JpegError("no start marker")
    if not bytes(data[-_TAIL:]).rstrip(b"\0").endswith(_END):
        raise JpegError("no end marker: truncated")
    position, size, end = 2, None, len(data)
    # Single bytes are had sooner from bytes than from a view; an ordinary header ends in here.
    head: bytes | bytearray | memoryview = bytes(data[:_HEAD])
    for _ in range(_MAX_SEGMENTS):
        if position + _LOOKED_AT > len(head):
            head = data
        if position + 4 > end or head[position] != 0xFF:
            raise JpegError("broken segments")
        marker = head[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = head[position + 2] << 8 | head[position + 3]
        if length < 2 or position + 2 + length > end:
            raise JpegError("broken segments")
        if marker in _FRAME_HEADERS:
            if length < 8:
                raise JpegError("broken frame header")
            at = position + 5
            height, width = head[at] << 8 | head[at + 1], head[at + 2] << 8 | head[at + 3]
            if not (width and height):
                raise JpegError("no size")
            size = (width, height)
        elif marker == _SCAN:
            if size is None:
                raise JpegError("no frame header")
            return size
        position += 2 + length
    raise JpegError("too many segments")


def check_scans(data: bytes | bytearray | memoryview) -> None:
    """JpegError where decoding would take far longer than the size of the picture tells.

    A decoder goes through the whole picture once for each scan, of which a few bytes make one: a
    progressive picture has about ten. In compressed data the two bytes of a marker do not occur.
    """
    values = np.frombuffer(data, np.uint8)
    if np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == _SCAN)) > _MOST_SCANS:
        raise JpegError("too many scans")
