"""A force sensor on a serial port (USB adapter, UART): lines of text, or binary frames.

It has no A-scan: zeros are sent in its place, and the log says so.
"""

from __future__ import annotations

import logging
import termios
import threading
import time
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import serial
from numpy.typing import NDArray

from common.wire import ALINE_LENGTH
from senders.drivers import DriverError, SampleBlock
from senders.sensors.serial_clock import DeviceTime, SampleClock, WallOffset
from senders.sensors.serial_frames import FrameFormat, FrameParser
from senders.sensors.serial_lines import LineFormat, LineParser
from senders.sensors.serial_ports import bytes_of, find_port, one_line, text_of
from senders.sensors.serial_tare import Tare

__all__ = ["SerialForceSensor"]

logger = logging.getLogger("senders.sensor.serial")

_READ_BYTES = 4096
_NOTHING_FITS_S = 2.0
_WRITE_TIMEOUT_S = 1.0


class Parser(Protocol):
    """What turns bytes into samples."""

    bad: int

    def feed(self, data: bytes) -> list[tuple[float, float]]:
        """(value, ticks) of each sample that these bytes end."""
        ...

    def begin_again(self) -> None:
        """Forget what came before."""
        ...


class SerialForceSensor:
    """Forces from one serial port, opened for itself alone.

    force = scale · value + offset_n − tare, in newtons.
    """

    def __init__(
        self,
        port: str = "",
        baud: int = 115200,
        rate_hz: float = 650.0,
        format: str = "line",
        scale: float = 1.0,
        offset_n: float = 0.0,
        max_force_n: float = 1000.0,
        separator: str = ",",
        column: int = 1,
        columns: int = 0,
        ticks_column: int = 0,
        pattern: str = "",
        line_end: str = "lf",
        sync: str = "",
        length: int = 0,
        endian: str = "little",
        force_type: str = "int16",
        force_at: int = 2,
        ticks_type: str = "",
        ticks_at: int = 0,
        checksum: str = "none",
        checksum_from: int = 0,
        checksum_endian: str = "little",
        tick_s: float = 0.0,
        tick_wrap: float = 0.0,
        start: str = "",
        stop: str = "",
        tare_s: float = 0.0,
        tare_max_n: float = 0.5,
        retare: bool = False,
        gather_ms: float = 6.0,
        latency_ms: float = 0.0,
        aline_length: int = ALINE_LENGTH,
    ) -> None:
        """What each is: senders/rigs/serial_force.yaml. ValueError for what cannot be."""
        if not port:
            raise ValueError("port is needed: port=/dev/ttyUSB0, or port=auto for the only adapter")
        for name, value, low, high in (
            ("baud", baud, 50, 20_000_000),
            ("rate_hz", rate_hz, 0.1, 100_000),
            ("scale", abs(scale), 1e-12, 1e12),
            ("offset_n", abs(offset_n), 0, 1e6),
            ("max_force_n", max_force_n, 1e-6, 1e6),
            ("tick_s", tick_s, 0, 10),
            ("tick_wrap", tick_wrap, 0, 1e18),
            ("gather_ms", gather_ms, 0, 50),
            ("latency_ms", latency_ms, 0, 1000),
            ("aline_length", aline_length, 1, 16_000),
        ):
            if not low <= value <= high:  # false for NaN too
                raise ValueError(f"{name} must be from {low:g} to {high:g}, not {value:g}")
        if format == "line":
            self._parser: Parser = LineParser(
                LineFormat(text_of(separator), column, columns, ticks_column, pattern, line_end)
            )
        elif format == "binary":
            frame = FrameFormat(
                bytes_of("hex:" + sync), length, force_type, force_at, ticks_type, ticks_at,
                endian, checksum, checksum_from, checksum_endian,
            )  # fmt: skip
            self._parser = FrameParser(frame)
        else:
            raise ValueError(f"format must be line or binary, not {format!r}")
        self._where, self._baud, self._rate_hz = port, baud, rate_hz
        self._scale, self._offset_n, self._max_force_n = scale, offset_n, max_force_n
        self._start, self._stop = bytes_of(start), bytes_of(stop)
        self._gather_s, self._latency_s = gather_ms / 1e3, latency_ms / 1e3
        self._aline_length = aline_length
        self._tare = Tare(tare_s, tare_max_n, again=retare)
        self._device_time = DeviceTime(1 / rate_hz, tick_s, tick_wrap)
        self._clock = SampleClock(1 / rate_hz)
        self._offset = WallOffset()
        self._port: serial.Serial | None = None
        self._name = port
        self._closed = threading.Event()
        self._absurd = 0
        self._sound_at, self._bytes_since = 0.0, 0
        self._said_zeros = self._said_rate = False

    @property
    def counts(self) -> Mapping[str, int]:
        """What was left out or went wrong so far, by a word for each."""
        time_ = self._device_time
        return {
            "bad": self._parser.bad,
            "absurd": self._absurd,
            "lost": time_.lost,
            "repeated": time_.repeated,
            "restarts": time_.restarts,
            "clock_steps": self._clock.steps,
        }

    def open(self) -> None:
        """Open the port, throw away what waits there, send the start command; DriverError."""
        self.close()
        self._closed.clear()
        self._name = find_port() if self._where == "auto" else self._where
        try:
            self._port = serial.Serial(
                self._name,
                self._baud,
                timeout=0,
                write_timeout=_WRITE_TIMEOUT_S,
                exclusive=True,
            )
            self._port.reset_input_buffer()
            if self._start:
                self._port.write(self._start)
        except (OSError, ValueError, termios.error) as error:
            self.close()
            raise DriverError(one_line(self._name, error)) from None
        self._parser.begin_again()
        self._device_time.begin_again()
        self._tare.opened()
        self._sound_at, self._bytes_since = time.monotonic(), 0
        if not self._said_zeros:
            self._said_zeros = True
            logger.info(
                "%s: no A-scan: zeros are sent (%d a sample)", self._name, self._aline_length
            )

    def read(self, timeout_s: float) -> SampleBlock | None:
        """The samples since the last call; None when none came in time (or while taring).

        Raises DriverError when the port is gone, when bytes come for 2 s but no sample among
        them, or when the tare is refused.
        """
        data, arrival, drained = self._receive(timeout_s)
        if not data:
            return None
        self._bytes_since += len(data)
        sound = self._sound(self._parser.feed(data), arrival, drained)
        if sound is None:
            self._check_format(arrival)
            return None
        self._sound_at, self._bytes_since = arrival, 0
        stamps, forces = sound
        tare = self._tare.take(forces, arrival)
        if tare is None:
            return None
        stamps = stamps + (self._offset.seconds() - self._latency_s)
        zeros = np.zeros((len(stamps), self._aline_length), np.float32)
        return SampleBlock(stamps, (forces - tare).astype(np.float32), zeros)

    def close(self) -> None:
        """Send the stop command and close the port; safe to call twice."""
        self._closed.set()
        port, self._port = self._port, None
        if port is None:
            return
        try:
            if self._stop:
                port.write(self._stop)
        except OSError:
            pass  # it is gone; closing is all there is left to do
        finally:
            port.close()

    def _receive(self, timeout_s: float) -> tuple[bytes, float, bool]:
        """Bytes, when they had come by (monotonic), and whether they were all that waited."""
        if self._port is None:
            raise DriverError("the serial port is not open")
        try:
            if self._port.timeout != timeout_s:
                self._port.timeout = timeout_s  # sets up the whole port again
            first: bytes = self._port.read(1)
            if not first:
                return b"", time.monotonic(), True
            # A few samples at a time: a wake-up for each of them would cost most of the CPU time.
            self._closed.wait(self._gather_s)
            waiting = self._port.in_waiting
            arrival = time.monotonic()
            # The kernel hands out 4 KiB at a time: where it is half full, more may lie behind it.
            rest: bytes = self._port.read(min(waiting, _READ_BYTES)) if waiting else b""
            return first + rest, arrival, waiting < _READ_BYTES // 2
        except (OSError, termios.error) as error:
            raise DriverError(one_line(self._name, error)) from None

    def _sound(
        self, samples: list[tuple[float, float]], arrival: float, drained: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """(N,) monotonic stamps and (N,) newtons of the sound ones among (value, ticks)."""
        if not samples:
            return None
        pairs = np.array(samples)
        seconds = self._device_time.advance(pairs[:, 1].tolist())
        once = ~np.isnan(seconds)
        if not once.any():
            return None
        stamps = self._clock.stamp(seconds[once], arrival, drained=drained)
        self._say_rate()
        with np.errstate(over="ignore", invalid="ignore"):
            forces = self._scale * pairs[once, 0] + self._offset_n
            sound = np.abs(forces) <= self._max_force_n  # false for NaN too
        self._absurd += int(len(sound) - sound.sum())
        return (stamps[sound], forces[sound]) if sound.any() else None

    def _check_format(self, moment: float) -> None:
        if moment - self._sound_at < _NOTHING_FITS_S:
            return
        raise DriverError(
            f"{self._name}: {self._bytes_since} bytes in {moment - self._sound_at:.1f} s and no "
            f"sample ({self._parser.bad} bad, {self._absurd} absurd): check baud, format and scale"
        )

    def _say_rate(self) -> None:
        rate_hz = None if self._said_rate else self._clock.rate_hz
        if rate_hz is None:
            return
        self._said_rate = True
        if abs(rate_hz / self._rate_hz - 1) > 0.02:
            logger.warning(
                "%s gives %.1f samples/s, not %g: set --rate-hz (and the receiver's --sensor-hz)",
                self._name,
                rate_hz,
                self._rate_hz,
            )
