"""Cameras of a body: a thread each that keeps the newest picture, so that nobody waits for one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.clock import wall
from common.jpeg import JpegError, jpeg_size
from common.program import Backoff
from senders.drivers import CameraDriver, DriverError, RecordingOver
from serving.body import BodyError, Seen
from serving.messages import MAX_PICTURE_SIDE

__all__ = ["Cameras", "DriverSource", "Grabbed", "LeRobotSource", "PictureSource"]

logger = logging.getLogger("serving.camera")

Size = tuple[int, int, int]

_READ_S = 0.5
_SILENT_S = 3.0
_OLDEST_S = 1.0  # a stamp further back says that the clock is wrong, not that the picture is old
_LEAVE_S = 4.0
_LEROBOT_S = 2.0


@dataclass(frozen=True, slots=True)
class Grabbed:
    """One picture as it came.

    Attributes:
        at: `time.monotonic()` seconds at which it was taken.
        image: (height, width, 3) uint8, or None where there is a JPEG.
        jpeg: as the device encoded it, or None.
        is_bgr: whether the image's colours are blue, green, red rather than the other way round.
    """

    at: float
    image: NDArray[np.uint8] | None = None
    jpeg: bytes | None = None
    is_bgr: bool = False

    def shape(self) -> Size:
        """(height, width, 3); DriverError for what is no picture."""
        if self.jpeg is not None:
            try:
                width, height = jpeg_size(self.jpeg)
            except JpegError as error:
                raise DriverError(f"a broken JPEG came: {error}") from None
            return height, width, 3
        if self.image is None:
            raise DriverError("neither a picture nor a JPEG came")
        shape = self.image.shape
        if self.image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise DriverError(f"a picture of {shape} {self.image.dtype} came: not 8-bit colour")
        if not all(1 <= side <= MAX_PICTURE_SIDE for side in shape):
            raise DriverError(f"a picture of {shape} came")
        return shape[0], shape[1], 3

    def rgb(self) -> NDArray[np.uint8]:
        """(height, width, 3) uint8, read-only; DriverError for a JPEG that cannot be decoded."""
        import cv2

        if self.jpeg is not None:
            image = cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR)
            if image is None:
                raise DriverError("a broken JPEG came")
            pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        else:
            assert self.image is not None
            pixels = cv2.cvtColor(self.image, cv2.COLOR_BGR2RGB) if self.is_bgr else self.image
        shown: NDArray[np.uint8] = np.asarray(pixels).view()
        shown.flags.writeable = False
        return shown


class _Picture(Seen):
    """A picture whose pixels are made when they are first asked for, by one thread.

    Whoever only looks at its age pays nothing. BodyError for a JPEG that cannot be decoded.
    """

    __slots__ = ("_grabbed", "_pixels")
    _grabbed: Grabbed
    _pixels: NDArray[np.uint8] | None

    def __init__(self, grabbed: Grabbed) -> None:
        object.__setattr__(self, "at", grabbed.at)
        object.__setattr__(self, "_grabbed", grabbed)
        object.__setattr__(self, "_pixels", None)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(height, width, 3) uint8, RGB, read-only."""
        if self._pixels is None:
            try:
                object.__setattr__(self, "_pixels", self._grabbed.rgb())
            except DriverError as error:
                raise BodyError(str(error)) from None
        assert self._pixels is not None
        return self._pixels


class PictureSource(Protocol):
    """A camera, used by one thread from `open` to `close`; any method may raise any exception."""

    def open(self) -> None:
        """Start capturing."""
        ...

    def read(self, timeout_s: float) -> Grabbed | None:
        """The next picture; None when none came in time."""
        ...

    def close(self) -> None:
        """Stop capturing; called after a failure too."""
        ...


class DriverSource:
    """One of the project's camera drivers as a source."""

    def __init__(self, driver: CameraDriver) -> None:
        """Use `driver`."""
        self._driver = driver
        self.open, self.close = driver.open, driver.close

    def read(self, timeout_s: float) -> Grabbed | None:
        """The driver's next picture, its stamp on the monotonic clock."""
        frame = self._driver.read(timeout_s)
        if frame is None:
            return None
        age_s = min(max(wall() - frame.captured_at, 0.0), _OLDEST_S)
        at = time.monotonic() - age_s
        if frame.jpeg is not None:
            return Grabbed(at, jpeg=frame.jpeg)
        return Grabbed(at, image=frame.image, is_bgr=True)


