"""The camera sender as a process against a plain PULL socket, and its capture threads."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import msgpack
import numpy as np
import pytest
import zmq

from common.clock import wall
from common.wire import CameraFrame
from senders.cameras.synthetic import open_synthetic_cameras
from senders.capture import CameraCapture, StartLine
from senders.drivers import DriverError, Frame
from senders.encoding import Encoders, encode_jpeg
from senders.jetson_camera_sender import push

VIEWS = ["View1", "View2", "View3", "View4", "View5"]


class Puller:
    """A receiver's plain PULL socket."""

    def __init__(self, context: zmq.Context[Any], port: int) -> None:
        self.socket = context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.RCVHWM, 10)
        self.socket.setsockopt(zmq.RCVBUF, 64 * 1024)
        self.port = port
        self.headers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.last_jpeg = b""

    def bind(self) -> bool:
        try:
            self.socket.bind(f"tcp://127.0.0.1:{self.port}")
        except zmq.ZMQError:
            return False
        return True

    def drain(self) -> None:
        while self.socket.poll(0):
            header, jpeg = self.socket.recv_multipart()
            decoded = msgpack.unpackb(header)
            assert decoded["size"] == len(jpeg)
            self.headers[decoded["camera"]].append(decoded)
            self.last_jpeg = jpeg

    def has(self, count: int, cameras: int = 5) -> Callable[[], bool]:
        def enough() -> bool:
            self.drain()
            return sum(len(headers) >= count for headers in self.headers.values()) >= cameras

        return enough

    def seqs(self, camera: str) -> list[int]:
        return [header["seq"] for header in self.headers[camera]]


@pytest.fixture
def puller(zmq_context: Any, free_port: Callable[[], int], until: Any) -> Iterator[Puller]:
    made = Puller(zmq_context, free_port())
    until(made.bind, "the port")
    yield made


@pytest.fixture
def cameras(start: Callable[..., Any]) -> Callable[..., Any]:
    """`cameras(port, *options)`: a sender of small made-up pictures."""

    def begin(port: int, *options: object) -> Any:
        small = ("--width", 320, "--height", 240, "--fps", 20)
        return start(
            "jetson_camera_sender", "--driver", "synthetic", "--port", port, *small, *options
        )

    return begin


def sampling(jpeg: bytes) -> tuple[int, list[int]]:
    """Frame marker and sampling factors of a JPEG."""
    position = 2
    while jpeg[position + 1] not in (0xC0, 0xC1, 0xC2):
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return jpeg[position + 1], [jpeg[position + 11 + 3 * n] for n in range(3)]


