"""The part of pyzed.sl (ZED SDK 5.4) that a camera driver uses, with made-up cameras behind it.

Names, parameters, defaults and refusals are those of the public source of pyzed (github.com/
stereolabs/zed-python-api, src/pyzed/sl.pyx): an unknown keyword, a value of another type and a call
out of order are refused here as there. `bench` is the test's side: what is plugged in.
"""

from __future__ import annotations

import enum
import threading
import time
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np


class _Ordered(enum.Enum):
    def __le__(self, other):
        return self.value <= other.value if isinstance(other, type(self)) else NotImplemented

    def __gt__(self, other):
        return self.value > other.value if isinstance(other, type(self)) else NotImplemented


class ERROR_CODE(_Ordered):
    CONFIGURATION_FALLBACK = -4
    CORRUPTED_FRAME = -2
    CAMERA_REBOOTING = -1
    SUCCESS = 0
    FAILURE = 1
    CAMERA_NOT_DETECTED = 4
    INVALID_RESOLUTION = 7
    CAMERA_NOT_INITIALIZED = 20

    def __str__(self):
        return self.name.replace("_", " ")


RESOLUTION = enum.Enum(
    "RESOLUTION", "HD4K QHDPLUS HD2K HD1080 HD1200 HD1536 HD720 SVGA VGA XVGA TXGA AUTO LAST"
)
DEPTH_MODE = enum.Enum("DEPTH_MODE", "NONE PERFORMANCE QUALITY ULTRA NEURAL_LIGHT NEURAL LAST")
VIEW = enum.Enum("VIEW", "LEFT RIGHT LEFT_GRAY SIDE_BY_SIDE DEPTH LAST")
MEM = enum.Enum("MEM", {"CPU": 1, "GPU": 2, "BOTH": 3})
TIME_REFERENCE = enum.Enum("TIME_REFERENCE", "IMAGE CURRENT LAST")
CAMERA_STATE = enum.Enum("CAMERA_STATE", "AVAILABLE NOT_AVAILABLE LAST")
MODEL = enum.Enum("MODEL", "ZED ZED_M ZED2 ZED2i ZED_X ZED_XM LAST")
BUS_TYPE = enum.Enum("BUS_TYPE", "USB GMSL AUTO LAST")

_SIZES = {
    "HD2K": (2208, 1242),
    "HD1200": (1920, 1200),
    "HD1080": (1920, 1080),
    "HD720": (1280, 720),
    "SVGA": (960, 600),
    "VGA": (672, 376),
}
_MODES = {
    "ZED": {"HD2K", "HD1080", "HD720", "VGA"},
    "ZED_X": {"HD1200", "HD1080", "SVGA"},
}


@dataclass
class Plugged:
    """A camera on the bench."""

    serial: int
    model: MODEL = MODEL.ZED2i
    state: CAMERA_STATE = CAMERA_STATE.AVAILABLE
    fps: float = 100.0
    colour: tuple[int, int, int] = (10, 20, 30)
    codes: list[ERROR_CODE] = field(default_factory=list)
    frozen: bool = False
    stamp_ns: int = 0


class _Bench:
    """What is plugged in."""

    def __init__(self):
        self.cameras: dict[int, Plugged] = {}
        self.opened: list[InitParameters] = []
        self.open_code = ERROR_CODE.SUCCESS

    def plug(self, serial, **settings):
        self.cameras[serial] = Plugged(serial, **settings)
        return self.cameras[serial]

    def unplug(self, serial):
        del self.cameras[serial]

    def clear(self):
        self.__init__()


bench = _Bench()


class Resolution:
    def __init__(self, width=0, height=0):
        self.width, self.height = int(width), int(height)


class InitParameters:
    _TYPES: ClassVar = {
        "camera_resolution": RESOLUTION,
        "camera_fps": int,
        "svo_real_time_mode": bool,
        "depth_mode": DEPTH_MODE,
        "sdk_verbose": int,
        "sdk_gpu_id": int,
        "depth_minimum_distance": float,
        "depth_maximum_distance": float,
        "camera_disable_self_calib": bool,
        "sensors_required": bool,
        "enable_image_enhancement": bool,
        "open_timeout_sec": float,
        "async_grab_camera_recovery": bool,
    }

    def __init__(self, **settings):
        for name, value in settings.items():
            if name not in self._TYPES:
                raise TypeError(f"__cinit__() got an unexpected keyword argument '{name}'")
            if not isinstance(value, self._TYPES[name]):
                raise TypeError("Argument is not of right type.")
        self.settings = settings
        self.serial = None

    def set_from_serial_number(self, serial_number):
        self.serial = int(serial_number)


