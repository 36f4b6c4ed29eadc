"""ZED cameras through Stereolabs' SDK (written against pyzed of ZED SDK 5.4): the left picture.

Several cameras run in one process, each picked by its serial number. Depth is not computed. The
SDK stamps a picture, in UNIX time, when it is whole in the computer's memory: two to three frame
times after the exposure, by its documentation of `Camera.get_timestamp`.

`Camera.open`, `Camera.close` and `Camera.get_device_list` hold Python's lock in pyzed, so that all
cameras of the process stand still meanwhile, for a second or two when one is opened. So `open` asks
first whether the camera is there, and a short loss of connection is left to the SDK's own recovery
in the background (`async_grab_camera_recovery`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pyzed import sl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from common.clock import wall
from senders.cameras.attached import Attached
from senders.drivers import DriverError, Frame

__all__ = ["ZedCamera", "attached", "open_zed_cameras"]

_OPEN_TIMEOUT_S = 5.0
_RECOVERING_S = 0.05

# Width and height of each mode, by name: the documentation of sl.RESOLUTION.
_MODES = {
    "HD2K": (2208, 1242),
    "HD1536": (1920, 1536),
    "HD1200": (1920, 1200),
    "HD1080": (1920, 1080),
    "HD720": (1280, 720),
    "XVGA": (960, 768),
    "SVGA": (960, 600),
    "VGA": (672, 376),
    "TXGA": (640, 512),
}
# The modes of each model, by the start of its name; others choose for themselves (AUTO).
_MODELS = {
    "ZED_X_HDR": ("HD1536", "XVGA", "TXGA"),
    "ZED_XONE": (),
    "ZED_X_NANO": (),
    "ZED_X": ("HD1200", "HD1080", "SVGA"),
    "ZED": ("HD2K", "HD1080", "HD720", "VGA"),
}


class ZedCamera:
    """The left, rectified picture of one ZED."""

    def __init__(
        self, serial: int | None, width: int = 1280, height: int = 720, fps: float = 30.0
    ) -> None:
        """The ZED with this serial number (None: the only one), in about this size and rate.

        The camera runs in its smallest mode that covers the size, and the SDK scales it down.
        """
        self._serial, self._size, self._fps = serial, (width, height), fps
        self._camera: Any = None
        self._stamp_ns = 0
        self._mat: Any = None
        self._scaled: Any = None
        self._closed = threading.Event()

    @property
    def name(self) -> str:
        """The name on the wire."""
        return "ZED_left" if self._serial is None else f"ZED_{self._serial}_left"

    def open(self) -> None:
        """Start capturing; raises DriverError."""
        self.close()
        found = self._find()
        mode = _mode(found.camera_model.name, *self._size)
        parameters = sl.InitParameters(
            camera_resolution=getattr(sl.RESOLUTION, mode),
            camera_fps=round(self._fps),  # the SDK takes the nearest that the mode has
            depth_mode=sl.DEPTH_MODE.NONE,
            sdk_verbose=0,
            open_timeout_sec=_OPEN_TIMEOUT_S,
            async_grab_camera_recovery=True,
        )
        parameters.set_from_serial_number(int(found.serial_number))
        camera = sl.Camera()
        code = camera.open(parameters)
        # Codes below SUCCESS are warnings: the camera works, except while it restarts.
        if code.value > sl.ERROR_CODE.SUCCESS.value or code.name == "CAMERA_REBOOTING":
            camera.close()
            raise DriverError(f"ZED {found.serial_number} cannot be opened: {code.name} ({code})")
        resolution = camera.get_camera_information().camera_configuration.resolution
        self._camera, self._mat, self._stamp_ns = camera, sl.Mat(), 0
        self._scaled = sl.Resolution(*_fit(resolution.width, resolution.height, *self._size))
        self._runtime = sl.RuntimeParameters(enable_depth=False)
        self._closed.clear()

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture; None while the SDK has none. Raises DriverError."""
        if self._camera is None:
            raise DriverError(f"{self.name} is not open")
        code = self._camera.grab(self._runtime)
        if code.name in ("CAMERA_REBOOTING", "CORRUPTED_FRAME"):
            # Both come at once, and again and again.
            self._closed.wait(min(_RECOVERING_S, timeout_s))
            return None
        if code.value > sl.ERROR_CODE.SUCCESS.value:
            raise DriverError(f"{self.name}: {code.name} ({code})")
        stamp_ns = self._camera.get_timestamp(sl.TIME_REFERENCE.IMAGE).get_nanoseconds()
        if stamp_ns and stamp_ns == self._stamp_ns:
            return None  # the picture before, once more
        self._stamp_ns = stamp_ns
        code = self._camera.retrieve_image(self._mat, sl.VIEW.LEFT, sl.MEM.CPU, self._scaled)
        if code.value > sl.ERROR_CODE.SUCCESS.value:
            raise DriverError(f"{self.name}: no left picture: {code.name} ({code})")
        bgra = self._mat.get_data()
        if bgra.dtype != np.uint8 or bgra.ndim != 3 or bgra.shape[2] != 4:
            raise DriverError(f"{self.name}: not a BGRA picture: {bgra.dtype} {bgra.shape}")
        # A copy: the SDK's memory is written again by the next call.
        image: NDArray[np.uint8] = cv2.cvtColor(bgra, cv2.COLOR_BGRA2BGR)
        return Frame(stamp_ns / 1e9 if stamp_ns else wall(), image=image)

    def close(self) -> None:
        """Stop capturing; safe to call twice."""
        self._closed.set()
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()

    def _find(self) -> Any:
        there = list(sl.Camera.get_device_list())
        wanted = [d for d in there if self._serial in (None, int(d.serial_number))]
        serials = ", ".join(str(device.serial_number) for device in there) or "none"
        if not wanted:
            which = "no ZED" if self._serial is None else f"ZED {self._serial}"
            raise DriverError(f"{which} is not attached; attached: {serials}; is it plugged in?")
        if len(wanted) > 1:
            raise DriverError(f"several ZEDs are attached, say which by its serial: {serials}")
        if wanted[0].camera_state != sl.CAMERA_STATE.AVAILABLE:
            raise DriverError(f"ZED {wanted[0].serial_number} is in use, by another program?")
        return wanted[0]


