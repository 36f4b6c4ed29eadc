"""The serial force sensor: real pyserial over a pseudo-terminal, the real program, its parts."""

from __future__ import annotations

import binascii
import itertools
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("serial")

import serial
from hypothesis import given, settings
from hypothesis import strategies as st
from serial.tools import list_ports

from common.program import OptionError
from common.wire import SampleBatch, decode_samples
from senders import registry, sensors
from senders.batcher import Batcher
from senders.drivers import DriverError, RecordingOver, SampleBlock
from senders.force_sensor_sender import DatagramSender, SensorSender
from senders.sensors.serial_clock import DeviceTime, SampleClock
from senders.sensors.serial_force import SerialForceSensor
from senders.sensors.serial_frames import FrameFormat, FrameParser, crc16_modbus
from senders.sensors.serial_lines import MAX_LINE, LineFormat, LineParser
from senders.sensors.serial_ports import bytes_of, find_port
from senders.sensors.serial_tare import Tare
from tests.senders.fake_serial_sensor import FakeSerialSensor
from tests.support import wait_until

PERIOD_S = 1 / 650


class Inbox:
    """A receiver's UDP socket that decodes what comes."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]
        self.batches: list[SampleBatch] = []

    def look(self) -> int:
        """Take what came; samples so far."""
        while True:
            try:
                self.batches.append(decode_samples(self.socket.recv(65_535)))
            except BlockingIOError:
                return sum(len(batch) for batch in self.batches)

    @property
    def stamps(self) -> np.ndarray:
        return np.concatenate([batch.timestamps for batch in self.batches])

    @property
    def forces(self) -> np.ndarray:
        return np.concatenate([batch.forces for batch in self.batches])


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    yield made
    made.socket.close()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., FakeSerialSensor]]:
    made: list[FakeSerialSensor] = []

    def make(record: Callable[[int], bytes], **how: Any) -> FakeSerialSensor:
        made.append(FakeSerialSensor(tmp_path / "ttyFAKE", record, **how))
        return made[-1]

    yield make
    for device in made:
        device.unplug()


def line(n: int) -> bytes:
    """A line whose raw value says which sample it is."""
    return b"%d,%d\r\n" % (n, n % 20_000)


def frame(n: int) -> bytes:
    body = b"\xaa\x55" + struct.pack("<hH", n % 20_000, n & 0xFFFF)
    return body + struct.pack("<H", crc16_modbus(body))


FRAME = FrameFormat(
    b"\xaa\x55", 8, force_at=2, ticks_type="uint16", ticks_at=4, checksum="crc16-modbus"
)
FRAME_OPTIONS = [
    "format=binary",
    "sync=aa55",
    "length=8",
    "force_type=int16",
    "force_at=2",
    "ticks_type=uint16",
    "ticks_at=4",
    "tick_wrap=65536",
    "checksum=crc16-modbus",
    "scale=0.001",
]
LINE_OPTIONS = ["format=line", "columns=2", "column=2", "ticks_column=1", "scale=0.001"]


def collect(sensor: SerialForceSensor, count: int) -> SampleBlock:
    """At least so many samples."""
    blocks: list[SampleBlock] = []

    def enough() -> bool:
        block = sensor.read(0.05)
        if block is not None:
            blocks.append(block)
        return sum(len(b.timestamps) for b in blocks) >= count

    wait_until(enough, f"{count} samples")
    return SampleBlock(
        np.concatenate([b.timestamps for b in blocks]),
        np.concatenate([b.forces for b in blocks]),
        np.concatenate([b.alines for b in blocks]),
    )


# --- the program ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "options", "burst"), [(line, LINE_OPTIONS, 1), (frame, FRAME_OPTIONS, 10)]
)
def test_the_program_sends_every_sample_in_order_scaled_and_evenly_stamped(
    start: Any, inbox: Inbox, fake: Any, tmp_path: Path, record: Any, options: Any, burst: int
) -> None:
    fake(record, burst=burst, start_on=b"go\n")
    config = tmp_path / "sensor.yaml"
    listed = [f"port={tmp_path}/ttyFAKE", "start=go\\n", *options]
    config.write_text("driver: serial\nserver_ip: 127.0.0.1\ndriver_options:\n" + "".join(
        f"  - '{option}'\n" for option in listed
    ))  # fmt: skip
    program = start("force_sensor_sender", "--config", config, "--port", inbox.port)
    wait_until(lambda: inbox.look() >= 2600, "2600 samples")
    now = time.time()
    assert program.stop() == 0, program.said
    assert program.said.count("no A-scan: zeros are sent (1025 a sample)") == 1
    raw = np.rint(inbox.forces[:2600] / 0.001).astype(int)
    # The first line is taken for torn.
    assert np.diff(raw) == pytest.approx(1) and raw[0] <= 1
    assert inbox.forces[:2600] == pytest.approx((raw * 0.001).astype(np.float32), abs=0)
    assert all(not batch.alines.any() for batch in inbox.batches)
    spacing = np.diff(inbox.stamps[:2600])
    assert (spacing > 0).all()
    assert np.median(spacing[300:]) == pytest.approx(PERIOD_S, rel=0.03)
    assert np.percentile(np.abs(spacing[300:] - PERIOD_S), 80) < 0.25 * PERIOD_S
    span = inbox.stamps[2599] - inbox.stamps[300]
    assert span == pytest.approx(2299 * PERIOD_S, rel=0.03)
    assert now - 30 < inbox.stamps[2599] <= now + PERIOD_S
    sent = np.concatenate([batch.send_timestamps for batch in inbox.batches])[:2600]
    assert (inbox.stamps[:2600] <= sent + PERIOD_S).all()
    assert len(inbox.batches[20]) == 10
    assert "bad" not in program.said and "absurd" not in program.said


def test_a_sensor_that_is_unplugged_and_put_back_goes_on(
    start: Any, inbox: Inbox, fake: Any, tmp_path: Path
) -> None:
    device = fake(lambda n: line(300 + n % 2), start_on=b"go")
    options = [f"port={tmp_path}/ttyFAKE", "start=go", "tare_s=0.3", *LINE_OPTIONS[:3]]
    options += ["scale=0.001"]
    where = ("--server-ip", "127.0.0.1", "--port", inbox.port)
    program = start(
        "force_sensor_sender", "--driver", "serial", *where, "--driver-options", *options
    )
    wait_until(lambda: inbox.look() >= 200, "samples")
    device.unplug()
    wait_until(lambda: "next try in" in program.said, "a word of the loss")
    device.plug()
    before = inbox.look()
    wait_until(lambda: inbox.look() >= before + 300, "samples after the reconnection")
    assert program.stop() == 0, program.said
    assert "Traceback" not in program.said
    assert program.said.count("is taken off every force") == 1  # not again
    tares = [part for part in program.said.split("\n") if part.startswith("tare ")]
    assert float(tares[0].split()[1]) == pytest.approx(0.3005, abs=2e-4)
    assert np.abs(inbox.forces).max() < 0.0007
    assert (np.diff(inbox.stamps) > 0).all()
    assert np.diff(inbox.stamps).max() > 0.05  # the gap is a gap in time too


def test_a_silent_device_is_opened_again(
    start: Any, inbox: Inbox, fake: Any, tmp_path: Path
) -> None:
    fake(line, start_on=b"never")
    where = ("--server-ip", "127.0.0.1", "--port", inbox.port)
    program = start(
        "force_sensor_sender", "--driver", "serial", *where,
        "--driver-options", f"port={tmp_path}/ttyFAKE",
    )  # fmt: skip
    wait_until(lambda: "no sample for 3 s" in program.said, "a word of the silence")
    assert program.stop() == 0 and inbox.look() == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "port is needed"),
        (("port=auto", "format=morse"), "format must be line or binary"),
        (("port=auto", "baud=fast"), "baud must be a int"),
        (("port=auto", "format=binary"), "need sync"),
        (("port=auto", "format=binary", "sync=a"), "not hexadecimal"),
        (("port=auto", "format=binary", "sync=aa55", "length=6", "force_at=5"), "force_at"),
        (("port=auto", "format=binary", "sync=aa", "length=300"), "length must be"),
        (("port=auto", "format=binary", "sync=aa", "length=8", "checksum=md5"), "checksum must"),
        (("port=auto", "format=binary", "sync=aa", "length=8", "force_type=text"), "force_type"),
        (("port=auto", r"pattern=(a+)+b"), "no repeated groups"),
        (("port=auto", r"pattern=.*.*.*.*.*(x)"), "at most 4"),
        (("port=auto", r"pattern=(\d"), "no regular expression"),
        (("port=auto", r"pattern=\d+"), "one group"),
        (("port=auto", "tare_s=3"), "tare_s must be from 0 to 2"),
        (("port=auto", "scale=0"), "scale must be"),
        (("port=auto", "column=3", "columns=2"), "no column 3"),
        (("port=auto", "start=\\x"), "broken escape"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(options: tuple[str, ...], said: str) -> None:
    with pytest.raises(OptionError) as refused:
        registry.make(sensors.DRIVERS, "serial", {"rate_hz": 650.0}, options)
    assert said in str(refused.value) and "\n" not in str(refused.value)


# --- the driver over a pseudo-terminal -----------------------------------------------------------


def spoilt(n: int) -> bytes:
    """Every 20th frame is broken in its own way, none of them a sample."""
    good = frame(n)
    if n % 20:
        return good
    broken = (
        good[:5],  # cut short
        good[:3] + b"\xff" + good[4:],  # a wrong sum
        b"\xaa\x55\xaa" + good[3:],  # begins anew within itself
        b"\x00\xaa" + good[1:2] * 3,
    )
    return broken[n // 20 % 4]


def test_broken_frames_are_left_out_and_no_other(fake: Any, tmp_path: Path) -> None:
    device = fake(spoilt)
    sensor = registry.make(
        sensors.DRIVERS, "serial", {}, [f"port={tmp_path}/ttyFAKE", *FRAME_OPTIONS]
    )
    sensor.open()
    found = collect(sensor, 800)
    sensor.close()
    sensor.close()
    raw = np.rint(found.forces / 0.001).astype(int)
    first = raw[0]
    expected = [n for n in range(first, raw[-1] + 1) if n % 20]
    assert raw.tolist() == expected
    assert sensor.counts["bad"] >= 30 and sensor.counts["lost"] >= 38
    assert sensor.counts["absurd"] == 0
    assert (np.diff(found.timestamps) > 0).all()
    # The counter tells that a sample is missing: the time it would have had stays empty.
    gaps = np.diff(found.timestamps)[200:][np.diff(raw)[200:] == 2]
    assert np.median(gaps) == pytest.approx(2 * PERIOD_S, rel=0.1)
    assert device.sent >= 800


def test_noise_between_lines_is_never_a_sample(fake: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)

    def noisy(n: int) -> bytes:
        if n % 10:
            return b"N%06d F%.3f\r\n" % (n, 0.25)
        noise = bytes(rng.integers(0, 256, 30, np.uint8)).replace(b"\n", b"?")
        return noise + (b"\n" if n % 20 else b"1.5,,\n\n-\nnan\n1e999,2\nF9999999\n")

    fake(noisy)
    options = [f"port={tmp_path}/ttyFAKE", r"pattern=N(?P<ticks>\d{6}) F(?P<force>-?\d\.\d{3})"]
    sensor = registry.make(sensors.DRIVERS, "serial", {}, options)
    sensor.open()
    found = collect(sensor, 600)
    sensor.close()
    assert set(found.forces.tolist()) == {0.25}
    assert sensor.counts["bad"] > 60


def test_values_that_no_force_has_are_counted_and_left_out(fake: Any, tmp_path: Path) -> None:
    odd = {3: b"nan\n", 5: b"-inf\n", 7: b"1e30\n", 8: b"1e999\n"}
    fake(lambda n: odd.get(n % 10, b"0.5\n"))
    sensor = SerialForceSensor(port=f"{tmp_path}/ttyFAKE")
    sensor.open()
    found = collect(sensor, 200)
    sensor.close()
    assert set(found.forces.tolist()) == {0.5}
    assert sensor.counts["absurd"] >= 100 and sensor.counts["bad"] == 0


def test_bytes_without_a_sample_say_so(fake: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fake(lambda n: bytes(rng.integers(0, 256, 16, np.uint8)))
    options = [f"port={tmp_path}/ttyFAKE", *FRAME_OPTIONS]
    sensor = registry.make(sensors.DRIVERS, "serial", {}, options)
    sensor.open()
    with pytest.raises(DriverError, match=r"no sample .*check baud, format and scale"):
        wait_until(lambda: sensor.read(0.05) is not None, "never")
    assert sensor._parser.held < 64
    sensor.close()


def test_a_port_is_this_programs_alone_and_a_missing_one_is_one_line(
    fake: Any, tmp_path: Path
) -> None:
    device = fake(lambda n: b"1\n")
    first = SerialForceSensor(port=f"{tmp_path}/ttyFAKE")
    second = SerialForceSensor(port=f"{tmp_path}/ttyFAKE")
    first.open()
    with pytest.raises(DriverError, match="another program has it open"):
        second.open()
    collect(first, 5)
    device.unplug()
    with pytest.raises(DriverError) as lost:
        wait_until(lambda: first.read(0.05) is not None and False, "the loss")
    assert "ttyFAKE" in str(lost.value) and "\n" not in str(lost.value)
    first.close()
    with pytest.raises(DriverError, match="No such file"):
        first.open()
    with pytest.raises(DriverError, match="not open"):
        first.read(0.1)
    device.plug()
    first.open()
    collect(first, 5)
    first.close()


def test_start_and_stop_commands_reach_the_device(fake: Any, tmp_path: Path) -> None:
    device = fake(lambda n: b"1\n", start_on=b"\x02go\r\n")
    sensor = SerialForceSensor(
        port=f"{tmp_path}/ttyFAKE", start="\\x02go\\r\\n", stop="hex:fe 00", rate_hz=650
    )
    sensor.open()
    collect(sensor, 5)
    sensor.close()
    wait_until(lambda: device.heard.endswith(b"\xfe\x00"), "the stop command")


def test_the_only_adapter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = [SimpleNamespace(device="/dev/ttyS0", description="n/a", vid=None)]
    monkeypatch.setattr(list_ports, "comports", lambda: ports)
    with pytest.raises(DriverError, match="no USB serial adapter"):
        find_port()
    ports.append(SimpleNamespace(device="/dev/ttyUSB1", description="FT232R", vid=0x0403))
    assert find_port() == "/dev/ttyUSB1"
    ports.append(SimpleNamespace(device="/dev/ttyACM0", description="board", vid=0x2341))
    with pytest.raises(DriverError, match=r"/dev/ttyACM0 \(board\), /dev/ttyUSB1"):
        find_port()


def test_the_library_raises_what_the_driver_catches() -> None:
    assert issubclass(serial.SerialException, OSError)


# --- parsers -------------------------------------------------------------------------------------


def fed(parser: LineParser | FrameParser, data: bytes, cuts: list[int]) -> list[Any]:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    found = []
    for first, last in itertools.pairwise(places):
        found += parser.feed(data[first:last])
        assert parser.held <= MAX_LINE
    return found


def parsers() -> list[Callable[[], LineParser | FrameParser]]:
    return [
        lambda: LineParser(LineFormat(column=2, ticks_column=1)),
        lambda: LineParser(LineFormat(separator="space")),
        lambda: LineParser(LineFormat(pattern=r"(-?\d+\.?\d*)\D*", line_end="cr")),
        lambda: FrameParser(FRAME),
        lambda: FrameParser(FrameFormat(b"\xaa\xaa", 5, "uint8", 2, checksum="sum8")),
        lambda: FrameParser(FrameFormat(b"\x00", 6, "float32", 1, endian="big")),
    ]


PIECES = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 70_000).map(line),
    st.integers(0, 70_000).map(frame),
    st.sampled_from([b"\n", b"\r", b"\xaa", b"\xaa\x55", b"\xaa\xaa\x01\x02\x57", b"\x00" * 12]),
    st.sampled_from([b"9" * 255, b"9" * 256 + b"\n", b"9" * 257 + b"\n", b"x" * 600]),
    st.floats(width=32).map(lambda value: f" {value},{value}\r\n".encode()),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(PIECES, max_size=25).map(b"".join),
    st.lists(st.integers(0, 1500), max_size=40),
    st.integers(0, 5),
)
def test_samples_do_not_depend_on_where_the_bytes_are_cut(
    data: bytes, cuts: list[int], which: int
) -> None:
    make = parsers()[which]
    whole, pieces, single = make(), make(), make()
    # The end that a cut may leave hanging is finished alike.
    tail = b"\n" * 300 if isinstance(whole, LineParser) else b""
    expected = fed(whole, data + tail, [])
    for parser, places in ((pieces, cuts), (single, list(range(len(data))))):
        assert repr(fed(parser, data + tail, places)) == repr(expected)
        assert parser.bad == whole.bad


def test_a_torn_first_line_is_no_sample() -> None:
    parser = LineParser(LineFormat())
    assert parser.feed(b"2.5\n") == [] and parser.bad == 0
    assert [value for value, _ in parser.feed(b"0.5\n0.")] == [0.5]
    assert [value for value, _ in parser.feed(b"75\n")] == [0.75]
    parser.begin_again()
    assert parser.feed(b"9\n") == []


@pytest.mark.parametrize("text", [b"1_0", b"0x10", b"1e", b"--1", b"1 2", b"", "\u0661".encode()])
def test_what_is_no_plain_number_is_no_sample(text: bytes) -> None:
    parser = LineParser(LineFormat(column=2))
    assert parser.feed(b"\n1," + text + b"\n") == []
    assert parser.bad == 1


def test_a_line_that_never_ends_keeps_no_memory_and_counts_once() -> None:
    parser = LineParser(LineFormat())
    parser.feed(b"\n")
    for _ in range(1000):
        assert parser.feed(b"1" * 100) == [] and parser.held <= MAX_LINE
    assert [value for value, _ in parser.feed(b"1\n2\n")] == [2.0]
    assert parser.bad == 1


@pytest.mark.parametrize("checksum", ["none", "sum8"])
def test_sync_bytes_within_a_frame_do_not_mislead(checksum: str) -> None:
    size = 7 if checksum == "sum8" else 6
    form = FrameFormat(b"\xaa\x55", size, "int32", 2, checksum=checksum)

    def packed(value: int) -> bytes:
        body = b"\xaa\x55" + struct.pack("<i", value)
        return (body + bytes([sum(body) & 0xFF]))[:size]

    (tricky,) = struct.unpack("<i", b"\x01\xaa\x55\x02")
    stream = b"".join(packed(value) for value in (tricky, 1, tricky, 2, 3))
    for cut in range(1, size):  # begun within a frame
        parser = FrameParser(form)
        assert [value for value, _ in parser.feed(stream[cut:])] == [1, tricky, 2, 3]


def test_checksums_are_the_published_ones() -> None:
    assert crc16_modbus(b"123456789") == 0x4B37  # the catalogue's check values
    assert binascii.crc_hqx(b"123456789", 0xFFFF) == 0x29B1


def test_commands_may_be_text_or_hexadecimal() -> None:
    assert bytes_of("GO\\r\\n") == b"GO\r\n"
    assert bytes_of("hex:fe 01") == b"\xfe\x01"
    assert bytes_of("µ") == b"\xb5" and bytes_of("") == b""


# --- time ----------------------------------------------------------------------------------------


def stamped(
    clock: SampleClock, rate_hz: float, seconds: float, burst_s: float, delay: Any, first: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(true times, stamps, arrivals) of a device read every `burst_s`, `delay(k)` late."""
    truth, stamps, arrivals = [], [], []
    count, nominal = first, 1 / 650
    for burst in range(int(seconds / burst_s)):
        arrival = 1000 + (burst + 1) * burst_s + delay(burst)
        upto = int((arrival - 1000) * rate_hz) + first
        if upto <= count:
            continue
        index = np.arange(count + 1, upto + 1)
        stamps += clock.stamp(index * nominal, arrival, drained=True).tolist()
        truth += (1000 + (index - first) / rate_hz).tolist()
        arrivals += [arrival] * len(index)
        count = upto
    return np.array(truth), np.array(stamps), np.array(arrivals)


