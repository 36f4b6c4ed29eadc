"""From a camera to its newest JPEG: one thread a camera, which nothing after it can hold up."""

from __future__ import annotations

import logging
import threading
import time

import cv2
import numpy as np
from numpy.typing import NDArray

from common.clock import RateMeter
from common.jpeg import JpegError, jpeg_size
from common.wire import CameraFrame
from senders.drivers import CameraDriver, DriverError, Frame
from senders.program import Backoff

__all__ = ["CameraCapture", "FrameGate", "encode_jpeg"]

logger = logging.getLogger("senders.camera")

# Pictures are handled by threads of our own; OpenCV's pool would only spin beside them.
cv2.setNumThreads(1)

_READ_TIMEOUT_S = 0.5
_SILENT_S = 3.0


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Baseline JPEG, 4:2:0, of an image (height, width, 3) in BGR; DriverError when it is none."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DriverError(f"not a BGR picture: {image.dtype} {image.shape}")
    subsampled = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, 0]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, subsampled]
    done, data = cv2.imencode(".jpg", image, options)
    if not done:
        raise DriverError(f"a picture of {image.shape} cannot be encoded")
    return data.tobytes()


class FrameGate:
    """Lets through as many pictures a second as asked for, of a camera that may deliver more."""

    def __init__(self, fps: float) -> None:
        """Let `fps` a second through, on a grid, half a period of jitter allowed."""
        self._period_s = 1.0 / fps
        self._next = 0.0

    def passes(self, moment: float) -> bool:
        """Whether a picture at `moment` (monotonic seconds) is to be used."""
        if moment < self._next - self._period_s / 2:
            return False
        on_grid = self._next + self._period_s
        self._next = on_grid if on_grid > moment else moment + self._period_s
        return True


class CameraCapture:
    """Captures and encodes one camera's pictures; the newest waits to be taken.

    A picture that is overtaken before it was taken is dropped, and counted. A camera that fails
    is closed and opened again, ever less often.
    """

    def __init__(
        self, driver: CameraDriver, fps: float, quality: int, fresh: threading.Event
    ) -> None:
        """Set `fresh` with every new picture."""
        self._driver, self._quality, self._fresh = driver, quality, fresh
        self._gate = FrameGate(fps)
        self._backoff = Backoff()
        self._lock = threading.Lock()
        self._slot: CameraFrame | None = None
        self.name = driver.name
        self.captured = 0
        self.dropped = 0
        self.failures = 0
        self.rate = RateMeter()
        self.sent = 0

    def run(self, stop: threading.Event) -> None:
        """Capture until `stop`; the body of this camera's thread."""
        while not stop.is_set():
            try:
                self._driver.open()
                logger.info("camera %s is open", self.name)
                self._capture(stop)
            except DriverError as error:
                self._failed(str(error), stop)
            except Exception as error:  # one camera's trouble must not end the others
                logger.exception("camera %s: unexpected", self.name)
                self._failed(repr(error), stop)
            finally:
                self._close()

    def _capture(self, stop: threading.Event) -> None:
        heard_at = time.monotonic()
        while not stop.is_set():
            frame = self._driver.read(_READ_TIMEOUT_S)
            moment = time.monotonic()
            if frame is None:
                if moment - heard_at > _SILENT_S:
                    raise DriverError(f"no picture for {_SILENT_S:g} s")
                continue
            heard_at = moment
            self._backoff.worked()
            if self._gate.passes(moment):
                self._put(self._packet(frame))

    def _packet(self, frame: Frame) -> CameraFrame:
        jpeg, seq = frame.jpeg, self.captured
        self.captured += 1
        if jpeg is None:
            if frame.image is None:
                raise DriverError("neither a picture nor a JPEG came")
            jpeg = encode_jpeg(frame.image, self._quality)
        try:
            width, height = jpeg_size(jpeg)
        except JpegError as error:
            raise DriverError(f"a broken JPEG came: {error}") from None
        return CameraFrame(self.name, frame.captured_at, jpeg, seq=seq, width=width, height=height)

    def _put(self, packet: CameraFrame) -> None:
        with self._lock:
            self.dropped += self._slot is not None
            self._slot = packet
        self.rate.add()
        self._fresh.set()

    @property
    def waits(self) -> bool:
        """Whether a picture waits to be taken."""
        return self._slot is not None

    def take(self) -> CameraFrame | None:
        """The newest picture, once."""
        with self._lock:
            packet, self._slot = self._slot, None
        return packet

    def give_back(self, packet: CameraFrame) -> None:
        """Let a picture that could not be sent wait on, unless a newer one has come."""
        with self._lock:
            if self._slot is None:
                self._slot = packet
            else:
                self.dropped += 1

    def _failed(self, why: str, stop: threading.Event) -> None:
        self.failures += 1
        delay_s = self._backoff.failed()
        logger.warning("camera %s: %s; next try in %.2g s", self.name, why, delay_s)
        self._close()
        stop.wait(delay_s)

    def _close(self) -> None:
        try:
            self._driver.close()
        except Exception as error:
            logger.warning("camera %s: close: %s", self.name, error)
