"""Reads a force (and OCT) sensor and sends its samples to the receiver, some in each datagram."""

from __future__ import annotations

import errno
import logging
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs()

import tyro

from common import endpoints
from common.clock import RateMeter, wall
from common.program import Backoff, Every, check_number, check_port, resolve, run
from common.wire import SampleBatch, encode_samples, max_samples
from senders import registry, sensors
from senders.batcher import Batcher
from senders.drivers import DriverError, Recorded, RecordingOver, SensorDriver
from senders.time_exchange import exchanging_time

__all__ = ["DatagramSender", "SensorOptions", "SensorSender", "main"]

logger = logging.getLogger("senders.sensor")

_SEND_BUFFER = 1 << 20
_READ_TIMEOUT_S = 0.05
_SILENT_S = 3.0


@dataclass(frozen=True)
class SensorOptions:
    """Send a force sensor's samples to the receiver over UDP, several to a datagram."""

    server_ip: str = "localhost"
    """Where the receiver runs."""
    port: int = endpoints.SENSOR.port
    """UDP port on which it takes samples."""
    time_port: int = endpoints.TIME.port
    """TCP port on which it exchanges timestamps; 0 does not ask it."""
    rate_hz: float = endpoints.SENSOR.rate_hz
    """Samples a second; a device with a rate of its own keeps that."""
    batch: int = 10
    """Samples in a datagram, 1 to 15."""
    driver: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which sensor: serial, sim, …; without it, the one whose package is installed."""
    driver_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Passed to the driver."""
    config: Path | None = None
    """YAML file with any of these options; the command line wins over it."""
    duration: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Stop after so many seconds; without it, run until Ctrl+C."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        check_port("--port", self.port)
        check_number("--time-port", self.time_port, 0, 65_535)
        check_number("--rate-hz", self.rate_hz, 1, 100_000)
        check_number("--batch", self.batch, 1, max_samples())
        registry.choose(sensors.DRIVERS, self.driver)


class DatagramSender:
    """A UDP socket that never waits and never raises; what cannot be sent is dropped and counted.

    It is not connected, so that an ICMP refusal (no receiver yet) does not come back as an error.
    """

    def __init__(self, family: socket.AddressFamily, where: Any) -> None:
        """Send to `where`, an address as getaddrinfo gives it."""
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._where = where
        self.sent = 0
        self.dropped: Counter[str] = Counter()

    def send(self, datagram: bytes) -> bool:
        """Whether the kernel took it."""
        try:
            self._socket.sendto(datagram, self._where)
        except OSError as error:
            self.dropped[errno.errorcode.get(error.errno or 0, "error")] += 1
            return False
        self.sent += 1
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@runtime_checkable
class Counting(Protocol):
    """A driver that says what it left out or what went wrong, for the status line."""

    @property
    def counts(self) -> Mapping[str, int]:
        """A number for each word."""
        ...