def test_five_cameras_come_at_their_rate_as_baseline_420_jpegs(
    cameras: Any, puller: Puller, until: Any
) -> None:
    program = cameras(puller.port)
    until(puller.has(40), "40 pictures of each camera")
    assert program.stop() == 0, program.said
    assert sorted(puller.headers) == VIEWS
    for camera, headers in puller.headers.items():
        keys = {"camera", "timestamp", "size", "seq", "send_timestamp", "width", "height"}
        assert all(set(header) == keys for header in headers)
        assert all((h["width"], h["height"]) == (320, 240) for h in headers)
        assert all(h["send_timestamp"] >= h["timestamp"] for h in headers)
        assert (np.diff(puller.seqs(camera)) > 0).all()
        stamps = np.array([header["timestamp"] for header in headers])
        assert np.median(np.diff(stamps)) == pytest.approx(1 / 20, rel=0.1)
        assert abs(wall() - stamps[-1]) < 20
    assert sampling(puller.last_jpeg) == (0xC0, [0x22, 0x11, 0x11])
    image = cv2.imdecode(np.frombuffer(puller.last_jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None and image.shape == (240, 320, 3)


def test_only_the_cameras_asked_for_are_sent(cameras: Any, puller: Puller, until: Any) -> None:
    cameras(puller.port, "--cameras", "View2,ZED_41182735_left")
    until(puller.has(5, cameras=2), "pictures")
    assert sorted(puller.headers) == ["View2", "ZED_41182735_left"]


def test_a_stalled_receiver_costs_pictures_but_never_stops_capture(
    cameras: Any, puller: Puller, until: Any
) -> None:
    program = cameras(puller.port, "--cameras", "View1", "--quality", 100, "--width", 1280)
    until(puller.has(3, cameras=1), "pictures")
    seen = puller.seqs("View1")[-1]
    stalled_at = time.monotonic()
    until(lambda: time.monotonic() - stalled_at > 4.0, "the stall to last")
    until(
        lambda: puller.drain() or puller.seqs("View1")[-1] >= seen + 70,
        "pictures from after the stall",
    )
    seqs = puller.seqs("View1")
    lost = seqs[-1] + 1 - len(seqs)
    assert lost > 20  # of the 80 that were captured meanwhile, few may wait
    assert program.stop() == 0
    dropped = int(program.said.rsplit("dropped ", 1)[1].split()[0])
    assert dropped >= lost > 0


def test_pictures_are_captured_and_fresh_though_the_receiver_comes_late_or_again(
    cameras: Any, zmq_context: Any, free_port: Callable[[], int], until: Any
) -> None:
    port = free_port()
    program = cameras(port, "--cameras", "View1")
    until(lambda: "camera View1 is open" in program.said, "the camera")
    opened_at = time.monotonic()
    until(lambda: time.monotonic() - opened_at > 1.0, "a second without a receiver")
    first = Puller(zmq_context, port)
    until(first.bind, "the port")
    bound_at = wall()
    until(first.has(5, cameras=1), "pictures")
    assert first.seqs("View1")[0] >= 10
    assert first.headers["View1"][0]["timestamp"] > bound_at - 0.3
    first.socket.close(0)
    second = Puller(zmq_context, port)
    until(second.bind, "the port again")
    until(second.has(5, cameras=1), "pictures at the second receiver")
    assert second.seqs("View1")[0] > first.seqs("View1")[-1]


def test_a_killed_sender_starts_again(cameras: Any, puller: Puller, until: Any) -> None:
    program = cameras(puller.port, "--cameras", "View1")
    until(puller.has(5, cameras=1), "pictures")
    program.process.kill()
    program.ended()
    puller.drain()
    puller.headers.clear()
    cameras(puller.port, "--cameras", "View1")
    until(puller.has(5, cameras=1), "pictures of the second sender")
    assert puller.seqs("View1")[0] < 5


# --- capture -------------------------------------------------------------------------------------


class Camera:
    """A camera that delivers what it is given; an exception is raised, after it silence."""

    def __init__(self, name: str, *steps: Frame | Exception) -> None:
        self.name = name
        self.steps = list(steps)
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1

    def read(self, timeout_s: float) -> Frame | None:
        if not self.steps:
            time.sleep(0.01)
            return None
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        time.sleep(0.02)
        return step

    def close(self) -> None:
        self.closed += 1


def newest(capture: CameraCapture) -> float | None:
    """Stamp of the JPEG that waits; it goes on waiting."""
    packet = capture.take()
    if packet is None:
        return None
    capture.give_back(packet)
    return packet.timestamp


IMAGE = np.full((48, 64, 3), 100, np.uint8)
NEW = 4e9  # stamps of the future count as of now; older ones would be from before the start


@pytest.fixture
def capturing() -> Iterator[Callable[..., CameraCapture]]:
    """`capturing(camera)`: its capture, running."""
    stop, encoders = threading.Event(), Encoders(1)
    threads = encoders.threads(stop)
    threads[0].start()

    def begin(camera: Any) -> CameraCapture:
        capture = CameraCapture(camera, 240.0, 75, threading.Event(), encoders, StartLine(1))
        threads.append(threading.Thread(target=capture.run, args=(stop,)))
        threads[-1].start()
        return capture

    yield begin
    stop.set()
    for thread in threads:
        thread.join(5)


@pytest.mark.parametrize(
    "trouble",
    [
        DriverError("unplugged"),
        RuntimeError("a bug"),
        Frame(NEW + 1),
        Frame(NEW + 1, jpeg=b"no JPEG"),
        Frame(NEW + 1, image=np.zeros((4, 4), np.uint8)),
    ],
)
def test_a_camera_that_fails_is_opened_again(capturing: Any, until: Any, trouble: Any) -> None:
    camera = Camera("a", Frame(NEW + 1, image=IMAGE), trouble, Frame(NEW + 2, image=IMAGE))
    capture = capturing(camera)
    until(lambda: newest(capture) == NEW + 2, "the picture after the failure")
    assert camera.opened == 2 and camera.closed >= 1 and capture.failures == 1


def test_the_newest_picture_waits_and_those_overtaken_are_counted(
    capturing: Any, until: Any
) -> None:
    camera = Camera("a", *(Frame(NEW + k, image=IMAGE) for k in range(1, 6)))
    capture = capturing(camera)
    until(lambda: newest(capture) == NEW + 5, "the last picture")
    packet = capture.take()
    assert packet is not None and (packet.seq, packet.timestamp) == (4, NEW + 5)
    assert capture.dropped == 4 and capture.captured == 5
    assert capture.take() is None


def test_a_jpeg_of_the_device_passes_untouched(capturing: Any, until: Any) -> None:
    jpeg = encode_jpeg(IMAGE, 30)
    capture = capturing(Camera("a", Frame(NEW + 1, jpeg=jpeg)))
    until(lambda: capture.waits, "the picture")
    packet = capture.take()
    assert packet is not None and packet.jpeg is jpeg
    assert (packet.width, packet.height) == (64, 48)


def test_no_camera_is_starved_when_the_socket_takes_little() -> None:
    class Socket:
        """Takes a picture every few milliseconds."""

        sent: list[bytes]

        def __init__(self) -> None:
            self.sent = []

        def poll(self, *_: int) -> bool:
            time.sleep(0.002)
            return True

        def send_multipart(self, frames: list[bytes], _: int) -> None:
            self.sent.append(frames[0])

    fresh, stop, socket = threading.Event(), threading.Event(), Socket()
    shared = (fresh, Encoders(), StartLine(5))
    captures = [CameraCapture(Camera(name), 30, 75, *shared) for name in VIEWS]
    thread = threading.Thread(target=push, args=(socket, captures, fresh, stop))
    thread.start()
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        for capture in captures:
            capture._done(CameraFrame(capture.name, time.monotonic(), b"x"))
        time.sleep(0.001)
    stop.set()
    thread.join(5)
    counts = [capture.sent for capture in captures]
    assert min(counts) > 0.5 * max(counts) > 0


def test_the_made_up_pictures_move_and_differ() -> None:
    first, second = open_synthetic_cameras(64, 48, 200.0, ("a", "b"))
    first.open()
    second.open()
    one, two, other = first.read(1.0), first.read(1.0), second.read(1.0)
    first.close()
    assert one is not None and two is not None and other is not None
    assert one.image is not None and one.image.shape == (48, 64, 3)
    assert one.image.dtype == np.uint8
    assert (one.image != two.image).any() and (one.image != other.image).mean() > 0.5
    assert two.captured_at - one.captured_at == pytest.approx(0.005, abs=0.1)
    with pytest.raises(DriverError):
        first.read(0.1)
