"""A made-up OAK under the real depthai library.

Device, Camera and VideoEncoder need hardware and are made up. The rest is the library's own: a host
pipeline that runs, its queues, its messages and its clock. Every made-up method has the parameters
of the real one, which `check_signatures` reads from the library's documentation.
"""

from __future__ import annotations

import inspect
import re
import threading
import time
from datetime import timedelta
from typing import Any

import cv2
import depthai as dai
import numpy as np

_RealPipeline = dai.Pipeline
_CAMERA, _ENCODER = dai.node.Camera, dai.node.VideoEncoder


class Bench:
    """What is plugged in, and what the made-up devices were asked for."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.devices: list[Device] = []
        self.asked: dict[str, Any] = {}
        self.age_s = 0.05

    def info(self, device_id: str) -> dai.DeviceInfo:
        return dai.DeviceInfo(
            "1.2.3",
            device_id,
            dai.XLinkDeviceState.X_LINK_UNBOOTED,
            dai.XLinkProtocol.X_LINK_USB_VSC,
            dai.XLinkPlatform.X_LINK_MYRIAD_X,
            dai.XLinkError_t.X_LINK_SUCCESS,
        )

    def unplug(self) -> None:
        """Pull every cable: the library closes the queues of a lost device."""
        self.ids.clear()
        for device in self.devices:
            device.lose()


bench = Bench()


class Device:
    def __init__(self, deviceInfo: dai.DeviceInfo) -> None:
        if not isinstance(deviceInfo, dai.DeviceInfo):
            raise TypeError("__init__(): incompatible constructor arguments")
        if deviceInfo.getDeviceId() not in bench.ids:
            raise RuntimeError("Cannot find any device with given deviceInfo")
        self.reconnects: int | None = None
        self.pipeline: Pipeline | None = None
        self.closed = False
        bench.devices.append(self)

    @staticmethod
    def getAllAvailableDevices() -> list[dai.DeviceInfo]:
        return [bench.info(name) for name in bench.ids]

    @staticmethod
    def getAllConnectedDevices() -> list[dai.DeviceInfo]:
        return [bench.info(name) for name in bench.ids]

    def setMaxReconnectionAttempts(self, maxAttempts: int, callback: Any = None) -> None:
        self.reconnects = maxAttempts

    def lose(self) -> None:
        if self.pipeline is not None:
            self.pipeline.stop()

    def close(self) -> None:
        self.closed = True


class Source(dai.node.ThreadedHostNode):  # type: ignore[misc]
    """Sends what the device would, at its rate, through a real output."""

    def __init__(self) -> None:
        super().__init__()
        self.output = self.createOutput()
        self.make: Any = None
        self.fps = 30.0

    def run(self) -> None:
        index = 0
        while self.isRunning():
            message = self.make(index)
            message.setTimestamp(dai.Clock.now() - timedelta(seconds=bench.age_s))
            self.output.send(message)
            index += 1
            time.sleep(1 / self.fps)


class Camera:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def build(
        self,
        boardSocket: dai.CameraBoardSocket = dai.CameraBoardSocket.AUTO,
        sensorResolution: tuple[int, int] | None = None,
        sensorFps: float | None = None,
    ) -> Camera:
        if not isinstance(boardSocket, dai.CameraBoardSocket):
            raise TypeError("build(): incompatible function arguments")
        return self

    def requestOutput(
        self,
        size: tuple[int, int],
        type: dai.ImgFrame.Type | None = None,
        resizeMode: dai.ImgResizeMode = dai.ImgResizeMode.CROP,
        fps: float | None = None,
        enableUndistortion: bool | None = None,
        alphaScaling: float | None = None,
    ) -> Any:
        if not isinstance(type, dai.ImgFrame.Type):
            raise TypeError("requestOutput(): incompatible function arguments")
        bench.asked |= {"size": size, "type": type, "fps": fps}
        width, height = size

        def picture(index: int) -> dai.ImgFrame:
            frame = dai.ImgFrame()
            frame.setCvFrame(np.full((height, width, 3), (10, 20, 30), np.uint8), type)
            return frame

        source = self._pipeline.real.create(Source)
        source.make, source.fps = picture, fps or 30.0
        self._pipeline.source = source
        return source.output


class VideoEncoder:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def build(
        self,
        input: Any,
        bitrate: float = 0,
        frameRate: float = 30.0,
        profile: Any = dai.VideoEncoderProperties.Profile.H264_BASELINE,
        keyframeFrequency: int = 30,
        lossless: bool = False,
        quality: int = 80,
    ) -> VideoEncoder:
        source = self._pipeline.source
        assert source is not None and isinstance(input, dai.Node.Output)
        if bench.asked["type"] != dai.ImgFrame.Type.NV12:
            raise RuntimeError("VideoEncoder takes NV12 or GRAY8")
        bench.asked |= {"profile": profile, "quality": quality}
        width, height = bench.asked["size"]
        image = np.full((height, width, 3), (10, 20, 30), np.uint8)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()

        def encoded(index: int) -> dai.EncodedFrame:
            frame = dai.EncodedFrame()
            frame.setData(jpeg)
            frame.setProfile(dai.EncodedFrame.Profile.JPEG)
            return frame

        source.make = encoded
        return self

    @property
    def out(self) -> Any:
        assert self._pipeline.source is not None
        return self._pipeline.source.output


class Pipeline:
    def __init__(self, defaultDevice: Device) -> None:
        self.real = _RealPipeline(False)
        self.source: Source | None = None
        defaultDevice.pipeline = self
        self._stopping, self._stopped = threading.Lock(), False

    def create(self, arg0: Any) -> Any:
        return {_CAMERA: Camera, _ENCODER: VideoEncoder}[arg0](self)

    def start(self) -> None:
        self.real.start()

    def stop(self) -> None:
        with self._stopping:
            if self._stopped:
                return
            self._stopped = True
            self.real.stop()
            # Collected before its Python thread left, the library would wait with Python locked.
            self.real.wait()


def _documented(real: Any) -> list[list[str]]:
    """The parameter names of each overload, as the library's binding documents them."""
    return [
        re.findall(r"(?:\(|, )(\w+)(?=: |\)|,)", line[line.index("(") :])
        for line in (real.__doc__ or "").splitlines()
        if re.match(r"(\d+\. )?\w+\(.*\) -> ", line) and "(*args" not in line
    ]


def check_signatures() -> list[str]:
    """What of the made-up classes the real ones do not have; nothing when all is well."""
    wrong = []
    pairs = [(Device, dai.Device), (Camera, _CAMERA), (VideoEncoder, _ENCODER)]
    for fake, real in [*pairs, (Pipeline, _RealPipeline)]:
        for name, member in vars(fake).items():
            if name in {"lose", "out"} or (name.startswith("_") and name != "__init__"):
                continue
            if name == "__init__" and fake in (Camera, VideoEncoder):
                continue  # the pipeline makes them
            function = member.__func__ if isinstance(member, staticmethod) else member
            if not hasattr(real, name):
                wrong.append(f"{real.__name__} has no {name}")
                continue
            mine = [p for p in inspect.signature(function).parameters if p != "self"]
            overloads = [[p for p in o if p != "self"] for o in _documented(getattr(real, name))]
            if not any(mine == overload[: len(mine)] for overload in overloads):
                wrong.append(f"{real.__name__}.{name}: {mine} is none of {overloads}")
    return wrong