class SensorSender:
    """The loop: read what the device has, fill batches, send those that are full or old."""

    def __init__(self, driver: SensorDriver, wire: DatagramSender, batcher: Batcher) -> None:
        """Use `driver` from the one thread that calls `run`; it is opened there."""
        self._driver, self._wire, self._batcher = driver, wire, batcher
        self._recorded = isinstance(driver, Recorded)
        self._over = False
        self._backoff = Backoff()
        self._rate = RateMeter()
        self._failures = 0
        self._lost = 0
        self._force = float("nan")
        self._status = Every()

    def run(self, stop: threading.Event) -> None:
        """Read and send until `stop`; a device that fails is opened again, ever less often.

        Returns too when the driver says that its recording is over.
        """
        while not stop.is_set() and not self._over:
            try:
                self._driver.open()
                logger.info("the sensor is open")
                self._read_on(stop)
            except RecordingOver as over:
                self._over = True
                logger.info("the recording is over%s", f": {over}" if str(over) else "")
            except DriverError as error:
                self._failures += 1
                delay_s = self._backoff.failed()
                logger.warning("sensor: %s; next try in %.2g s", error, delay_s)
            finally:
                self._close()
            self._send(self._batcher.rest())
            # In slices, so that the status goes on being said while the device is away.
            while not (stop.is_set() or self._over or self._backoff.due):
                stop.wait(max(min(self._backoff.retry_at - time.monotonic(), 1.0), 0.0))
                self._say_status()
        logger.info(self._summary())

    def _read_on(self, stop: threading.Event) -> None:
        heard_at = time.monotonic()
        while not stop.is_set():
            timeout_s = min(_READ_TIMEOUT_S, self._batcher.flush_after_s)
            block = self._driver.read(timeout_s)
            moment = time.monotonic()
            if block is not None:
                heard_at = moment
                self._backoff.worked()
                if self._recorded and len(block.timestamps) == self._batcher.batch:
                    # It was a datagram of its own, and is one again.
                    self._send(self._batcher.rest())
                self._batcher.add(block, moment)
            elif not self._recorded and moment - heard_at > _SILENT_S:
                raise DriverError(f"no sample for {_SILENT_S:g} s")
            for batch in self._batcher.ready(moment):
                self._send(batch)
            self._say_status()

    def _send(self, batch: SampleBatch | None) -> None:
        if batch is None:
            return
        batch.send_timestamps.fill(wall())
        if self._wire.send(encode_samples(batch)):
            self._rate.add(len(batch))
        else:
            self._lost += len(batch)
        self._force = float(batch.forces[-1])

    def _close(self) -> None:
        try:
            self._driver.close()
        except Exception as error:  # closing must not hide why
            logger.warning("sensor: close: %s", error)

    def _summary(self) -> str:
        dropped = ", ".join(f"{why}:{n}" for why, n in self._wire.dropped.items())
        parts = [
            f"[SENSOR] {self._rate.rate_hz():.1f} samples/s",
            f"sent {self._rate.total} in {self._wire.sent} datagrams",
            f"dropped {self._lost}" + (f" ({dropped})" if dropped else ""),
            f"F={self._force:.3f} N",
        ]
        if self._batcher.unsound:
            parts.append(f"unsound {self._batcher.unsound}")
        if isinstance(self._driver, Counting):
            parts += [f"{word} {n}" for word, n in self._driver.counts.items() if n]
        if self._failures:
            parts.append(f"failures {self._failures}")
        return " | ".join(parts)

    def _say_status(self) -> None:
        if self._status.due():
            logger.info(self._summary())


def _destination(
    options: SensorOptions, stop: threading.Event
) -> tuple[socket.AddressFamily, Any] | None:
    """Where to send; waits for a network that is not up yet. None when stopped meanwhile."""
    backoff = Backoff()
    while not stop.is_set():
        try:
            return resolve(options.server_ip, options.port)
        except TimeoutError as error:
            delay_s = backoff.failed()
            logger.warning("%s; next try in %.2g s", error, delay_s)
            stop.wait(delay_s)
    return None


def send(options: SensorOptions, stop: threading.Event) -> None:
    """Run the sender until `stop`; raises ProgramError when it cannot start."""
    name = registry.choose(sensors.DRIVERS, options.driver)
    offered = {"rate_hz": options.rate_hz}
    driver: SensorDriver = registry.make(sensors.DRIVERS, name, offered, options.driver_options)
    destination = _destination(options, stop)
    if destination is None:
        return
    wire = DatagramSender(*destination)
    logger.info("[SENSOR] driver %s → %s:%d", name, options.server_ip, options.port)
    try:
        with exchanging_time(options.server_ip, options.time_port, endpoints.SENSOR.stream):
            SensorSender(driver, wire, Batcher(options.batch, options.rate_hz)).run(stop)
    finally:
        wire.close()


def main() -> int:
    """Run from the command line; the exit code."""
    return run(SensorOptions, send)


if __name__ == "__main__":
    sys.exit(main())
