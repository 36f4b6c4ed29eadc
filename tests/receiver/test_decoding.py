"""Pictures on their way to the policy: no larger than needed, and the same picture all the same."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from common.wire import MalformedMessage
from receiver.decoding import Decoder, reduction

TARGET = (644, 364)


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """A scene with edges, slopes and a colour that tells RGB from BGR."""
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 4, height))
    red = 140 + 60 * np.sin(x) * np.cos(y)
    image = np.stack([red, np.full_like(red, 60), 20 + 15 * y], axis=-1).astype(np.uint8)
    cv2.circle(image, (width // 3, height // 2), height // 4, (220, 200, 30), -1, cv2.LINE_AA)
    return image


def jpeg_of(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    coded = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", coded, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@pytest.fixture(params=[1, 3])
def decoder(request: pytest.FixtureRequest) -> Iterator[Decoder]:
    decoder = Decoder(TARGET, threads=request.param)
    yield decoder
    decoder.close()


@pytest.mark.parametrize(
    ("size", "target", "times"),
    [
        ((1280, 720), (644, 364), 2),  # the reference rig: 640x360, 1 % short
        ((1920, 1080), (644, 364), 2),
        ((2560, 1440), (644, 364), 4),
        ((640, 360), (644, 364), 1),
        ((1200, 720), (644, 364), 1),  # 600 is too narrow
        ((1280, 680), (644, 364), 1),  # 340 is too low
        ((720, 1280), (644, 364), 1),
        ((1280, 720), (308, 168), 4),
        ((4096, 4096), (308, 168), 8),
        ((16, 16), (308, 168), 1),
        ((1279, 719), (640, 360), 2),  # 640x360: sides are rounded up
    ],
)
def test_how_far_a_picture_can_be_reduced(
    size: tuple[int, int], target: tuple[int, int], times: int
) -> None:
    assert reduction(size, target) == times


@pytest.mark.parametrize(
    ("size", "decoded"),
    [((1280, 720), (360, 640)), ((640, 360), (360, 640)), ((2561, 1441), (361, 641))],
)
def test_the_picture_is_the_same_only_smaller(
    decoder: Decoder, size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    image = picture(*size)
    (got,) = decoder.decode({"View1": jpeg_of(image)}).values()
    assert (got.shape, got.dtype) == ((*decoded, 3), np.uint8)
    # As the policy sees it: full and reduced differ by less than a JPEG differs from its source.
    full = cv2.resize(image, TARGET, interpolation=cv2.INTER_AREA).astype(int)
    seen = cv2.resize(got, TARGET, interpolation=cv2.INTER_CUBIC).astype(int)
    assert np.abs(full - seen).mean() < 2.0
    assert np.corrcoef(full[..., 0].ravel(), seen[..., 0].ravel())[0, 1] > 0.99
    assert got[5, 5, 0] > got[5, 5, 2] + 50, "red comes first"


def test_every_view_gets_its_own_picture(decoder: Decoder) -> None:
    shades = {f"View{n}": 40 * n for n in (3, 1, 5, 2, 4)}
    jpegs = {v: jpeg_of(np.full((72, 128, 3), s, np.uint8)) for v, s in shades.items()}
    for _ in range(5):
        images = decoder.decode(jpegs)
        assert list(images) == list(shades)
        for view, image in images.items():
            assert abs(int(image.mean()) - shades[view]) <= 1


@pytest.mark.parametrize("broken", [b"", b"no picture", jpeg_of(picture(64, 36))[:-200]])
def test_a_broken_picture_is_named(decoder: Decoder, broken: bytes) -> None:
    good = jpeg_of(picture(64, 36))
    with pytest.raises(MalformedMessage, match="View2") as caught:
        decoder.decode({"View1": good, "View2": broken, "View3": good})
    assert (caught.value.stream, caught.value.reason) == ("camera", "undecodable")
    assert decoder.decode({"View1": good})["View1"].shape == (36, 64, 3)


def test_markers_without_a_picture_between_are_refused(decoder: Decoder) -> None:
    """Bytes that pass the check of the markers on arrival need not be a picture."""
    whole = jpeg_of(picture(64, 36))
    tables = whole.index(b"\xff\xc4")  # without its code tables nothing can be decoded
    hollow = bytearray(whole)
    hollow[tables + 4 : tables + 40] = b"\xff" * 36
    with pytest.raises(MalformedMessage, match="undecodable"):
        decoder.decode({"View1": bytes(hollow), "View2": whole})


def test_memory_that_is_no_bytes_object_is_taken(decoder: Decoder) -> None:
    assert decoder.decode({"View1": memoryview(jpeg_of(picture(64, 36)))})["View1"].any()


def test_python_goes_on_while_a_picture_is_decoded() -> None:
    """With the lock held, nobody else would run before the picture is done."""
    noise = np.random.default_rng(0).integers(0, 255, (3000, 3000, 3), np.uint8)
    jpeg, decoder, rounds = jpeg_of(noise), Decoder((3000, 3000), threads=1), 0
    interval = sys.getswitchinterval()
    for _ in range(20):  # a busy machine may not come to it the first time
        begun, done = threading.Event(), threading.Event()

        def work(begun: threading.Event = begun, done: threading.Event = done) -> None:
            begun.set()
            decoder.decode({"View1": jpeg})
            done.set()

        sys.setswitchinterval(30.0)  # nobody is asked to give the lock away
        try:
            thread = threading.Thread(target=work)
            thread.start()
            begun.wait(30)
            rounds = 0 if done.is_set() else 1
        finally:
            sys.setswitchinterval(interval)
        thread.join(60)
        if rounds:
            break
    assert rounds


def test_a_progressive_picture_is_taken_and_one_of_endless_scans_is_not(decoder: Decoder) -> None:
    image = cv2.cvtColor(picture(1280, 720), cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    progressive = cv2.imencode(".jpg", image, options)[1].tobytes()
    scans = progressive.count(b"\xff\xda")
    assert scans > 5
    assert decoder.decode({"View1": progressive})["View1"].shape == (360, 640, 3)
    # The last scan again and again: a few bytes each, and each takes a decoder through the whole.
    begin, end = progressive.rindex(b"\xff\xda"), progressive.rindex(b"\xff\xd9")
    endless = progressive[:end] + 1000 * progressive[begin:end] + progressive[end:]
    with pytest.raises(MalformedMessage, match="View1"):
        decoder.decode({"View1": endless})