@pytest.mark.parametrize("rate_hz", [650.0, 650.3, 500.0, 800.0])
@pytest.mark.parametrize("burst_s", [0.0017, 0.016])
def test_bursts_are_spread_at_the_devices_own_rate(rate_hz: float, burst_s: float) -> None:
    rng = np.random.default_rng(1)
    late = rng.exponential(0.0004, 100_000) + (rng.random(100_000) < 0.02) * 0.03
    clock = SampleClock(PERIOD_S)
    truth, stamps, arrivals = stamped(clock, rate_hz, 60, burst_s, lambda k: late[k])
    assert (np.diff(stamps) > 0).all()
    assert (stamps <= arrivals + PERIOD_S).all()
    settled = truth > 1003
    error = (stamps - truth)[settled]
    assert np.abs(error).max() < 0.004 and abs(np.median(error)) < 0.002
    spacing = np.diff(stamps)[settled[1:]] * rate_hz
    assert np.percentile(np.abs(spacing - 1), 95) < 0.1
    assert clock.rate_hz == pytest.approx(rate_hz, rel=1e-3)


def test_a_pause_is_a_gap_and_a_late_burst_is_none() -> None:
    clock = SampleClock(PERIOD_S)
    _, before, _ = stamped(clock, 650, 5, 0.01, lambda k: 0.0)
    # A stall: 65 samples come together, 0.1 s late, where they were taken.
    index = np.arange(1, 66) + 3250
    burst = clock.stamp(index * PERIOD_S, 1005.1, drained=True)
    assert np.diff(burst) == pytest.approx(PERIOD_S, rel=0.05)
    assert burst[0] - before[-1] == pytest.approx(PERIOD_S, rel=0.1)
    # A pause: the device took none for 2 s.
    after = clock.stamp((index + 65) * PERIOD_S, 1007.2, drained=True)
    assert after[-1] == pytest.approx(1007.2, abs=PERIOD_S)
    assert np.diff(after) == pytest.approx(PERIOD_S, rel=0.05)
    assert clock.steps == 1


