"""The OpenCV driver on real files and HTTP streams; its devices as far as can be without one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from senders.cameras import opencv
from senders.cameras.opencv import DeviceCamera, FileCamera, StreamCamera, open_opencv_cameras
from senders.drivers import DriverError, Recorded, RecordingOver
from tests.support import free_ports, wait_until


def shade(index: int) -> int:
    return 40 + 15 * (index % 14)


def written(path: Path, pictures: int = 10, fps: float = 50.0) -> Path:
    """A video of plain pictures, each brighter than the one before."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    for index in range(pictures):
        writer.write(np.full((48, 64, 3), shade(index), np.uint8))
    writer.release()
    return path


def test_every_picture_of_a_file_comes_once_at_its_own_rate(tmp_path: Path) -> None:
    (camera,) = open_opencv_cameras(sources=(str(written(tmp_path / "film.avi")),))
    assert camera.name == "film" and isinstance(camera, Recorded)
    camera.open()
    frames = [camera.read(1.0) for _ in range(10)]
    with pytest.raises(RecordingOver, match="is over"):
        camera.read(1.0)
    camera.close()
    camera.close()
    shades = [int(frame.image.mean()) for frame in frames if frame and frame.image is not None]
    assert shades == pytest.approx([shade(k) for k in range(10)], abs=3)
    stamps = [frame.captured_at for frame in frames if frame]
    assert np.diff(stamps) == pytest.approx(0.02, abs=0.005)  # when due, not when read


def test_a_slow_reader_loses_nothing_of_a_file(tmp_path: Path) -> None:
    camera = FileCamera(str(written(tmp_path / "film.avi", pictures=8, fps=100.0)))
    camera.open()
    first = camera.read(1.0)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.2, "a while")
    rest = [camera.read(1.0) for _ in range(7)]
    assert first is not None and all(rest)
    camera.close()


def test_a_file_begins_again_where_asked_to(tmp_path: Path) -> None:
    path = written(tmp_path / "film.avi", pictures=3)
    (camera,) = open_opencv_cameras(sources=(str(path),), loop=True)
    camera.open()
    frames = [camera.read(1.0) for _ in range(7)]
    shades = [int(frame.image.mean()) for frame in frames if frame and frame.image is not None]
    assert shades == pytest.approx([shade(k % 3) for k in range(7)], abs=3)
    camera.close()
    with pytest.raises(DriverError, match="not open"):
        camera.read(0.1)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.avi"
    text.write_text("no video")
    (camera,) = open_opencv_cameras(sources=(str(text),))
    with pytest.raises(DriverError, match="not a video file"):
        camera.open()


# --- streams -------------------------------------------------------------------------------------


class MjpegServer:
    """Serves MJPEG over HTTP (multipart/x-mixed-replace), as network cameras do."""

    def __init__(self, port: int) -> None:
        self.stopped = stopped = threading.Event()
        self.silent = silent = threading.Event()
        image = np.full((48, 64, 3), (200, 100, 50), np.uint8)
        jpeg = cv2.imencode(".jpg", image)[1].tobytes()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                try:
                    while not stopped.wait(0.02):
                        if not silent.is_set():
                            self.wfile.write(head.encode() + jpeg + b"\r\n")
                except OSError:
                    pass
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def server(port: int) -> Iterator[MjpegServer]:
    made = MjpegServer(port)
    yield made
    made.stop()


def stream(port: int) -> StreamCamera:
    (camera,) = open_opencv_cameras(sources=(f"http://user:secret@127.0.0.1:{port}/video.mjpg",))
    assert isinstance(camera, StreamCamera)
    return camera


def test_a_network_stream_comes_and_its_end_is_a_failure(server: MjpegServer, port: int) -> None:
    camera = stream(port)
    assert camera.name == "127.0.0.1"
    camera.open()
    frame = camera.read(1.0)
    assert frame is not None and frame.image is not None and frame.image.shape == (48, 64, 3)
    assert frame.image.mean(axis=(0, 1)) == pytest.approx([200, 100, 50], abs=6)
    assert abs(time.time() - frame.captured_at) < 5
    server.stop()
    with pytest.raises(DriverError, match="has ended or delivers no picture"):
        for _ in range(500):
            camera.read(1.0)
    camera.close()
    with pytest.raises(DriverError, match="cannot be opened") as refused:
        camera.open()
    assert "secret" not in str(refused.value)