class LeRobotSource:
    """One of LeRobot's cameras (`lerobot.cameras.Camera`) as a source, its colours as it says."""

    def __init__(self, camera: Any) -> None:
        """Use `camera`, which is not connected yet."""
        self._camera = camera

    def open(self) -> None:
        """Connect, and let the camera settle for as long as its configuration says."""
        # LeRobot's own warm-up of a camera that gives nothing may close a socket under its thread,
        # which ends the whole program.
        self._camera.connect(warmup=False)
        config = getattr(self._camera, "config", None)
        warm_at = time.monotonic() + float(getattr(config, "warmup_s", None) or 0.0)
        while time.monotonic() < warm_at:
            self.read(_READ_S)

    def read(self, timeout_s: float) -> Grabbed | None:
        """The next picture that LeRobot's own thread took."""
        try:
            image = self._camera.async_read(timeout_ms=1e3 * timeout_s)
        except TimeoutError:
            return None
        return Grabbed(time.monotonic(), image=image)

    def close(self) -> None:
        """Disconnect, once LeRobot's thread has ended: it must not lose its device in a read."""
        if not self._camera.is_connected:
            return
        thread, stop = (getattr(self._camera, name, None) for name in ("thread", "stop_event"))
        if isinstance(thread, threading.Thread) and isinstance(stop, threading.Event):
            stop.set()
            longest_ms = getattr(self._camera, "timeout_ms", None) or 0.0
            thread.join(_LEROBOT_S + float(longest_ms) / 1e3)
        self._camera.disconnect()


class _Watched:
    """One camera and its thread: opened again, ever less often, when it fails."""

    def __init__(self, name: str, source: PictureSource, news: threading.Condition) -> None:
        self.name, self._source, self._news = name, source, news
        self._stop = threading.Event()
        self._backoff = Backoff()
        self.newest: Seen | None = None
        self.shape: Size | None = None
        self.why = "no picture yet"
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, until: float) -> None:
        self._thread.join(max(until - time.monotonic(), 0.0))
        if self._thread.is_alive():
            logger.warning("camera %s hangs: it ends with this program", self.name)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._source.open()
                self._capture()
            except RecordingOver as over:
                logger.info("camera %s: %s", self.name, over)
                self._stop.set()
            except Exception as error:  # whatever a vendor's package raises
                self.why = " ".join(str(error).split())[:300] or type(error).__name__
                delay_s = self._backoff.failed()
                logger.warning("camera %s: %s; next try in %.2g s", self.name, self.why, delay_s)
                with self._news:
                    self._news.notify_all()
            finally:
                try:
                    self._source.close()
                except Exception as error:
                    logger.warning("camera %s: close: %s", self.name, error)
            self._stop.wait(max(self._backoff.retry_at - time.monotonic(), 0.0))

    def _capture(self) -> None:
        heard_at = time.monotonic()
        while not self._stop.is_set():
            grabbed = self._source.read(_READ_S)
            moment = time.monotonic()
            if grabbed is None:
                if moment - heard_at > _SILENT_S:
                    raise DriverError(f"no picture for {_SILENT_S:g} s")
                continue
            heard_at = moment
            self._put(grabbed)
            self._backoff.worked()

    def _put(self, grabbed: Grabbed) -> None:
        shape = grabbed.shape()
        if self.shape not in (None, shape):
            raise DriverError(f"pictures of {shape[1]}x{shape[0]} came: others before")
        self.newest = _Picture(grabbed)
        if self.shape is None:
            with self._news:
                self.shape = shape
                self._news.notify_all()


class Cameras:
    """All cameras of a body, by name."""

    def __init__(self, sources: Mapping[str, PictureSource], expected: Mapping[str, Size]) -> None:
        """Watch `sources` from `open` to `close`; `expected` is the size of each one's pictures."""
        self._sources, self._expected = dict(sources), dict(expected)
        self._watched: list[_Watched] = []

    @property
    def shapes(self) -> dict[str, Size]:
        """Camera → (height, width, 3)."""
        return dict(self._expected)

    def open(self, timeout_s: float) -> None:
        """Start all, and wait for a picture of each.

        BodyError that says which gave none, or one of another size than expected.
        """
        news = threading.Condition()
        self._watched = [_Watched(name, source, news) for name, source in self._sources.items()]
        with news:
            came = news.wait_for(lambda: all(one.shape for one in self._watched), timeout_s)
        if not came:
            silent = "; ".join(f"{c.name} ({c.why})" for c in self._watched if c.shape is None)
            self.close()
            raise BodyError(f"no picture within {timeout_s:g} s from camera {silent}")
        others = [c for c in self._watched if c.shape != self._expected[c.name]]
        for height, width, name in [(*c.shape[:2], c.name) for c in others if c.shape]:
            self.close()
            raise BodyError(
                f"camera {name} gives pictures of {width}x{height}: say so in --robot.cameras, "
                f"width: {width}, height: {height}"
            )

    def seen(self) -> dict[str, Seen]:
        """The newest picture of each camera that has given one."""
        return {one.name: seen for one in self._watched if (seen := one.newest) is not None}

    def close(self) -> None:
        """Stop all; one that hangs is left to the end of the program. Safe to call twice."""
        watched, self._watched = self._watched, []
        for one in watched:
            one.stop()
        until = time.monotonic() + _LEAVE_S
        for one in watched:
            one.join(until)