def test_samples_that_come_too_soon_are_not_stamped_ahead_of_their_arrival() -> None:
    clock = SampleClock(PERIOD_S)
    stamped(clock, 650, 5, 0.01, lambda k: 0.0)
    early = clock.stamp((np.arange(1, 40) + 3250) * PERIOD_S, 1005.001, drained=True)
    assert (early <= 1005.001 + PERIOD_S).all() and (np.diff(early) > 0).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(0, 12) | st.just(0.0), min_size=1, max_size=20),
            st.floats(0, 3),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_stamps_rise_and_are_never_of_the_future_whatever_comes(reads: Any) -> None:
    clock, seconds, arrival, last = SampleClock(PERIOD_S), 0.0, 5000.0, -math.inf
    for steps, later, drained in reads:
        device = seconds + np.cumsum(steps)
        seconds, arrival = float(device[-1]), arrival + later
        stamps = clock.stamp(device, arrival, drained=drained)
        assert (np.diff(stamps) > 0).all() and stamps[0] > last
        assert stamps[-1] < arrival + PERIOD_S + 2e-3
        last = float(stamps[-1])


def test_ticks_tell_of_samples_that_were_lost_or_came_twice() -> None:
    counter = DeviceTime(0.01, wrap=256)
    rows = counter.advance([254, 255, 0, 0, 3, math.nan, 4])
    assert rows == pytest.approx([0.01, 0.02, 0.03, math.nan, 0.06, 0.07, 0.08], nan_ok=True)
    assert (counter.lost, counter.repeated, counter.restarts) == (2, 1, 0)
    micros = DeviceTime(0.01, tick_s=1e-6)
    assert micros.advance([5, 10_005, 10_005, 3]) == pytest.approx([0.01, 0.02, 0.02, 0.03])
    assert (micros.repeated, micros.restarts) == (0, 1)