def test_a_stream_that_falls_silent_is_given_up(
    server: MjpegServer, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opencv, "_READ_TIMEOUT_MS", 500)
    camera = stream(port)
    camera.open()
    assert camera.read(1.0) is not None
    server.silent.set()
    began = time.monotonic()
    with pytest.raises(DriverError, match="delivers no picture"):
        for _ in range(500):
            camera.read(1.0)
    assert time.monotonic() - began < 30  # a guard against hanging, not a measurement
    camera.close()


def test_a_server_that_never_answers_is_given_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opencv, "_OPEN_TIMEOUT_MS", 500)
    with socket.create_server(("127.0.0.1", port)):
        began = time.monotonic()
        with pytest.raises(DriverError, match="cannot be opened"):
            stream(port).open()
        assert time.monotonic() - began < 30


# --- devices -------------------------------------------------------------------------------------


def test_sources_are_told_apart_and_bad_ones_refused(tmp_path: Path) -> None:
    film = str(written(tmp_path / "film.avi", pictures=1))
    by_id = "/dev/v4l/by-id/usb-cam-index0"
    made = open_opencv_cameras(sources=("0", "/dev/video12", by_id, "rtsp://10.0.0.7/a", film))
    assert [type(camera) for camera in made] == [
        *(3 * [DeviceCamera]),
        StreamCamera,
        FileCamera,
    ]
    assert [camera.name for camera in made][:4] == [
        "video0",
        "video12",
        "usb-cam-index0",
        "10.0.0.7",
    ]
    with pytest.raises(ValueError, match=r"no such device, URL or file: 'nowhere\.mp4'"):
        open_opencv_cameras(sources=("nowhere.mp4",))
    with pytest.raises(ValueError, match="say which: sources="):
        open_opencv_cameras()
    with pytest.raises(ValueError, match="four letters"):
        open_opencv_cameras(sources=("0",), fourcc="MJPEG")


def test_a_device_that_is_not_there_or_no_camera_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match=r"there is no /dev/video999"):
        DeviceCamera("/dev/video999").open()
    with pytest.raises(DriverError, match="cannot be opened: no camera"):
        DeviceCamera("/dev/null").open()


class Capture:
    """OpenCV's capture of a device, as far as it can be without one."""

    def __init__(self, *opened_with: Any) -> None:
        self.opened_with = opened_with
        self.settings: list[int] = []
        self.stamp_s = time.monotonic
        self.there = True

    def isOpened(self) -> bool:
        return True

    def set(self, setting: int, value: float) -> bool:
        self.settings.append(setting)
        return True

    def get(self, setting: int) -> float:
        assert setting == cv2.CAP_PROP_POS_MSEC
        return self.stamp_s() * 1e3

    def grab(self) -> bool:
        return self.there

    def retrieve(self) -> tuple[bool, Any]:
        return True, np.zeros((48, 64), np.uint8)

    def release(self) -> None:
        self.there = False


def test_a_device_is_set_up_in_order_and_its_stamps_used_where_sensible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    path = tmp_path / "video0"
    path.touch()
    camera = DeviceCamera(str(path), 640, 480, 30.0, "MJPG")
    camera.open()
    capture: Any = camera._capture
    assert capture.opened_with == (str(path), cv2.CAP_V4L2)
    first, last = capture.settings[0], capture.settings[-1]
    assert (first, last) == (cv2.CAP_PROP_FOURCC, cv2.CAP_PROP_BUFFERSIZE)
    capture.stamp_s = lambda: time.monotonic() - 0.5
    frame = camera.read(0.5)
    assert frame is not None and 0.5 <= time.time() - frame.captured_at < 5
    assert frame.image is not None and frame.image.shape == (48, 64, 3)  # grey made BGR
    capture.stamp_s = lambda: 0.0 if time.monotonic() > 2 else -10.0
    frame = camera.read(0.5)
    assert frame is not None and abs(time.time() - frame.captured_at) < 0.4
    capture.there = False
    with pytest.raises(DriverError, match="delivers no picture"):
        camera.read(0.5)
    camera.close()


def test_attached_devices_are_those_that_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node, index in (("video10", "0"), ("video2", "0"), ("video3", "1")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "index").write_text(f"{index}\n")
        (tmp_path / node / "name").write_text("UVC Camera\n")
    monkeypatch.setattr(opencv, "_SYSFS", tmp_path)
    assert [(c.source, c.model) for c in opencv.attached()] == [
        ("/dev/video2", "UVC Camera"),
        ("/dev/video10", "UVC Camera"),
    ]