class RuntimeParameters:
    def __init__(self, enable_depth=True, enable_fill_mode=False, confidence_threshold=95):
        if not isinstance(enable_depth, bool) or not isinstance(enable_fill_mode, bool):
            raise TypeError
        self.enable_depth = enable_depth


class Timestamp:
    def __init__(self, ns):
        self.data_ns = ns

    def get_nanoseconds(self):
        return self.data_ns


class Mat:
    def __init__(self):
        self._data = np.zeros((0, 0, 4), np.uint8)

    def get_data(self, memory_type=MEM.CPU, deep_copy=False):
        if not isinstance(memory_type, MEM):
            raise TypeError("Argument is not of MEM type.")
        return self._data.copy() if deep_copy else self._data


class DeviceProperties:
    def __init__(self, plugged):
        self.camera_state = plugged.state
        self.camera_model = plugged.model
        self.serial_number = plugged.serial
        self.id = 0
        self.path = "/dev/video0"


@dataclass
class CameraConfiguration:
    resolution: Resolution
    fps: float


@dataclass
class CameraInformation:
    serial_number: int
    camera_configuration: CameraConfiguration


class Camera:
    def __init__(self):
        self._plugged = None
        self._size = (0, 0)
        self._next = 0.0
        self._lock = threading.Lock()

    @staticmethod
    def get_device_list(bus_type=BUS_TYPE.AUTO):
        if not isinstance(bus_type, BUS_TYPE):
            raise TypeError
        return [DeviceProperties(plugged) for plugged in bench.cameras.values()]

    def open(self, py_init=None):
        if not isinstance(py_init, InitParameters):
            raise TypeError("Argument 'py_init' has incorrect type")
        bench.opened.append(py_init)
        plugged = bench.cameras.get(py_init.serial)
        if plugged is None or plugged.state is not CAMERA_STATE.AVAILABLE:
            return ERROR_CODE.CAMERA_NOT_DETECTED
        if bench.open_code > ERROR_CODE.SUCCESS:
            return bench.open_code
        mode = py_init.settings["camera_resolution"].name
        modes = _MODES["ZED_X" if plugged.model.name.startswith("ZED_X") else "ZED"]
        if mode not in modes:
            return ERROR_CODE.INVALID_RESOLUTION
        self._size, self._plugged = _SIZES[mode], plugged
        plugged.state = CAMERA_STATE.NOT_AVAILABLE
        return bench.open_code

    def is_opened(self):
        return self._plugged is not None

    def get_camera_information(self, resizer=None):
        configuration = CameraConfiguration(Resolution(*self._size), self._plugged.fps)
        return CameraInformation(self._plugged.serial, configuration)

    def grab(self, py_runtime=None):
        if py_runtime is not None and not isinstance(py_runtime, RuntimeParameters):
            raise TypeError("Argument 'py_runtime' has incorrect type")
        plugged = self._plugged
        if plugged is None:
            return ERROR_CODE.CAMERA_NOT_INITIALIZED
        if plugged.serial not in bench.cameras:
            return ERROR_CODE.CAMERA_NOT_DETECTED
        if plugged.codes:
            return plugged.codes.pop(0)
        time.sleep(1 / plugged.fps)
        if not plugged.frozen:
            plugged.stamp_ns = time.time_ns()
        return ERROR_CODE.SUCCESS

    def get_timestamp(self, time_reference):
        if not isinstance(time_reference, TIME_REFERENCE):
            raise AttributeError("'value'")
        return Timestamp(self._plugged.stamp_ns)

    def retrieve_image(self, py_mat, view=VIEW.LEFT, mem_type=MEM.CPU, resolution=None):
        if not isinstance(py_mat, Mat):
            raise TypeError("Argument 'py_mat' has incorrect type")
        if resolution is not None and not isinstance(resolution, Resolution):
            raise TypeError("Argument 'resolution' has incorrect type")
        if not isinstance(view, VIEW) or not isinstance(mem_type, MEM):
            raise AttributeError("'value'")
        width, height = self._size
        if resolution is not None and resolution.width:
            if resolution.width > width or resolution.height > height:
                return ERROR_CODE.INVALID_RESOLUTION
            width, height = resolution.width, resolution.height
        if py_mat._data.shape[:2] != (height, width):
            py_mat._data = np.zeros((height, width, 4), np.uint8)
        shift = 0 if view is VIEW.LEFT else 100
        py_mat._data[:] = (*(c + shift for c in self._plugged.colour), 255)
        return ERROR_CODE.SUCCESS

    def close(self):
        plugged, self._plugged = self._plugged, None
        if plugged is not None and plugged.serial in bench.cameras:
            bench.cameras[plugged.serial].state = CAMERA_STATE.AVAILABLE
