"""A body's force sensor: a thread that keeps the newest samples."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
from numpy.typing import NDArray

from common.program import Backoff
from common.ring import SampleRing
from senders.drivers import DriverError, RecordingOver, SampleBlock, SensorDriver
from serving.body import BodyError

__all__ = ["SensorWatch"]

logger = logging.getLogger("serving.sensor")

_READ_S = 0.05
_SILENT_S = 3.0
_STALE_S = 0.5
_OUTAGE_S = 1.0
_LEAVE_S = 4.0
_BATCH = 256


class SensorWatch:
    """Reads a sensor driver in a thread; rows are the force in newtons, then the A-scan."""

    def __init__(self, driver: SensorDriver, samples: int) -> None:
        """Keep up to `samples` of `driver`, from `open` to `close`."""
        self._driver, self._samples = driver, samples
        self._ring: SampleRing | None = None
        self._channels = 0
        self._newest_stamp = 0.0
        self._arrived_at = -np.inf
        self._why = "no sample yet"
        self._first = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.unsound = 0

    def open(self, timeout_s: float) -> None:
        """Start reading, and wait for the first samples; BodyError when none come."""
        self._stop, self._first = threading.Event(), threading.Event()
        self._ring = None
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)
        self._thread.start()
        if not self._first.wait(timeout_s):
            self.close()
            raise BodyError(f"no sample within {timeout_s:g} s from the sensor ({self._why})")

    def window(self, samples: int) -> NDArray[np.float32] | None:
        """The newest `samples` rows (samples, 1 + A-scan), oldest first.

        None while there are not that many in a row, or when the newest is over half a second old.
        BodyError for more than are kept.
        """
        if samples > self._samples:
            raise BodyError(f"a window of {samples} samples: give --robot.sensor_samples {samples}")
        ring = self._ring
        if ring is None or time.monotonic() - self._arrived_at > _STALE_S:
            return None
        rows = ring.newest(samples)[1]
        return rows.copy() if len(rows) == samples else None

    def close(self) -> None:
        """Stop reading; safe to call twice."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_LEAVE_S)
            if thread.is_alive():
                logger.warning("the sensor hangs: it ends with this program")

    def _run(self) -> None:
        stop, backoff = self._stop, Backoff()
        while not stop.is_set():
            try:
                self._driver.open()
                self._read_on(stop, backoff)
            except RecordingOver as over:
                logger.info("the recording is over: %s", over)
                return
            except Exception as error:  # whatever a vendor's package raises
                self._why = " ".join(str(error).split())[:300] or type(error).__name__
                delay_s = backoff.failed()
                logger.warning("sensor: %s; next try in %.2g s", self._why, delay_s)
            finally:
                try:
                    self._driver.close()
                except Exception as error:
                    logger.warning("sensor: close: %s", error)
            stop.wait(max(backoff.retry_at - time.monotonic(), 0.0))

    def _read_on(self, stop: threading.Event, backoff: Backoff) -> None:
        heard_at = time.monotonic()
        while not stop.is_set():
            block = self._driver.read(_READ_S)
            moment = time.monotonic()
            if block is not None:
                heard_at = moment
                backoff.worked()
                self._take(block, moment)
            elif moment - heard_at > _SILENT_S:
                raise DriverError(f"no sample for {_SILENT_S:g} s")

    def _take(self, block: SampleBlock, moment: float) -> None:
        stamps = np.asarray(block.timestamps, np.float64)
        forces, alines = np.asarray(block.forces), np.asarray(block.alines)
        if not len(stamps):
            return
        if not (
            np.isfinite(stamps).all() and np.isfinite(forces).all() and np.isfinite(alines).all()
        ):
            self.unsound += len(stamps)
            return
        channels = 1 + alines.shape[1]
        if self._ring is None:
            self._channels = channels
            self._ring = SampleRing(self._samples, channels, 4 * _BATCH, _BATCH)
        if channels != self._channels:
            raise DriverError(f"samples of {channels} values came: {self._channels} before")
        gap_s = float(stamps[0]) - self._newest_stamp
        if moment - self._arrived_at > _OUTAGE_S or not -_OUTAGE_S < gap_s < _OUTAGE_S:
            # What lies before an outage must not stand beside what comes after it.
            self._ring.clear()
        self._ring.append(stamps, forces.astype(np.float32), alines.astype(np.float32))
        self._newest_stamp, self._arrived_at = float(stamps[-1]), moment
        self._first.set()
