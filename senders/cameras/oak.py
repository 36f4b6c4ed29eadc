"""OAK cameras through Luxonis' depthai 3: the colour camera, encoded to JPEG on the device.

The device's clock is kept in step with the host's by the library, whose stamps are in the host's
monotonic time (`dai.Clock`). They are turned into wall-clock time here.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Sequence
from typing import Any

# What goes wrong is raised; the library's own log lines would stand between this program's.
os.environ.setdefault("DEPTHAI_LEVEL", "error")

import depthai as dai

from common.clock import wall
from senders.cameras.attached import Attached
from senders.drivers import DriverError, Frame

__all__ = ["OakCamera", "attached", "open_oak_cameras"]

# What the device's encoder takes: rows in whole 32-byte words, columns in whole blocks.
_WIDTH_STEP, _HEIGHT_STEP = 32, 8
_OLDEST_S = 10.0
_ADDRESS = re.compile(r"\d+(\.\d+){3}")


class OakCamera:
    """The colour camera (socket A) of one OAK."""

    def __init__(
        self,
        source: str = "",
        width: int = 1280,
        height: int = 720,
        fps: float = 30.0,
        quality: int = 75,
        on_device: bool = True,
    ) -> None:
        """The OAK with this id, IP address or USB port (empty: the only one).

        JPEGs come from the device where the size allows (a width of whole 32s, a height of whole
        8s), else pictures; `on_device=False` asks for pictures.
        """
        self._source, self._size, self._fps, self._quality = source, (width, height), fps, quality
        self._encodes = on_device and width % _WIDTH_STEP == 0 and height % _HEIGHT_STEP == 0
        self._device: Any = None
        self._pipeline: Any = None
        self._queue: Any = None

    @property
    def name(self) -> str:
        """The name on the wire."""
        return f"OAK_{self._source}" if self._source else "OAK"

    def open(self) -> None:
        """Boot the device and start capturing; raises DriverError."""
        self.close()
        try:
            self._device = dai.Device(self._find())
            # This program opens a lost device again by itself, and says so.
            self._device.setMaxReconnectionAttempts(0)
            self._pipeline = dai.Pipeline(self._device)
            self._queue = self._build(self._pipeline)
            self._pipeline.start()
        except RuntimeError as error:  # what depthai raises, DriverError included
            self.close()
            raise DriverError(f"{self.name} cannot be opened: {error}") from None

    def _build(self, pipeline: Any) -> Any:
        camera = pipeline.create(dai.node.Camera).build(dai.CameraBoardSocket.CAM_A)
        if not self._encodes:
            kind = dai.ImgFrame.Type.BGR888i
            output = camera.requestOutput(self._size, type=kind, fps=self._fps)
            return output.createOutputQueue(maxSize=1, blocking=False)
        output = camera.requestOutput(self._size, type=dai.ImgFrame.Type.NV12, fps=self._fps)
        encoder = pipeline.create(dai.node.VideoEncoder).build(
            output,
            frameRate=self._fps,
            profile=dai.VideoEncoderProperties.Profile.MJPEG,
            quality=self._quality,
        )
        return encoder.out.createOutputQueue(maxSize=1, blocking=False)

    def _find(self) -> dai.DeviceInfo:
        there = dai.Device.getAllAvailableDevices()
        ids = ", ".join(device.getDeviceId() for device in there)
        if not self._source:
            if len(there) == 1:
                return there[0]
            raise DriverError(
                f"several are attached, say which by its id: {ids}" if there else "none is attached"
            )
        for device in there:
            if self._source in (device.getDeviceId(), device.name):
                return device
        if _ADDRESS.fullmatch(self._source):
            # One on the network answers to its address, though a search need not find it.
            return dai.DeviceInfo(self._source)
        raise DriverError(f"not attached; attached: {ids or 'none'}; is it plugged in?")

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture; None when none came in time. Raises DriverError."""
        if self._queue is None:
            raise DriverError(f"{self.name} is not open")
        try:
            message = self._queue.get(datetime.timedelta(seconds=timeout_s))
            if message is None:
                return None
            captured_at = _wall(message.getTimestamp())
            if isinstance(message, dai.EncodedFrame):
                return Frame(captured_at, jpeg=bytes(message.getData()))
            if isinstance(message, dai.ImgFrame):
                return Frame(captured_at, image=message.getCvFrame())
        except (RuntimeError, dai.MessageQueue.QueueException) as error:
            raise DriverError(f"{self.name} is lost: {error}") from None
        raise DriverError(f"{self.name}: not a picture: {type(message).__name__}")

    def close(self) -> None:
        """Stop capturing and let go of the device; safe to call twice."""
        pipeline, device = self._pipeline, self._device
        self._pipeline = self._device = self._queue = None
        # A device that is lost may object to being let go.
        with contextlib.suppress(RuntimeError):
            if pipeline is not None:
                pipeline.stop()
        with contextlib.suppress(RuntimeError):
            if device is not None:
                device.close()


def _wall(stamp: datetime.timedelta) -> float:
    """A stamp of the host's monotonic clock as wall-clock seconds; a senseless one as now."""
    now = dai.Clock.now()  # type: ignore[call-arg,unused-ignore]  # static, unlike the stubs say
    age_s = (now - stamp).total_seconds()
    return wall() - (age_s if 0.0 <= age_s <= _OLDEST_S else 0.0)


def attached() -> list[Attached]:
    """The OAKs on this machine and its network, those in use too."""
    try:
        found = dai.Device.getAllConnectedDevices()
    except RuntimeError as error:
        raise DriverError(f"OAK cameras cannot be looked for: {error}") from None
    return [
        Attached(
            name=f"OAK_{device.getDeviceId()}",
            source=device.getDeviceId(),
            model=device.platform.name.removeprefix("X_LINK_"),
            state=device.state.name.removeprefix("X_LINK_").lower(),
        )
        for device in found
    ]


def open_oak_cameras(
    width: int = 1280,
    height: int = 720,
    fps: float = 30.0,
    quality: int = 75,
    sources: Sequence[str] = (),
    on_device: bool = True,
) -> list[OakCamera]:
    """A camera for each id or address in `sources` (empty text: the only one); else all attached.

    `on_device=false` has the JPEGs made by this program instead of the camera.
    """
    ids = sources or [camera.source for camera in attached()]
    return [OakCamera(source, width, height, fps, quality, on_device) for source in ids]
