"""Compressed pictures become arrays when the slow loop wants them, no larger than it needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from common import endpoints
from common.jpeg import JpegError, check_scans, jpeg_size
from common.wire import Buffer, MalformedMessage

__all__ = ["Decoder", "reduction", "to_jpeg"]

# Pictures are handled by threads of our own; OpenCV's pool would only spin beside them.
cv2.setNumThreads(1)

_MOST_THREADS = 4
_ENOUGH = 0.97
# OpenCV names no flag for a picture that is both reduced and RGB. Its flags for a reduced one are
# a bit for the size and, beside it, the bit for BGR: the bit for RGB takes that one's place.
_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}


def reduction(size: tuple[int, int], target: tuple[int, int]) -> int:
    """By how much a picture of `size` can be reduced for a target size: 1, 2, 4 or 8.

    Sizes are width and height in pixels. What is left is no smaller than 97 % of the target in
    either direction: half of 1280x720 is enough for the 644x364 that the reference policy takes.
    """
    for times in (8, 4, 2):
        # A JPEG decoder rounds the sides of the reduced picture up.
        left = [-(-side // times) for side in size]
        if all(a >= _ENOUGH * b for a, b in zip(left, target, strict=True)):
            return times
    return 1


class Decoder:
    """Decodes the pictures of an update, several at a time; OpenCV frees Python's lock for that.

    Reducing is part of decompressing a JPEG: of each block of 8x8 pixels only a corner of its
    frequencies is computed (scaled inverse DCT), which costs less than the whole picture does and
    leaves less to resize.
    """

    def __init__(self, image_size: tuple[int, int], threads: int | None = None) -> None:
        """Decode for pictures of `image_size` (width, height), the size the policy resizes to.

        `threads` decode at the same time; by default half as many as there are processors, up to
        4: the rest is for the loops.
        """
        self._target = image_size
        half = max(len(os.sched_getaffinity(0)) // 2, 1)
        count = min(half, _MOST_THREADS) if threads is None else threads
        self._pool = ThreadPoolExecutor(count, "decode") if count > 1 else None

    def decode(self, jpegs: Mapping[str, Buffer]) -> dict[str, NDArray[np.uint8]]:
        """The pictures by view, RGB (height, width, 3), in the order of `jpegs`.

        MalformedMessage that names the view when one is no picture.
        """
        if self._pool is None or len(jpegs) == 1:
            return {view: self._decode(view, jpeg) for view, jpeg in jpegs.items()}
        return dict(zip(jpegs, self._pool.map(self._decode, jpegs, jpegs.values()), strict=True))

    def close(self) -> None:
        """End the threads; what they are at is finished first."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _decode(self, view: str, jpeg: Buffer) -> NDArray[np.uint8]:
        try:
            flags = _FLAGS[reduction(jpeg_size(jpeg), self._target)]
            check_scans(jpeg)
            picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
        except (JpegError, cv2.error):
            picture = None
        if picture is None:
            raise MalformedMessage(endpoints.CAMERA.stream, "undecodable", view)
        return np.asarray(picture, np.uint8)


def to_jpeg(picture: NDArray[np.uint8]) -> bytes:
    """An RGB picture (height, width, 3) as a camera would send it."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be a JPEG")
    return bytes(data.tobytes())
