"""What taking a rig's streams in costs, against the loop that rigs run today, both in one run.

python scripts/bench_ingest.py
"""

from __future__ import annotations

import gc
import multiprocessing
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from common import cli, endpoints, wire
from common.clock import Ticker
from common.heap import keep_freed_memory
from common.ring import SampleRing
from scripts.bench_ingest_plot import Figures, plot
from scripts.bench_ingest_sides import SAMPLE, Ours, Side, Theirs
from scripts.benches import BenchOutput, Comparison, report
from scripts.processes import start, stop_all

_WINDOW = 65
# As the receiver makes it for 650 samples a second.
_RING = (3 * _WINDOW, 1 + wire.ALINE_LENGTH, 325, 15)
_START_S = 30.0
_FRAMES_HZ = 150.0
_LOSS_PORT_STEP = 50  # the load's own samples go to the usual port


@dataclass(frozen=True)
class IngestOptions:
    """Compare parsing, processor time and losses; every figure is measured in this run."""

    seconds: float = 4.0
    """Length of a stretch in which one side takes the whole rig's load; the sides take turns."""
    turns: int = 5
    """Stretches of each side."""
    loss_s: float = 10.0
    """Seconds of samples at ten times the rate, for each side."""
    image_size: tuple[int, int] = (644, 364)
    """What the policy resizes pictures to, width and height."""
    port_offset: int = 700
    """Added to every port."""
    output: BenchOutput = field(default_factory=BenchOutput)


def _in_turns_s(
    works: tuple[Callable[[], object], ...], times: tuple[int, ...], rounds: int = 40
) -> list[list[float]]:
    """Processor seconds of one call of each, in each of the rounds in which they take turns."""
    took: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(rounds):
        for results, work, count in zip(took, works, times, strict=True):
            begin = time.thread_time()
            for _ in range(count):
                work()
            results.append((time.thread_time() - begin) / count)
    return took


def _datagram() -> bytes:
    rng = np.random.default_rng(0)
    stamps = 1.7e9 + np.arange(10) / 650
    values = rng.random((10, 1 + wire.ALINE_LENGTH), np.float32)
    return wire.encode_samples(wire.SampleBatch(stamps, stamps, values[:, 0], values[:, 1:]))


class Parsing:
    """A datagram of ten samples checked and stored, against struct, sample by sample."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._took: tuple[list[float], list[float]] = ([], [])

    def measure(self) -> None:
        """Take a few rounds: a fraction of a second, of a machine whose speed comes and goes."""
        data = _datagram()
        reader, ring = wire.SampleReader(data), SampleRing(*_RING)
        rows: list[tuple[float, ...]] = []

        def ours() -> None:
            stamps, values = reader.read(len(data))
            place = ring.reserve(len(values))
            place[:] = values
            wire.check_values(place)
            ring.commit(stamps[0])

        def theirs() -> None:
            (count,) = struct.unpack_from("<I", data)
            for index in range(count):
                rows.append(SAMPLE.unpack_from(data, 4 + index * SAMPLE.size))
            del rows[:-_WINDOW]

        found = _in_turns_s((ours, theirs), (200, 40))
        for known, more in zip(self._took, found, strict=True):
            known.extend(more)

    def seconds(self) -> tuple[float, float]:
        """Of a datagram, both sides: the medians of all rounds so far."""
        ours, theirs = map(statistics.median, self._took)
        return ours, theirs

    def row(self) -> Comparison:
        """Of all rounds so far."""
        name = "a datagram of 10 samples checked and stored, against struct"
        return _row(name, *self.seconds(), 1e6, "µs", 20.0)


def window() -> Comparison:
    """The newest window as an array: a view, against an array made of a list of rows."""
    ring = SampleRing(*_RING)
    ring.append(np.arange(300) / 650, np.random.default_rng(0).random((300, 1026), np.float32))
    rows = [tuple(row.tolist()) for row in ring.newest(_WINDOW)[1]]
    works = (lambda: ring.newest(_WINDOW), lambda: np.array(rows, np.float32))
    a, b = map(statistics.median, _in_turns_s(works, (1000, 5), 15))
    return _row("a window of 65 x 1,026 taken: a view, against an array of rows", a, b, 1e6, "µs")


def _row(
    name: str, ours: float, theirs: float, scale: float, unit: str, goal: float | None = None
) -> Comparison:
    ratio = theirs / ours
    return Comparison(
        name,
        f"{scale * ours:.3g} {unit}",
        f"{scale * theirs:.4g} {unit}",
        ratio,
        "" if goal is None else f"at least {goal:g}x",
        None if goal is None else ratio >= goal,
    )


def processor_time(options: IngestOptions, kind: str) -> tuple[list[Comparison], list[list[float]]]:
    """Processor seconds a second of a receiver under a whole rig's load, of that `kind`."""
    offset, image_size = options.port_offset, options.image_size
    makers: list[Callable[[], Side]] = [lambda: Ours(offset, image_size), lambda: Theirs(offset)]
    used: list[list[float]] = [[], []]
    frames = [0, 0]
    for _ in range(options.turns):
        for index, make in enumerate(makers):
            side = make()
            _wait_for_load(side)
            before, cpu = side.frames(), time.process_time()
            threading.Event().wait(options.seconds)
            spent_s, taken = time.process_time() - cpu, side.frames() - before
            side.close()
            # A side that cannot keep up leaves frames where they are, and saves itself their work:
            # its time is that of the frames it took in.
            used[index].append(spent_s * _FRAMES_HZ / max(taken, 1))
            frames[index] += taken
    a, b = (statistics.median(values) for values in used)
    row = _row(f"processor time for 5 x 30 frames of 1280x720, {kind}", a, b, 1e3, "ms/s", 6.0)
    rates = [f"{count / (options.seconds * options.turns):.0f}/s" for count in frames]
    return [row, Comparison(f"frames taken in of 150/s, {kind}", rates[0], rates[1])], used