# --- tare ----------------------------------------------------------------------------------------


def test_a_tare_is_the_mean_of_the_first_samples() -> None:
    tare = Tare(1.0, 0.5)
    assert tare.take(np.array([0.1, 0.3] * 10), 10.0) is None
    assert tare.take(np.array([0.2] * 10), 11.0) is None
    assert tare.take(np.array([5.0]), 11.1) == pytest.approx(0.2)
    tare.opened()
    assert tare.take(np.array([5.0]), 12.0) == pytest.approx(0.2)  # kept
    again = Tare(1.0, 0.5, again=True)
    for zero in (0.1, -0.1):
        again.opened()
        assert again.take(np.full(20, zero), 0.0) is None
        assert again.take(np.full(20, zero), 1.0) is None
        assert again.take(np.full(1, 7.0), 1.1) == pytest.approx(zero)
    assert Tare(0.0, 0.5).take(np.array([3.0]), 0.0) == 0.0


@pytest.mark.parametrize(
    ("forces", "said"),
    [
        (np.full(100, 0.6), "tare refused: 0.600 N"),
        (np.linspace(-1.0, 1.0, 100), "up to 1.000 N from it"),
        (np.zeros(5), "too few"),
    ],
)
def test_a_tare_while_something_touches_is_refused(forces: np.ndarray, said: str) -> None:
    tare = Tare(0.5, 0.5)
    tare.take(forces[:-1], 0.0)
    with pytest.raises(DriverError, match=said):
        tare.take(forces[-1:], 0.5)
    tare.opened()
    assert tare.take(forces[:-1], 1.0) is None  # tried again, from the beginning


