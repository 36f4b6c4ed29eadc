"""From a camera to its newest JPEG: one thread a camera, which nothing after it can hold up."""

from __future__ import annotations

import logging
import math
import threading
import time

from common.clock import RateMeter, wall
from common.jpeg import JpegError, jpeg_size
from common.program import Backoff
from common.wire import CameraFrame
from senders.drivers import CameraDriver, DriverError, Frame, Recorded, RecordingOver
from senders.encoding import Encoders, check_picture, encode_jpeg
from senders.picture_queue import PictureQueue

__all__ = ["CameraCapture", "FrameGate", "StartLine"]

logger = logging.getLogger("senders.camera")

_READ_TIMEOUT_S = 0.5
_SILENT_S = 3.0
_LOOK_AGAIN_S = 0.2
_START_LIMIT_S = 10.0
_OLDEST_S = 1.0  # a stamp further back says that the clock is wrong, not that the picture is old
# A recording's pictures wait rather than be lost: a few uncompressed, two seconds' worth of JPEGs.
_RECORDED_PICTURES = 4
_RECORDED_JPEGS = 64


class FrameGate:
    """Lets through as many pictures a second as asked for, of a camera that may deliver more.

    Of a faster camera it takes the picture at each point of a grid that all cameras share, so that
    those of different views that belong together are of nearly the same time. A camera that is no
    faster keeps its own phase: all its pictures are used.
    """

    def __init__(self, fps: float, origin: float = 0.0) -> None:
        """Let `fps` a second through, at the grid that begins at `origin` (monotonic seconds)."""
        self._period_s, self._origin = 1.0 / fps, origin
        self._next = -math.inf

    def passes(self, moment: float) -> bool:
        """Whether a picture of `moment` (monotonic seconds) is to be used."""
        if moment < self._next - self._period_s / 2:
            return False
        self._next += self._period_s
        if self._next <= moment:  # the first one, or one after a gap: back onto the grid
            passed = math.floor((moment - self._origin) / self._period_s)
            self._next = self._origin + (passed + 1) * self._period_s
        return True


class StartLine:
    """Lets all cameras begin at one instant: when each has opened or failed to, or after a while.

    Cameras without a trigger input cannot be made to expose together. What is common is when
    pictures begin to count, and the grid that `FrameGate` picks them on.
    """

    def __init__(self, cameras: int, limit_s: float = _START_LIMIT_S) -> None:
        """Wait for so many cameras, `limit_s` seconds at most."""
        self._missing = cameras
        self._until = time.monotonic() + limit_s
        self._lock = threading.Lock()
        self._started = threading.Event()
        self.origin = 0.0

    def arrive(self) -> None:
        """One more camera is ready, or will not be soon."""
        with self._lock:
            self._missing -= 1
            if self._missing <= 0:
                self._begin()

    @property
    def started(self) -> bool:
        """Whether the common instant, `origin` (monotonic seconds), has come."""
        if not self._started.is_set() and time.monotonic() >= self._until:
            with self._lock:
                self._begin()
        return self._started.is_set()

    def wait(self, stop: threading.Event) -> None:
        """Return at the common instant, or at `stop`."""
        while not self.started and not stop.is_set():
            self._started.wait(_LOOK_AGAIN_S)

    def _begin(self) -> None:
        if not self._started.is_set():
            self.origin = time.monotonic()
            self._started.set()


