"""Cameras through OpenCV: V4L2 devices, network streams (RTSP, HTTP, …) and video files.

- A device is asked for size, rate and pixel format, and gives its nearest. Its driver's stamps are
  used where they make sense (monotonic time, as V4L2 delivers it).
- A stream comes as its server sends it. FFmpeg reads it; connecting and reading have time limits.
- A file plays at its own rate, as a recording: nothing of it is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from common.clock import Tick, wall
from senders.cameras.attached import Attached
from senders.drivers import DriverError, Frame, RecordingOver

__all__ = ["DeviceCamera", "FileCamera", "StreamCamera", "attached", "open_opencv_cameras"]

_OPEN_TIMEOUT_MS = 5_000
_READ_TIMEOUT_MS = 3_000
_OLDEST_S = 1.0
_FILE_FPS = 30.0  # for a file that does not say
_DEVICE = re.compile(r"(?:/dev/video)?(\d{1,3})")
_SYSFS = Path("/sys/class/video4linux")

# How long a silent device holds `read`: OpenCV waits twice as long as this, and reads it once.
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "1")


class _OpenCvCamera:
    """What the three kinds have in common."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._capture: cv2.VideoCapture | None = None

    @property
    def name(self) -> str:
        """The name on the wire."""
        return self._name

    def close(self) -> None:
        """Stop capturing; safe to call twice."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    def _keep(self, capture: cv2.VideoCapture, why_not: str) -> cv2.VideoCapture:
        if not capture.isOpened():
            capture.release()
            raise DriverError(why_not)
        self._capture = capture
        return capture

    def _opened(self) -> cv2.VideoCapture:
        if self._capture is None:
            raise DriverError(f"{self._name} is not open")
        return self._capture

    def _image(self, capture: cv2.VideoCapture) -> NDArray[np.uint8]:
        done, image = capture.retrieve()
        if not done or image is None:
            raise DriverError(f"{self._name}: a picture cannot be decoded")
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return image  # type: ignore[no-any-return,unused-ignore]


class DeviceCamera(_OpenCvCamera):
    """A V4L2 device, e.g. a webcam."""

    def __init__(
        self, path: str, width: int = 1280, height: int = 720, fps: float = 30.0, fourcc: str = ""
    ) -> None:
        """The device at `path`; `fourcc` is its pixel format, e.g. MJPG, empty to leave it be."""
        super().__init__(Path(path).name)
        self._path, self._fourcc = path, fourcc
        # The pixel format first: it decides on which sizes and rates there are.
        self._settings = [
            *([(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*fourcc))] if fourcc else []),
            (cv2.CAP_PROP_FRAME_WIDTH, width),
            (cv2.CAP_PROP_FRAME_HEIGHT, height),
            (cv2.CAP_PROP_FPS, fps),
            # The fewest: with one, the device has none to fill while a picture is decoded.
            (cv2.CAP_PROP_BUFFERSIZE, 2),
        ]

    def open(self) -> None:
        """Start capturing; raises DriverError."""
        self.close()
        if not Path(self._path).exists():
            raise DriverError(f"there is no {self._path}: is the camera plugged in?")
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise DriverError(f"{self._path} may not be used: add this user to the group `video`")
        capture = cv2.VideoCapture(self._path, cv2.CAP_V4L2)
        self._keep(capture, f"{self._path} cannot be opened: no camera, or another program has it")
        for setting, value in self._settings:
            capture.set(setting, value)

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture; raises DriverError when none comes within about 2 s."""
        capture = self._opened()
        if not capture.grab():
            raise DriverError(f"{self._path} delivers no picture")
        captured_at = wall()
        age_s = time.monotonic() - capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
        if 0.0 <= age_s <= _OLDEST_S:
            captured_at -= age_s
        return Frame(captured_at, image=self._image(capture))


