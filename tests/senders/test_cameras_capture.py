"""Capture: the common start and grid, the encoders, what is dropped and what must not be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from common.jpeg import jpeg_size
from senders import capture as capture_module
from senders.capture import CameraCapture, FrameGate, StartLine
from senders.drivers import DriverError, Frame, RecordingOver
from senders.encoding import Encoders, encode_jpeg
from senders.picture_queue import PictureQueue
from tests.support import wait_until

IMAGE = np.full((48, 64, 3), 100, np.uint8)


class Camera:
    """A camera whose pictures and moments a test decides on."""

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.frames: list[Frame] = []
        self.waits = threading.Event()  # set: `open` returns
        self.waits.set()
        self.error: Exception | None = None
        self.endless = False  # set: pictures of now, for ever
        self.opened = self.reads = 0

    def open(self) -> None:
        assert self.waits.wait(20)
        if self.error is not None:
            raise self.error
        self.opened += 1

    def read(self, timeout_s: float) -> Frame | None:
        self.reads += 1
        if not self.frames:
            time.sleep(0.005)
            return Frame(4e9, image=IMAGE) if self.endless else None
        return self.frames.pop(0)

    def close(self) -> None:
        pass


class Recording(Camera):
    """A recording: as fast as it is read, then over."""

    recorded = True

    def read(self, timeout_s: float) -> Frame | None:
        if not self.frames:
            raise RecordingOver("the end")
        return super().read(timeout_s)


Begin = Callable[..., list[CameraCapture]]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """`begin(*cameras)`: their captures, running, with encoders (unless `encoders=0`)."""
    stop, threads = threading.Event(), []

    def start(
        *cameras: Camera, encoders: int = 2, limit_s: float = 10.0, fps: float = 240.0
    ) -> list[CameraCapture]:
        pool, line = Encoders(max(encoders, 1)), StartLine(len(cameras), limit_s)
        fresh = threading.Event()
        made = [CameraCapture(c, fps, 75, fresh, pool, line) for c in cameras]
        new = [threading.Thread(target=c.run, args=(stop,)) for c in made]
        new += pool.threads(stop) if encoders else []
        for thread in new:
            thread.start()
        threads.extend(new)
        return made

    yield start
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


# --- the common grid -----------------------------------------------------------------------------


def test_the_gate_thins_a_fast_camera_out_and_leaves_a_jittery_one_alone() -> None:
    fast = FrameGate(30.0)
    assert sum(fast.passes(100 + k / 60) for k in range(600)) == pytest.approx(300, abs=2)
    jitter = np.random.default_rng(0).uniform(-0.01, 0.01, 300)
    for phase in np.linspace(0, 1 / 30, 7):
        alike = FrameGate(30.0)
        passed = sum(alike.passes(100 + phase + k / 30 + jitter[k]) for k in range(300))
        assert passed >= 298, phase
    slow = FrameGate(30.0)
    assert all(slow.passes(100 + k / 12) for k in range(100))


def test_fast_cameras_with_any_phase_are_thinned_out_to_one_grid() -> None:
    origin, device_s = 1000.0, 1 / 60
    rng = np.random.default_rng(1)
    kept = []
    for late, phase in enumerate(rng.uniform(0, device_s, 5)):
        gate = FrameGate(30.0, origin)
        moments = [origin + phase + (late + k) * device_s for k in range(600)]
        kept.append([m for m in moments if gate.passes(m)][10:250])
    nearest = np.array(
        [[min(abs(m - other) for other in kept[0]) for m in row[5:-5]] for row in kept]
    )
    # Devices of their own phases can come no closer than one of their periods, and do.
    assert nearest.max() <= device_s + 1e-6
    grid = (np.array(kept) - origin) * 30 % 1
    assert ((grid < 0.01) | (grid >= 0.49)).all()  # within the period before a grid point


def test_a_camera_slightly_off_the_rate_loses_no_more_than_it_must() -> None:
    for rate in (29.97, 30.03):
        gate = FrameGate(30.0, origin=5.0)
        passed = sum(gate.passes(5.0 + k / rate) for k in range(6000))
        assert passed >= 6000 - 10


# --- the common start ----------------------------------------------------------------------------


def test_no_camera_begins_before_all_are_open(begin: Begin) -> None:
    early, late = Camera("early"), Camera("late")
    late.waits.clear()
    early.frames = [Frame(4e9, image=IMAGE) for _ in range(3)]
    first, second = begin(early, late)
    wait_until(lambda: not early.frames, "the early camera's first pictures")
    assert first.captured == 0 and not first._start.started
    late.waits.set()
    wait_until(lambda: late.reads and first._start.started, "both")
    early.frames, late.frames = ([Frame(4e9, image=IMAGE)] for _ in range(2))
    wait_until(lambda: first.waits and second.waits, "both cameras' first pictures")
    assert first.captured == second.captured == 1


def test_a_recording_waits_with_its_first_picture_for_the_others(begin: Begin) -> None:
    recording, late = Recording("recording"), Camera("late")
    late.waits.clear()
    recording.frames = [Frame(float(k), image=IMAGE) for k in range(3)]
    (capture, _) = begin(recording, late)
    wait_until(lambda: recording.opened, "the recording")
    assert recording.reads == 0
    late.waits.set()
    wait_until(lambda: capture.over and capture.captured == 3, "all of the recording")


def test_a_camera_that_fails_or_hangs_does_not_hold_the_others(begin: Begin) -> None:
    well, broken = Camera("well"), Camera("broken")
    broken.error = DriverError("unplugged")
    well.endless = True
    (capture, _) = begin(well, broken)
    wait_until(lambda: capture.captured, "the camera that works", 8)
    hung, other = Camera("hung"), Camera("other")
    hung.waits.clear()
    other.endless = True
    began = time.monotonic()
    (_, capture) = begin(hung, other, limit_s=0.5)
    wait_until(lambda: capture.captured, "the camera that does not hang", 8)
    assert capture._start.origin - began >= 0.5
    hung.waits.set()


def test_pictures_of_before_the_start_are_not_sent(begin: Begin) -> None:
    camera = Camera()
    old = Frame(time.time() - 0.5, image=IMAGE)
    camera.frames = [old, old]
    (capture,) = begin(camera)
    wait_until(lambda: not camera.frames, "the old pictures")
    assert not capture.waits and capture.captured == 0
    # One whose clock is wrong is not silenced for ever.
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 1.1, "a second")
    camera.frames = [Frame(5.0, image=IMAGE)]
    wait_until(lambda: capture.waits, "the picture with a wrong stamp")


# --- encoding ------------------------------------------------------------------------------------


def test_a_jpeg_is_baseline_420_of_the_same_picture() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, 32:] = (200, 100, 50)
    jpeg = encode_jpeg(image, 90)
    assert jpeg_size(jpeg) == (64, 48)
    back = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert back is not None and np.abs(back.astype(int) - image).mean() < 5


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (4, 70000, 3)])
def test_what_cannot_be_encoded_is_a_driver_s_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(DriverError):
        encode_jpeg(np.zeros(shape, np.uint8), 75)


def test_capture_goes_on_while_the_encoders_are_stuck(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, busy = threading.Event(), threading.Event()

    def slow(image: Any, quality: int) -> bytes:
        busy.set()
        assert stuck.wait(20)
        return encode_jpeg(image, quality)

    monkeypatch.setattr(capture_module, "encode_jpeg", slow)
    camera = Camera()
    (capture,) = begin(camera, encoders=1)
    # A picture of before the common start would rightly be left out.
    wait_until(lambda: capture._start.started, "the start")
    camera.frames = [Frame(time.time(), image=IMAGE)]
    wait_until(busy.is_set, "the encoder")
    for count in range(2, 6):
        camera.frames.append(Frame(time.time(), image=IMAGE))
        wait_until(lambda count=count: capture.captured == count, "the next picture")
    assert capture.dropped == 3  # one is being encoded, the newest waits
    stuck.set()
    wait_until(lambda: (packet := capture.take()) is not None and packet.seq == 4, "the newest")


def test_one_camera_s_pictures_stay_in_order_with_many_encoders(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uneven(image: Any, quality: int) -> bytes:
        time.sleep(0.01 if image[0, 0, 0] % 2 else 0.0)
        return encode_jpeg(image, quality)

    monkeypatch.setattr(capture_module, "encode_jpeg", uneven)
    camera = Recording()
    camera.frames = [Frame(float(k), image=np.full((16, 16, 3), k, np.uint8)) for k in range(30)]
    (capture,) = begin(camera, encoders=4)
    wait_until(lambda: capture.over and capture._jpegs.waits, "the recording")
    seqs: list[int] = []

    def taken() -> bool:
        while (packet := capture.take()) is not None:
            assert packet.seq is not None
            seqs.append(packet.seq)
        return len(seqs) == 30

    wait_until(taken, "all pictures")
    assert seqs == list(range(30))


def test_an_encoder_s_failure_opens_that_camera_again(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(image: Any, quality: int) -> bytes:
        if image[0, 0, 0] == 1:
            raise MemoryError("no room")
        return encode_jpeg(image, quality)

    monkeypatch.setattr(capture_module, "encode_jpeg", broken)
    camera = Camera()
    (capture,) = begin(camera, encoders=1)
    # A picture of before the common start would rightly be left out.
    wait_until(lambda: capture._start.started, "the start")
    camera.frames = [Frame(time.time(), image=np.full((16, 16, 3), 1, np.uint8))]
    wait_until(lambda: capture.spoilt == 1, "the failure")

    def another() -> bool:
        camera.frames = camera.frames or [Frame(time.time(), image=IMAGE)]
        return capture.waits

    wait_until(another, "a picture")
    assert camera.opened == 2 and capture.failures == 1


# --- recordings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device_encodes", [False, True])
def test_nothing_of_a_recording_is_lost_though_nobody_takes_it_for_long(
    begin: Begin, device_encodes: bool
) -> None:
    jpeg = encode_jpeg(IMAGE, 75)
    picture: dict[str, Any] = {"jpeg": jpeg} if device_encodes else {"image": IMAGE}
    camera = Recording()
    camera.frames = [Frame(float(k), **picture) for k in range(200)]
    (capture,) = begin(camera, fps=1.0)  # no gate either
    held = 64 + (1 if device_encodes else 5)
    wait_until(lambda: capture.captured == held, "the queue to fill")
    assert len(camera.frames) == 200 - held
    stamps: list[float] = []
    given_back = set[float]()

    def taken() -> bool:
        packet = capture.take()
        if packet is None:
            return capture.finished
        if packet.timestamp % 10 == 0 and packet.timestamp not in given_back:
            given_back.add(packet.timestamp)
            capture.give_back(packet)  # as when the socket is full after all
            return False
        stamps.append(packet.timestamp)
        capture.sent += 1
        return capture.finished

    wait_until(taken, "the whole recording")
    assert stamps == [float(k) for k in range(200)]
    assert capture.dropped == 0 and capture.over


def test_a_queue_of_the_newest_drops_the_oldest_and_counts() -> None:
    queue, stop = PictureQueue[int](2), threading.Event()
    for number in range(5):
        queue.put(number, stop)
    assert (queue.dropped, queue.take(), queue.take(), queue.take()) == (3, 3, 4, None)
    queue.put(7, stop)
    queue.put(8, stop)
    queue.give_back(6)
    assert (queue.dropped, queue.take()) == (4, 7)


def test_a_full_lossless_queue_lets_go_at_a_stop() -> None:
    queue, stop = PictureQueue[int](1, lossless=True), threading.Event()
    queue.put(1, stop)
    waiting = threading.Thread(target=queue.put, args=(2, stop))
    waiting.start()
    stop.set()
    waiting.join(10)
    assert not waiting.is_alive()
    assert (queue.dropped, queue.take()) == (1, 1)