# --- recordings ----------------------------------------------------------------------------------


class Recording:
    """Plays blocks, silence between them, then says that it is over."""

    recorded = True

    def __init__(self, sizes: list[int], stop: threading.Event) -> None:
        self._sizes, self._next, self.closed = sizes, 0, 0
        self._stop = stop

    def open(self) -> None:
        pass

    def read(self, timeout_s: float) -> SampleBlock | None:
        if not self._sizes:
            raise RecordingOver
        size = self._sizes.pop(0)
        if not size:
            return None
        index = np.arange(self._next, self._next + size)
        self._next += size
        return SampleBlock(
            1e9 + index, index.astype(np.float32), np.zeros((size, 1025), np.float32)
        )

    def close(self) -> None:
        self.closed += 1


def test_recorded_datagrams_stay_whole_and_the_end_is_clean(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senders.force_sensor_sender._SILENT_S", -1.0)  # any silence is too long
    stop = threading.Event()
    recording = Recording([10, 10, 0, 0, 7, 10, 10, 3], stop)
    wire = DatagramSender(socket.AF_INET, ("127.0.0.1", inbox.port))
    SensorSender(recording, wire, Batcher(10, 1.0)).run(stop)  # returns by itself
    wire.close()
    assert inbox.look() == 50 and not stop.is_set() and recording.closed == 1
    assert [len(batch) for batch in inbox.batches] == [10, 10, 7, 10, 10, 3]
    assert inbox.forces.tolist() == list(range(50))