def _mode(model: str, width: int, height: int) -> str:
    """The model's smallest mode that covers the size, else its largest."""
    modes = next((modes for start, modes in _MODELS.items() if model.startswith(start)), ())
    if not modes:
        return "AUTO"
    covers = [m for m in modes if _MODES[m][0] >= width and _MODES[m][1] >= height]
    area = {mode: _MODES[mode][0] * _MODES[mode][1] for mode in modes}
    return min(covers, key=area.__getitem__) if covers else max(modes, key=area.__getitem__)


def _fit(width: int, height: int, wanted_width: int, wanted_height: int) -> tuple[int, int]:
    """The camera's size scaled down until it lies within the wanted one, never up."""
    scale = min(wanted_width / width, wanted_height / height, 1.0)
    # 4:2:0 halves both; a pixel of rounding is no reason for another size than asked for.
    return (
        min(2 * round(width * scale / 2), wanted_width, width),
        min(2 * round(height * scale / 2), wanted_height, height),
    )


def attached() -> list[Attached]:
    """The ZEDs on this machine, those in use too."""
    return [
        Attached(
            name=f"ZED_{device.serial_number}_left",
            source=str(device.serial_number),
            model=device.camera_model.name,
            state=device.camera_state.name.lower().replace("_", " "),
        )
        for device in sl.Camera.get_device_list()
    ]


def open_zed_cameras(
    width: int = 1280, height: int = 720, fps: float = 30.0, sources: Sequence[str] = ()
) -> list[ZedCamera]:
    """A camera for each serial number in `sources` (empty text: the only one); else all attached.

    Raises ValueError for what is no serial number.
    """
    serials = sources or [camera.source for camera in attached()]
    if bad := [text for text in serials if text and not text.isdecimal()]:
        raise ValueError(f"not a ZED's serial number: {', '.join(bad)}")
    return [ZedCamera(int(s) if s else None, width, height, fps) for s in serials]
