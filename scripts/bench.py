"""Measures our way beside the way rigs work today, both in this run, and prints the ratios.

python scripts/bench.py
"""

from __future__ import annotations

import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from common import cli, wire
from common.clock import Ticker
from common.ring import SampleRing
from receiver.histogram import Histogram
from receiver.priority import fast_loop_first
from senders.cameras.synthetic import open_synthetic_cameras

_WINDOW = 65


@dataclass(frozen=True)
class BenchOptions:
    """Run the benchmarks; every figure is measured on this machine, in this run."""

    seconds: float = 6.0
    """Length of each loop measurement."""
    slow_ms: float = 250.0
    """The slow pass of the loop measurement: this long a computation that frees Python's lock."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row: our figure, the other side's, and how many times better ours is."""

    name: str
    ours: str
    theirs: str
    ratio: float


def _median_s(work: Callable[[], object], repeats: int = 7, times: int = 1) -> float:
    """Seconds of one call, the median over repeats."""
    work()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(times):
            work()
        took.append((time.perf_counter() - start) / times)
    return statistics.median(took)


def parsing() -> Comparison:
    """A datagram of ten samples: one NumPy view and a ring, against struct, sample by sample."""
    rng = np.random.default_rng(0)
    stamps = 1.7e9 + np.arange(10) / 650
    alines = rng.random((10, 1025), np.float32)
    batch = wire.SampleBatch(stamps, stamps, rng.random(10, np.float32), alines)
    datagram = wire.encode_samples(batch)
    ring = SampleRing(_WINDOW, 1026, slack=650)

    def ours() -> None:
        decoded = wire.decode_samples(datagram)
        ring.append(decoded.timestamps, decoded.forces, decoded.alines)

    rows: list[tuple[float, ...]] = []
    sample = struct.Struct("<ddf1025f")

    def theirs() -> None:
        (count,) = struct.unpack_from("<I", datagram)
        for index in range(count):
            rows.append(sample.unpack_from(datagram, 4 + index * sample.size))
        del rows[:-_WINDOW]

    a, b = _median_s(ours, times=200), _median_s(theirs, times=50)
    return Comparison(
        "sensor datagram in, checked and stored", f"{a * 1e6:.0f} µs", f"{b * 1e6:.0f} µs", b / a
    )


def window() -> Comparison:
    """The newest window as an array: a view, against a list of rows made into an array."""
    ring = SampleRing(_WINDOW, 1026, slack=650)
    ring.append(np.arange(200) / 650, np.random.default_rng(0).random((200, 1026), np.float32))
    rows = [tuple(row.tolist()) for row in ring.newest(_WINDOW)[1]]
    a = _median_s(lambda: ring.newest(_WINDOW), times=1000)
    b = _median_s(lambda: np.array(rows, np.float32), times=5)
    return Comparison("sensor window taken", f"{a * 1e6:.1f} µs", f"{b * 1e6:.0f} µs", b / a)


def ingest() -> Comparison:
    """CPU of 5 views at 30 FPS, 1280x720: decode what is looked at, against every frame."""
    camera = open_synthetic_cameras(width=1280, height=720, fps=1000.0)[0]
    camera.open()
    frame = camera.read(5.0)
    camera.close()
    assert frame is not None
    assert frame.image is not None
    jpeg = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
    message = wire.encode_camera(wire.CameraFrame("View1", 1.7e9, jpeg, 1, 1.7e9))
    pixels = np.frombuffer(jpeg, np.uint8)

    def cpu_s(work: Callable[[], object], times: int) -> float:
        work()
        start = time.process_time()
        for _ in range(times):
            work()
        return (time.process_time() - start) / times

    check = cpu_s(lambda: wire.decode_camera(message), 300)
    decode = cpu_s(lambda: cv2.imdecode(pixels, cv2.IMREAD_COLOR_RGB), 30)
    a, b = 150 * check + 5 * 2.5 * decode, 150 * (check + decode)
    return Comparison(
        "CPU for 5 x 30 FPS at 1280x720, 2.5 VL updates/s",
        f"{a * 1e3:.0f} ms/s",
        f"{b * 1e3:.0f} ms/s",
        b / a,
    )


def _slow_pass(seconds: float) -> None:
    """Computes for this long without Python's lock, as a forward pass does."""
    end = time.monotonic() + seconds
    picture = np.zeros((1080, 1920, 3), np.uint8)
    while time.monotonic() < end:
        cv2.GaussianBlur(picture, (9, 9), 2.0)


def loops(rate_hz: float, options: BenchOptions) -> Comparison:
    """Lateness of a tick: two threads, against one loop that does the slow pass in between."""
    both, one = Histogram(), Histogram()
    stop = threading.Event()

    def slow() -> None:
        while not stop.is_set():
            _slow_pass(options.slow_ms / 1e3)

    def fast() -> None:
        fast_loop_first()  # as in the receiver: real time where the system permits
        end = time.monotonic() + options.seconds
        for tick in Ticker(rate_hz).ticks(stop):
            both.add(tick.lateness_s)
            if time.monotonic() > end:
                stop.set()

    threads = [threading.Thread(target=work, daemon=True) for work in (slow, fast)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    stop.clear()
    end, every = time.monotonic() + options.seconds, max(int(rate_hz * options.slow_ms / 1e3), 1)
    start, index = time.monotonic(), 0
    while time.monotonic() < end:
        due = start + index / rate_hz
        time.sleep(max(due - time.monotonic(), 0.0))
        one.add(time.monotonic() - due)
        if index % (2 * every) == 0:
            _slow_pass(options.slow_ms / 1e3)
        index += 1
    a, b = both.percentile(99), one.percentile(99)
    return Comparison(
        f"lateness p99 at {rate_hz:g} Hz beside passes of {options.slow_ms:g} ms",
        f"{a * 1e3:.2f} ms",
        f"{b * 1e3:.1f} ms",
        b / a,
    )


def main() -> int:
    """Run everything and print one table."""
    options = cli.parse(BenchOptions)
    sys.setswitchinterval(0.0005)  # as in the receiver
    table = Table(title="dualrate against the loop that rigs run today")
    for name in ("", "ours", "theirs", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    rows = [parsing(), window(), ingest()]
    rows += [loops(rate_hz, options) for rate_hz in (10.0, 100.0)]
    for row in rows:
        table.add_row(row.name, row.ours, row.theirs, f"{row.ratio:.1f}x")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