class StreamCamera(_OpenCvCamera):
    """A network stream, e.g. `rtsp://10.0.0.7/stream` or MJPEG over HTTP."""

    def __init__(self, url: str, name: str) -> None:
        """The stream at `url`, which may hold a user and a password."""
        super().__init__(name)
        self._url = url
        parts = urlsplit(url)
        # For messages, without user and password.
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def open(self) -> None:
        """Connect; raises DriverError, after 5 s at most."""
        self.close()
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS]
        limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS]
        capture = cv2.VideoCapture(self._url, cv2.CAP_FFMPEG, limits)
        self._keep(capture, f"{self._shown} cannot be opened: is it there, and a video stream?")

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture; raises DriverError when none comes within 3 s."""
        capture = self._opened()
        if not capture.grab():
            raise DriverError(f"{self._shown} has ended or delivers no picture")
        return Frame(wall(), image=self._image(capture))


class FileCamera(_OpenCvCamera):
    """A video file, played at its own rate; at its end it is over or begins again."""

    def __init__(self, path: str, loop: bool = False) -> None:
        """The file at `path`."""
        super().__init__(Path(path).stem)
        self.recorded = True
        self._path, self._loop = path, loop
        self._closed = threading.Event()
        self._ticks: Iterator[Tick] | None = None

    def open(self) -> None:
        """Open the file and start its clock; raises DriverError."""
        self.close()
        capture = self._keep(cv2.VideoCapture(self._path), f"not a video file: {self._path}")
        fps = capture.get(cv2.CAP_PROP_FPS)
        self._closed.clear()
        self._ticks = _ticks(fps if 0.1 <= fps <= 1000 else _FILE_FPS, self._closed)

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture, when it is due; raises RecordingOver at the end."""
        capture = self._opened()
        if not capture.grab():
            if not self._loop:
                raise RecordingOver(f"{self._path} is over")
            capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            if not capture.grab():
                raise DriverError(f"{self._path} cannot be played again")
        assert self._ticks is not None
        if (tick := next(self._ticks, None)) is None:
            return None
        return Frame(wall() - tick.lateness_s, image=self._image(capture))

    def close(self) -> None:
        """Stop playing; safe to call twice."""
        self._closed.set()
        super().close()


def _ticks(rate_hz: float, stop: threading.Event) -> Iterator[Tick]:
    """A clock that begins with the first picture and, unlike others, leaves no tick out.

    Late pictures follow at once: a recording loses none.
    """
    start, index = time.monotonic(), 0
    while not stop.is_set():
        deadline = start + index / rate_hz
        if stop.wait(max(deadline - time.monotonic(), 0.0)):
            return
        yield Tick(index, deadline, max(time.monotonic() - deadline, 0.0), 0)
        index += 1


def attached() -> list[Attached]:
    """The V4L2 devices on this machine that capture."""
    found = []
    for entry in sorted(_SYSFS.glob("video*"), key=lambda path: int(path.name[5:] or 0)):
        with contextlib.suppress(OSError):
            if (entry / "index").read_text().strip() != "0":
                continue  # a camera's second node carries no pictures
            path = f"/dev/{entry.name}"
            usable = os.access(path, os.R_OK | os.W_OK)
            found.append(
                Attached(
                    name=entry.name,
                    source=path,
                    model=(entry / "name").read_text().strip(),
                    state="attached" if usable else "not permitted: group `video`",
                )
            )
    return found


def _made(source: str, **device: Any) -> DeviceCamera | StreamCamera | FileCamera:
    loop = device.pop("loop")
    if found := _DEVICE.fullmatch(source):
        return DeviceCamera(f"/dev/video{found[1]}", **device)
    if source.startswith("/dev/"):
        return DeviceCamera(source, **device)
    if "://" in source:
        return StreamCamera(source, urlsplit(source).hostname or "stream")
    if not Path(source).is_file():
        raise ValueError(f"no such device, URL or file: {source!r}")
    return FileCamera(source, loop)


def open_opencv_cameras(
    width: int = 1280,
    height: int = 720,
    fps: float = 30.0,
    sources: Sequence[str] = (),
    fourcc: str = "",
    loop: bool = False,
) -> list[DeviceCamera | StreamCamera | FileCamera]:
    """A camera for each of `sources`: a number or /dev path, a URL, or a video file.

    `fourcc` (e.g. MJPG) is a device's pixel format, `loop=true` plays files again and again.
    Raises ValueError for a source that cannot be one.
    """
    if not sources or not all(sources):
        there = ", ".join(camera.source for camera in attached()) or "none attached"
        raise ValueError(f"say which: sources=/dev/video0,rtsp://…,film.mp4 (devices: {there})")
    if fourcc and len(fourcc) != 4:
        raise ValueError(f"fourcc must be four letters, e.g. MJPG, not {fourcc!r}")
    settings = {"width": width, "height": height, "fps": fps, "fourcc": fourcc, "loop": loop}
    return [_made(source, **settings) for source in sources]
