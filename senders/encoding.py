"""From pictures to JPEGs: a few threads for all cameras, so that capturing never waits for them."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from senders.drivers import DriverError

__all__ = ["Encoders", "EncodesPictures", "check_picture", "encode_jpeg"]

# Pictures are handled by threads of our own; OpenCV's pool would only spin beside them.
cv2.setNumThreads(1)

_LOOK_AGAIN_S = 0.2


def check_picture(image: NDArray[np.uint8]) -> None:
    """Raise DriverError unless `image` is (height, width, 3) uint8."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DriverError(f"not a BGR picture: {image.dtype} {image.shape}")


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Baseline JPEG, 4:2:0, of an image (height, width, 3) in BGR; DriverError when it is none.

    Python's lock is free meanwhile. OpenCV's wheels hold libjpeg-turbo: `scripts/bench_jpeg.py`
    compares it with other packages around the same library, which are no faster.
    """
    check_picture(image)
    subsampled = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, 0]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, subsampled]
    try:
        done, data = cv2.imencode(".jpg", image, options)
    except cv2.error as error:
        raise DriverError(f"a picture of {image.shape} cannot be encoded: {error.err}") from None
    if not done:
        raise DriverError(f"a picture of {image.shape} cannot be encoded")
    return bytes(data)


class EncodesPictures(Protocol):
    """One camera's pictures on their way through the encoders."""

    @property
    def encodable(self) -> bool:
        """Whether a picture waits to be encoded, and there is room for the JPEG."""
        ...

    def encode_one(self) -> None:
        """Encode the picture that waits; never called by two threads at once."""
        ...


class Encoders:
    """Threads that encode whatever camera's picture waits, the cameras taking turns.

    One camera's pictures are encoded one after the other, so that they stay in order.
    """

    def __init__(self, count: int = 2) -> None:
        """Encode with `count` threads, once they are started."""
        self._count = count
        self._changed = threading.Condition()
        self._turns: deque[EncodesPictures] = deque()
        self._held: set[int] = set()  # ids of those that wait their turn or are being encoded

    def offer(self, camera: EncodesPictures) -> None:
        """Give `camera` a turn when it has something to encode."""
        with self._changed:
            if id(camera) not in self._held and camera.encodable:
                self._held.add(id(camera))
                self._turns.append(camera)
                self._changed.notify()

    def threads(self, stop: threading.Event) -> list[threading.Thread]:
        """The threads, to be started; they end at `stop`."""
        return [
            threading.Thread(target=self._run, args=(stop,), name=f"encode-{k}", daemon=True)
            for k in range(self._count)
        ]

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            with self._changed:
                if not self._turns and not self._changed.wait(_LOOK_AGAIN_S):
                    continue
                if not self._turns:
                    continue
                camera = self._turns.popleft()
            try:
                camera.encode_one()
            finally:
                with self._changed:
                    self._held.discard(id(camera))
                self.offer(camera)  # what came meanwhile found it held