def _wait_for_load(side: Side) -> None:
    until = time.monotonic() + _START_S
    while side.frames() < 50 or side.samples() < 500:
        if time.monotonic() > until:
            raise SystemExit("the load does not arrive: see load.log in the folder of the plots")
        threading.Event().wait(0.05)


def _send_samples(port: int, seconds: float, told: Connection) -> None:
    """Ten times the rate of a sensor for some seconds; tells how many samples were sent."""
    sock, data = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), bytearray(_datagram())
    stamps = np.ndarray((2, 10), "<f8", data, 4, (8, SAMPLE.size))
    behind = np.arange(-9, 1) / (10 * endpoints.SENSOR.rate_hz)
    sent, stop, end = 0, threading.Event(), time.monotonic() + seconds
    for _ in Ticker(endpoints.SENSOR.rate_hz).ticks(stop):
        if time.monotonic() > end:
            break
        stamps[:] = time.time() + behind
        sock.sendto(data, ("127.0.0.1", port))
        sent += 10
    told.send(sent)
    sock.close()


def loss(options: IngestOptions) -> tuple[Comparison, list[float]]:
    """Samples that do not arrive at ten times the rate, beside the cameras' whole load."""
    offset, shares, said = options.port_offset, [], []
    step = offset + _LOSS_PORT_STEP
    makers: list[Callable[[], Side]] = [
        lambda: Ours(offset, options.image_size, sensor_offset=step),
        lambda: Theirs(offset, sensor_offset=step),
    ]
    for make in makers:
        side = make()
        here, there = multiprocessing.get_context("spawn").Pipe()
        sender = multiprocessing.get_context("spawn").Process(
            target=_send_samples, args=(endpoints.SENSOR.port + step, options.loss_s, there)
        )
        sender.start()
        sent = int(here.recv()) if here.poll(options.loss_s + _START_S) else 0
        sender.join()
        if sent < 1000:
            raise SystemExit("the samples could not be sent")
        until = time.monotonic() + 2.0
        while side.samples() < sent and time.monotonic() < until:
            threading.Event().wait(0.05)
        missing = sent - side.samples()
        side.close()
        shares.append(missing / sent)
        said.append(f"{missing:,} of {sent:,} ({sent / options.loss_s:,.0f}/s)")
    row = Comparison(
        "samples lost at ten times the rate, beside all cameras",
        said[0],
        said[1],
        goal="0 lost",
        met=shares[0] == 0.0,
    )
    return row, shares


@contextmanager
def _load(options: IngestOptions, *more: str) -> Iterator[None]:
    """A whole rig's messages."""
    arguments = ["scripts/load_rig.py", "--port-offset", str(options.port_offset), *more]
    load = start("load", arguments, options.output.plots / "load.log")
    try:
        yield
    finally:
        stop_all([load])


def main() -> int:
    """Measure, print, draw; the exit code."""
    options = cli.parse(IngestOptions)
    # Both as in the receiver, and for both sides.
    sys.setswitchinterval(0.0005)
    keep_freed_memory()
    gc.collect()
    gc.freeze()
    parsing = Parsing()
    parsing.measure()
    newest = window()
    options.output.plots.mkdir(parents=True, exist_ok=True)
    with _load(options):
        more, used = processor_time(options, "free-running cameras")
        lost, shares = loss(options)
    parsing.measure()
    # Only the frames of triggered cameras arrive together: the sender leaves others their phase.
    with _load(options, "--together"):
        more += processor_time(options, "triggered cameras")[0]
    parsing.measure()
    rows = [parsing.row(), newest, *more, lost]
    report("taking the streams in, against the loop that rigs run today", rows, options.output)
    plot(Figures(parsing.seconds(), used, shares), options.output.plots / "ingest.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
