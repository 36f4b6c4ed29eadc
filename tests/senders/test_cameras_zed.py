"""The ZED driver against a stand-in for the vendor's package, which only its SDK installs."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from senders.drivers import DriverError

FAKE = Path(__file__).with_name("fake_pyzed")


@pytest.fixture
def zed(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The driver's module, over the stand-in."""
    monkeypatch.syspath_prepend(str(FAKE))
    for name in ("pyzed", "pyzed.sl", "senders.cameras.zed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("senders.cameras.zed")
    yield module
    for name in ("pyzed", "pyzed.sl", "senders.cameras.zed"):
        sys.modules.pop(name, None)


@pytest.fixture
def bench(zed: Any) -> Any:
    return zed.sl.bench


def opened(zed: Any, serial: int | None = 7, *size: int) -> Any:
    camera = zed.ZedCamera(serial, *size)
    camera.open()
    return camera


def test_the_left_picture_comes_in_bgr_with_the_camera_s_own_stamp(zed: Any, bench: Any) -> None:
    plugged = bench.plug(7)
    before = time.time()
    camera = opened(zed)
    frame = camera.read(0.5)
    assert camera.name == "ZED_7_left"
    assert frame.image.shape == (720, 1280, 3) and frame.image.dtype == np.uint8
    assert (frame.image == (10, 20, 30)).all()
    assert frame.captured_at == plugged.stamp_ns / 1e9 >= before
    kept = frame.image
    plugged.colour = (90, 91, 92)
    assert (camera.read(0.5).image == (90, 91, 92)).all()
    assert (kept == (10, 20, 30)).all()  # not the SDK's memory, which it writes again
    settings = bench.opened[0].settings
    assert settings["depth_mode"] is zed.sl.DEPTH_MODE.NONE and settings["camera_fps"] == 30
    camera.close()
    camera.close()


@pytest.mark.parametrize(
    ("model", "asked", "mode", "sent"),
    [
        ("ZED2i", (1280, 720), "HD720", (1280, 720)),
        ("ZED2i", (640, 360), "VGA", (640, 358)),
        ("ZED2i", (4096, 2160), "HD2K", (2208, 1242)),
        ("ZED_X", (1280, 720), "HD1080", (1280, 720)),
        ("ZED_X", (1920, 1200), "HD1200", (1920, 1200)),
        ("ZED_X", (640, 360), "SVGA", (576, 360)),
    ],
)
def test_the_smallest_mode_that_covers_the_size_is_scaled_down_to_it(
    zed: Any, bench: Any, model: str, asked: tuple[int, int], mode: str, sent: tuple[int, int]
) -> None:
    bench.plug(7, model=zed.sl.MODEL[model])
    frame = opened(zed, 7, *asked).read(0.5)
    assert bench.opened[0].settings["camera_resolution"].name == mode
    assert frame.image.shape[1::-1] == sent


def test_a_camera_that_is_not_there_is_not_even_tried(zed: Any, bench: Any) -> None:
    bench.plug(8)
    with pytest.raises(DriverError, match=r"ZED 7 is not attached; attached: 8"):
        opened(zed)
    assert not bench.opened  # opening holds up every other camera of the process


def test_a_camera_in_use_or_of_unclear_choice_is_refused(zed: Any, bench: Any) -> None:
    bench.plug(7, state=zed.sl.CAMERA_STATE.NOT_AVAILABLE)
    with pytest.raises(DriverError, match="in use"):
        opened(zed)
    bench.plug(8)
    with pytest.raises(DriverError, match=r"say which by its serial: 7, 8"):
        opened(zed, None)
    bench.unplug(7)
    assert opened(zed, None).read(0.5) is not None


def test_an_error_of_opening_lets_go_of_the_camera(zed: Any, bench: Any) -> None:
    bench.plug(7)
    bench.open_code = zed.sl.ERROR_CODE.FAILURE
    with pytest.raises(DriverError, match="cannot be opened: FAILURE"):
        opened(zed)
    bench.open_code = zed.sl.ERROR_CODE.CONFIGURATION_FALLBACK  # a warning: it works
    assert opened(zed).read(0.5) is not None


def test_spoilt_repeated_and_missing_pictures_are_not_passed_on(zed: Any, bench: Any) -> None:
    plugged = bench.plug(7)
    camera = opened(zed)
    codes = zed.sl.ERROR_CODE
    plugged.codes = [codes.CORRUPTED_FRAME, codes.CAMERA_REBOOTING]
    assert camera.read(0.5) is None and camera.read(0.5) is None
    assert camera.read(0.5) is not None
    plugged.frozen = True
    assert camera.read(0.5) is None


def test_unplugged_it_fails_and_plugged_in_again_it_opens(zed: Any, bench: Any) -> None:
    bench.plug(7)
    camera = opened(zed)
    bench.unplug(7)
    with pytest.raises(DriverError, match="CAMERA_NOT_DETECTED"):
        camera.read(0.5)
    camera.close()
    with pytest.raises(DriverError, match="not attached"):
        camera.open()
    bench.plug(7)
    camera.open()
    assert camera.read(0.5) is not None


def test_cameras_are_made_by_serial_or_as_attached(zed: Any, bench: Any) -> None:
    for serial in (11, 12):
        bench.plug(serial, model=zed.sl.MODEL.ZED_X)
    assert [c.name for c in zed.open_zed_cameras()] == ["ZED_11_left", "ZED_12_left"]
    made = zed.open_zed_cameras(sources=("41182735",))
    assert [c.name for c in made] == ["ZED_41182735_left"]
    with pytest.raises(ValueError, match="not a ZED's serial number: OAK"):
        zed.open_zed_cameras(sources=("OAK",))
    found = zed.attached()
    assert [(c.source, c.model, c.state) for c in found] == [
        ("11", "ZED_X", "available"),
        ("12", "ZED_X", "available"),
    ]


def test_the_stand_in_refuses_what_the_sdk_refuses(zed: Any, bench: Any) -> None:
    bench.plug(7)
    sl = zed.sl
    with pytest.raises(TypeError):
        sl.InitParameters(resolution=sl.RESOLUTION.HD720)
    with pytest.raises(TypeError):
        sl.InitParameters(camera_fps=30.0)
    with pytest.raises(TypeError):
        sl.Camera().open({"camera_fps": 30})
    assert sl.Camera().grab() is sl.ERROR_CODE.CAMERA_NOT_INITIALIZED
