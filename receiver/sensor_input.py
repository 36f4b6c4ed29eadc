"""The force sensor's stream in: datagrams become rows of a ring, all samples of one at once."""

from __future__ import annotations

import logging
import math
import socket
import struct
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common import endpoints, wire
from common.clock import RateMeter, now
from common.counters import MalformedCounters
from common.ring import SampleRing
from common.wire import MalformedMessage
from receiver.backlog import Backlog
from receiver.sender_clock import SenderClock
from receiver.sockets import udp_socket
from receiver.taps import Tap

__all__ = ["SensorInput"]

logger = logging.getLogger(__name__)

_POLL_S = 0.1
# As many datagrams are read together: an eighth of a second of the usual rate.
_TOGETHER = 8
_OUTAGE_S = 1.0
_FORCE_WATCHED_S = 0.1
# Half a second of ten times a sensor's usual rate may wait while the thread waits for its turn.
_BUFFER_BYTES = 16 << 20
# A network swaps a datagram with the next or the one after: more in a row that seem late are a
# sender's clock that was set, or a sender that began anew.
_LATE_IN_A_ROW = 4


class SensorInput:
    """Sensor datagrams in; the newest samples are kept in a ring as the model wants them.

    Attributes:
        buffers: where datagrams are received, to be taken by `take`.
        ring: rows of force and A-scan with the sender's stamps, in the order in which they came.
        watched: of how many of the newest samples the force is looked at.
        lost: samples that never came.
        reordered: samples that came after newer ones.
        duplicates: samples that came twice; the second time is left out.
    """

    def __init__(
        self,
        bind: str,
        port: int,
        window: int,
        aline_length: int,
        rate_hz: float,
        stale_after_s: float,
        counters: MalformedCounters,
        taps: Sequence[Tap] = (),
    ) -> None:
        """Bind the UDP socket; InputError when the port is taken."""
        self._socket = udp_socket(bind, port, _BUFFER_BYTES, "the sensor")
        # The system's own limit on waiting: Python's asks the system twice a datagram.
        limit = struct.pack("ll", 0, int(1e6 * _POLL_S))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        # One byte more than the largest datagram, so that an oversized one shows. Those that wait
        # are never more than are read together; another one is being received.
        size = wire.MAX_DATAGRAM + 1
        self.buffers = [memoryview(bytearray(size)) for _ in range(_TOGETHER + 1)]
        self._readers = [wire.SampleReader(buffer, aline_length) for buffer in self.buffers]
        self._backlog: Backlog[tuple[int, float, int]] = Backlog(self._read, _TOGETHER)
        self._rate_hz, self._stale_after_s = rate_hz, stale_after_s
        self._counters, self._taps = counters, taps
        # Force is watched over a tenth of a second even for a policy that takes no window.
        self.watched = max(window, math.ceil(_FORCE_WATCHED_S * rate_hz))
        batch = wire.max_samples(aline_length)
        # Twice that, and a few datagrams, so that late samples push none out of the window.
        capacity = 2 * self.watched + _LATE_IN_A_ROW * min(batch, self.watched)
        # Views hold for half a second; at ten times the rate still for a twentieth: who acts copies
        # what he was given at once. Longer costs, since memory that is in no cache is written
        # more slowly.
        slack = max(int(0.5 * rate_hz), 64)
        self.ring = SampleRing(capacity, 1 + aline_length, slack, batch)
        self.clock = SenderClock("sensor")
        self.meter = RateMeter()
        self.lost = self.reordered = self.duplicates = 0
        self.arrived_at: float | None = None
        self._newest_stamp = -math.inf
        self._late: list[int] = []  # samples of the datagrams in a row that seem late

    def run(self, stop: threading.Event) -> None:
        """Take datagrams in until `stop` is set, then close the socket."""
        place = 0
        try:
            while not stop.is_set():
                try:
                    size = self._socket.recv_into(self.buffers[place])
                except BlockingIOError:
                    self._backlog.read()
                    continue
                self._backlog.add((size, now(), place))
                place = (place + 1) % len(self.buffers)
            self._backlog.read()
        finally:
            self._socket.close()

    def catch_up(self) -> None:
        """Read what has come but was not read yet; for whoever is going to look."""
        self._backlog.catch_up()

    def _read(self, datagram: tuple[int, float, int]) -> None:
        try:
            self.take(*datagram)
        except MalformedMessage as error:
            self._counters.add(error)

    def take(self, size: int, arrived_at: float, place: int = 0) -> None:
        """Use the datagram of `size` bytes in a buffer; MalformedMessage when it cannot be."""
        stamps, values = self._readers[place].read(size)
        # Into their place first: what is checked there is in the cache and in one piece.
        rows = self.ring.reserve(len(values))
        rows[:] = values
        wire.check_values(rows)
        was_calibrated = self.clock.calibrated
        if not self.clock.update(float(stamps[1, -1]), arrived_at):
            raise MalformedMessage(endpoints.SENSOR.stream, "clock", "stamp far from the others")
        if self.clock.calibrated and not was_calibrated:
            offset_ms = 1e3 * (self.clock.offset_s or 0.0)
            logger.info("Sensor Clock Offset Calibrated: %.1f ms", offset_ms)
        sampled = stamps[0]
        last = float(sampled[-1])
        gap_s = float(sampled[0]) - self._newest_stamp
        before = self.arrived_at
        if before is None or max(arrived_at - before, gap_s) > self._stale_after_s:
            # What lies before an outage must not stand beside what comes after it.
            self.ring.clear()
            self._append(sampled, gap_s)
        elif last > self._newest_stamp:
            self._append(sampled, gap_s)
        elif self._is_known(sampled, rows):
            self.duplicates += len(rows)
        else:
            self._append_late(sampled, last)
        self.meter.add(len(rows), arrived_at)
        self.arrived_at = arrived_at
        for tap in self._taps:
            tap.samples(self.buffers[place][:size], arrived_at)

    def _append(self, sampled: NDArray[np.float64], gap_s: float) -> None:
        self._count_lost(gap_s)
        self.ring.commit(sampled)
        self._newest_stamp = float(sampled[-1])
        self._late.clear()

    def _append_late(self, sampled: NDArray[np.float64], last: float) -> None:
        """Samples older than the newest: who looks at the ring puts them in their place."""
        count = len(sampled)
        self.ring.commit(sampled)
        self._late.append(count)
        self.reordered += count
        self.lost = max(self.lost - count, 0)  # a gap was counted where they were missing
        if len(self._late) >= _LATE_IN_A_ROW:
            # Not the samples are late, the stamps are others: what came before has no place among
            # these any more.
            self.ring.clear(keep=sum(self._late))
            self.reordered -= sum(self._late)
            self._newest_stamp = last
            self._late.clear()

    def _is_known(self, sampled: NDArray[np.float64], rows: NDArray[np.float32]) -> bool:
        """Whether a datagram is in the ring already: networks repeat some."""
        stamps, known = self.ring.newest(self.ring.capacity)
        count = len(sampled)
        return any(
            np.array_equal(stamps[at : at + count], sampled)
            and np.array_equal(known[at : at + count], rows)
            for at in np.flatnonzero(stamps == sampled[0]).tolist()
        )

    def _count_lost(self, gap_s: float) -> None:
        """Samples carry no number: what is missing shows as a gap between two datagrams."""
        # A datagram holds several samples, so one or two are jitter of the stamps, not a loss; a
        # second or more is a sender that was away.
        if gap_s < _OUTAGE_S and (missing := round(gap_s * self._rate_hz) - 1) > 2:
            self.lost += missing
