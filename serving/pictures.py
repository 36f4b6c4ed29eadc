"""Pictures of observations as arrays."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from common.jpeg import JpegError, jpeg_size
from serving.messages import MAX_PICTURE_SIDE, BadMessage, Picture

__all__ = ["pixels_of"]


def pixels_of(camera: str, picture: Picture) -> NDArray[np.uint8]:
    """RGB (height, width, 3) uint8; a JPEG is decompressed, after its size was looked at.

    Raises:
        BadMessage: for what is no picture.
    """
    if picture.pixels is not None:
        return picture.pixels
    data = picture.jpeg or b""
    try:
        sides = jpeg_size(data)
        if max(sides) > MAX_PICTURE_SIDE:
            raise BadMessage(f"camera {camera!r}: a JPEG of {sides} cannot be")
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (JpegError, cv2.error):
        decoded = None
    if decoded is None:
        raise BadMessage(f"camera {camera!r}: the JPEG cannot be decompressed")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)
