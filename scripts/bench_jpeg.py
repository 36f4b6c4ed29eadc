"""Measures JPEG encoders beside each other, all in this run: what the camera sender encodes with.

python scripts/bench_jpeg.py
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from common import cli
from senders.cameras.synthetic import open_synthetic_cameras
from senders.encoding import encode_jpeg

Encoder = Callable[[], bytes]


@dataclass(frozen=True)
class BenchOptions:
    """Compare JPEG encoders on one picture; ratios are against OpenCV's, measured in turns."""

    width: int = 1280
    """Pixels."""
    height: int = 720
    """Pixels."""
    quality: int = 75
    """JPEG quality, 1 to 100."""
    rounds: int = 9
    """Each figure is the median over so many rounds, in which the encoders take turns."""
    frames: int = 20
    """Pictures that each encoder encodes in a round."""


@dataclass
class Figures:
    """What one encoder measured in all rounds.

    Attributes:
        alone_ms: one thread, milliseconds a picture.
        scaling: pictures of two threads in the time of one's: 2 frees Python's lock entirely.
        delay_ms: by how much a Python thread wakes late while another encodes, 99th percentile.
        size: bytes of the JPEG.
    """

    alone_ms: list[float]
    scaling: list[float]
    delay_ms: list[float]
    size: int


def picture(options: BenchOptions) -> NDArray[np.uint8]:
    """A made-up camera's picture: shading, texture, grain, text."""
    camera = open_synthetic_cameras(options.width, options.height, 1000.0)[0]
    camera.open()
    frame = camera.read(5.0)
    camera.close()
    assert frame is not None
    assert frame.image is not None
    return frame.image


def encoders(image: NDArray[np.uint8], quality: int) -> dict[str, Encoder]:
    """Those that are installed, by name; each encodes `image` as baseline 4:2:0."""
    subsampled = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, *subsampled]

    def opencv() -> bytes:
        return bytes(cv2.imencode(".jpg", image, options)[1])

    found: dict[str, Encoder] = {f"OpenCV {cv2.__version__}": opencv}
    try:
        import simplejpeg  # type: ignore[import-not-found,import-untyped,unused-ignore]

        found[f"simplejpeg {simplejpeg.__version__}"] = lambda: simplejpeg.encode_jpeg(
            image, quality, "BGR", "420"
        )
    except ImportError as error:
        why = " ".join(str(error).split())
        print(f"left out: {why}; needs libturbojpeg 3, or version 1 of the package and 2 of that")
    try:
        import turbojpeg  # type: ignore[import-not-found,import-untyped,unused-ignore]

        turbo = turbojpeg.TurboJPEG()
        found[f"PyTurboJPEG {version('PyTurboJPEG')}"] = lambda: turbo.encode(
            image, quality, turbojpeg.TJPF_BGR, turbojpeg.TJSAMP_420
        )
    except (ImportError, RuntimeError) as error:
        why = " ".join(str(error).split())
        print(f"left out: {why}; PyTurboJPEG 2 needs libturbojpeg 3, version 1 takes 2")
    found["camera sender"] = lambda: encode_jpeg(image, quality)
    return found


def _together_s(encode: Encoder, frames: int, threads: int) -> float:
    """Seconds in which `threads` threads encode `frames` pictures each."""

    def work() -> None:
        for _ in range(frames):
            encode()

    started = [threading.Thread(target=work) for _ in range(threads)]
    begin = time.perf_counter()
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return time.perf_counter() - begin


def _delay_ms(encode: Encoder, frames: int) -> float:
    """How late a thread that sleeps a millisecond at a time wakes beside an encoding one."""
    worker = threading.Thread(target=_together_s, args=(encode, frames, 1))
    late = []
    worker.start()
    while worker.is_alive():
        due = time.perf_counter() + 0.001
        time.sleep(0.001)
        late.append((time.perf_counter() - due) * 1e3)
    return float(np.percentile(late, 99))


def measure(options: BenchOptions) -> dict[str, Figures]:
    """The figures of every encoder; they take turns, so that a busy moment hits all alike."""
    ways = encoders(picture(options), options.quality)
    figures = {name: Figures([], [], [], len(encode())) for name, encode in ways.items()}
    for _ in range(options.rounds):
        for name, encode in ways.items():
            one = _together_s(encode, options.frames, 1)
            two = _together_s(encode, options.frames, 2)
            figures[name].alone_ms.append(one / options.frames * 1e3)
            figures[name].scaling.append(2 * one / two)
            figures[name].delay_ms.append(_delay_ms(encode, options.frames))
    return figures


def main() -> None:
    """Print one table."""
    options = cli.parse(BenchOptions)
    cv2.setNumThreads(1)
    figures = measure(options)
    table = Table(title=f"{options.width}x{options.height}, quality {options.quality}, 4:2:0")
    for column in ("encoder", "ms a picture", "× OpenCV", "two threads", "p99 delay", "bytes"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    first = next(iter(figures.values()))
    for name, of in figures.items():
        ratio = statistics.median(
            base / mine for base, mine in zip(first.alone_ms, of.alone_ms, strict=True)
        )
        table.add_row(
            name,
            f"{statistics.median(of.alone_ms):.2f}",
            f"{ratio:.2f}",
            f"{statistics.median(of.scaling):.2f} ×",
            f"{statistics.median(of.delay_ms):.2f} ms",
            f"{of.size:,}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