class CameraCapture:
    """Captures one camera's pictures, has them encoded, and keeps the newest to be taken.

    A picture that is overtaken before it was encoded or taken is dropped, and counted; of a
    recording none is. A camera that fails is closed and opened again, ever less often.
    """

    def __init__(
        self,
        driver: CameraDriver,
        fps: float,
        quality: int,
        fresh: threading.Event,
        encoders: Encoders,
        start: StartLine,
    ) -> None:
        """Set `fresh` with every new JPEG; begin when `start` lets all begin."""
        self._driver, self._fps, self._quality = driver, fps, quality
        self._fresh, self._encoders, self._start = fresh, encoders, start
        self.name = driver.name
        self.recorded = isinstance(driver, Recorded)
        self._arrived = False
        self._stop = threading.Event()
        self._gate: FrameGate | None = None
        self._backoff = Backoff()
        sizes = (_RECORDED_PICTURES, _RECORDED_JPEGS) if self.recorded else (1, 1)
        self._pictures = PictureQueue[tuple[int, Frame]](sizes[0], lossless=self.recorded)
        self._jpegs = PictureQueue[CameraFrame](sizes[1], lossless=self.recorded)
        self._unencodable: DriverError | None = None
        self.over = False
        self.captured = 0
        self.spoilt = 0
        self.failures = 0
        self.rate = RateMeter()
        self.sent = 0

    @property
    def dropped(self) -> int:
        """Pictures that were overtaken by newer ones, encoded or not."""
        return self._pictures.dropped + self._jpegs.dropped

    @property
    def finished(self) -> bool:
        """Whether a recording is over and its last picture is with the socket."""
        return self.over and self.captured == self.sent + self.dropped + self.spoilt

    # --- this camera's thread

    def run(self, stop: threading.Event) -> None:
        """Capture until `stop`; the body of this camera's thread."""
        self._stop = stop
        while not stop.is_set():
            try:
                self._driver.open()
                logger.info("camera %s is open", self.name)
                self._capture(stop)
            except RecordingOver as over:
                logger.info("camera %s: %s", self.name, over)
                self.over = True
                return
            except DriverError as error:
                self._failed(str(error), stop)
            except Exception as error:  # one camera's trouble must not end the others
                logger.exception("camera %s: unexpected", self.name)
                self._failed(repr(error), stop)
            finally:
                self._close()

    def _capture(self, stop: threading.Event) -> None:
        if not self._arrived:
            self._arrived = True
            self._start.arrive()
        if self.recorded:
            self._start.wait(stop)
        heard_at = time.monotonic()
        while not stop.is_set():
            frame = self._driver.read(_READ_TIMEOUT_S)
            moment = time.monotonic()
            if frame is None:
                # A recording may have a gap, and it ends.
                if moment - heard_at > _SILENT_S and not self.recorded:
                    raise DriverError(f"no picture for {_SILENT_S:g} s")
                continue
            heard_at = moment
            if self._is_wanted(frame, moment):
                self._put(frame)
            self._backoff.worked()

    def _is_wanted(self, frame: Frame, moment: float) -> bool:
        if self.recorded:
            return True
        if self._gate is None:
            # Read and left out until all begin, so that nothing old piles up in a device's buffer.
            if not self._start.started:
                return False
            self._gate = FrameGate(self._fps, self._start.origin)
        taken = moment - min(max(wall() - frame.captured_at, 0.0), _OLDEST_S)
        return taken >= self._start.origin and self._gate.passes(taken)

    def _put(self, frame: Frame) -> None:
        if self._unencodable is not None:
            error, self._unencodable = self._unencodable, None
            raise error
        if frame.image is None and frame.jpeg is None:
            raise DriverError("neither a picture nor a JPEG came")
        if frame.image is not None and frame.jpeg is None:
            check_picture(frame.image)
        seq, self.captured = self.captured, self.captured + 1
        if frame.jpeg is None:
            self._pictures.put((seq, frame), self._stop)
            self._encoders.offer(self)
            return
        try:
            self._done(_packet(self.name, seq, frame, frame.jpeg))
        except DriverError:
            self.spoilt += 1
            raise

    def _done(self, packet: CameraFrame) -> None:
        self._jpegs.put(packet, self._stop)
        self.rate.add()
        self._fresh.set()

    def _failed(self, why: str, stop: threading.Event) -> None:
        self.failures += 1
        delay_s = self._backoff.failed()
        logger.warning("camera %s: %s; next try in %.2g s", self.name, why, delay_s)
        self._close()
        if not self._arrived:
            self._arrived = True  # the others need not wait for it
            self._start.arrive()
        stop.wait(delay_s)

    def _close(self) -> None:
        try:
            self._driver.close()
        except Exception as error:
            logger.warning("camera %s: close: %s", self.name, error)

    # --- the encoders' threads

    @property
    def encodable(self) -> bool:
        """Whether a picture waits to be encoded, and there is room for its JPEG."""
        return self._pictures.waits and self._jpegs.has_room

    def encode_one(self) -> None:
        """Encode the picture that waits; what goes wrong is this camera's next failure."""
        if (item := self._pictures.take()) is None:
            return
        seq, frame = item
        assert frame.image is not None
        try:
            self._done(_packet(self.name, seq, frame, encode_jpeg(frame.image, self._quality)))
        except Exception as error:
            self.spoilt += 1
            self._unencodable = DriverError(str(error) or repr(error))

    # --- the push thread

    @property
    def waits(self) -> bool:
        """Whether a JPEG waits to be taken."""
        return self._jpegs.waits

    def take(self) -> CameraFrame | None:
        """The newest JPEG (of a recording, the next one), once."""
        packet = self._jpegs.take()
        if self.recorded:
            self._encoders.offer(self)  # there is room again
        return packet

    def give_back(self, packet: CameraFrame) -> None:
        """Let a JPEG that could not be sent wait on, unless a newer one has come."""
        self._jpegs.give_back(packet)


def _packet(name: str, seq: int, frame: Frame, jpeg: bytes) -> CameraFrame:
    try:
        width, height = jpeg_size(jpeg)
    except JpegError as error:
        raise DriverError(f"a broken JPEG came: {error}") from None
    return CameraFrame(name, frame.captured_at, jpeg, seq=seq, width=width, height=height)
