"""The OAK driver on the real depthai library, over a made-up device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from common.jpeg import jpeg_size
from senders.drivers import DriverError, Frame

dai = pytest.importorskip("depthai")
oak = pytest.importorskip("senders.cameras.oak")
fake_oak = pytest.importorskip("tests.senders.fake_oak")

ID = "1844301051D9B50F00"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One made-up OAK is plugged in."""
    monkeypatch.setattr(dai, "Device", fake_oak.Device)
    monkeypatch.setattr(dai, "Pipeline", fake_oak.Pipeline)
    fake_oak.bench.__init__()
    fake_oak.bench.ids.append(ID)
    yield fake_oak.bench
    fake_oak.bench.unplug()


def first(camera: Any) -> Frame:
    for _ in range(20):
        if (frame := camera.read(0.5)) is not None:
            return frame
    raise AssertionError("no picture")


def test_the_made_up_device_has_the_parameters_of_the_real_one() -> None:
    assert fake_oak.check_signatures() == []


def test_jpegs_come_encoded_from_the_device_with_its_time(bench: Any) -> None:
    camera = oak.OakCamera(ID, 640, 360, 20.0, quality=60)
    camera.open()
    frame = first(camera)
    assert frame.image is None and frame.jpeg is not None
    assert jpeg_size(frame.jpeg) == (640, 360)
    # The stamp is monotonic and 50 ms old when sent; here it is UNIX time.
    assert 0.04 < time.time() - frame.captured_at < 5.0
    asked = bench.asked
    assert asked["profile"] == dai.VideoEncoderProperties.Profile.MJPEG
    assert (asked["size"], asked["fps"], asked["quality"]) == ((640, 360), 20.0, 60)
    assert bench.devices[0].reconnects == 0
    camera.close()
    camera.close()
    assert bench.devices[0].closed
    with pytest.raises(DriverError, match="not open"):
        camera.read(0.1)


@pytest.mark.parametrize("settings", [{"width": 600}, {"height": 361}, {"on_device": False}])
def test_a_size_that_the_device_cannot_encode_comes_as_pictures(
    bench: Any, settings: dict[str, Any]
) -> None:
    camera = oak.OakCamera(ID, **{"width": 640, "height": 360, **settings})
    camera.open()
    frame = first(camera)
    assert frame.jpeg is None and frame.image is not None
    assert frame.image.shape == (settings.get("height", 360), settings.get("width", 640), 3)
    assert (frame.image == (10, 20, 30)).all() and frame.image.dtype == np.uint8
    camera.close()


def test_nothing_in_time_is_no_picture(bench: Any) -> None:
    camera = oak.OakCamera(ID, 640, 360, fps=1.0)
    camera.open()
    first(camera)
    assert camera.read(0.05) is None
    camera.close()


def test_unplugged_it_fails_and_plugged_in_again_it_opens(bench: Any) -> None:
    camera = oak.OakCamera("", 640, 360)
    camera.open()
    first(camera)
    bench.unplug()
    with pytest.raises(DriverError, match="OAK is lost"):
        for _ in range(10):
            camera.read(0.5)
    camera.close()
    with pytest.raises(DriverError, match="none is attached"):
        camera.open()
    bench.ids.append(ID)
    camera.open()
    assert first(camera).jpeg
    camera.close()


def test_one_of_several_must_be_named(bench: Any) -> None:
    bench.ids.append("other")
    with pytest.raises(DriverError, match=rf"say which by its id: {ID}, other"):
        oak.OakCamera("").open()
    with pytest.raises(DriverError, match=rf"OAK_third cannot be opened: not attached.*{ID}"):
        oak.OakCamera("third").open()


def test_cameras_are_made_by_id_or_as_attached(bench: Any) -> None:
    assert [camera.name for camera in oak.open_oak_cameras()] == [f"OAK_{ID}"]
    assert [camera.name for camera in oak.open_oak_cameras(sources=("",))] == ["OAK"]
    (found,) = oak.attached()
    assert (found.source, found.model, found.state) == (ID, "MYRIAD_X", "unbooted")


def test_the_library_itself_finds_no_device_and_says_so() -> None:
    assert oak.attached() == []
    with pytest.raises(DriverError, match="OAK cannot be opened: none is attached"):
        oak.OakCamera("").open()
