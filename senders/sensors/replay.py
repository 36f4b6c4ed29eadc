"""A force sensor out of a recorded session: its datagrams come again when they came."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Event

import numpy as np

from senders.drivers import DriverError, RecordingOver, SampleBlock
from senders.replaying import moments_sent, open_recording, wait_until

__all__ = ["ReplayForceSensor"]

logger = logging.getLogger("senders.sensor")


class ReplayForceSensor:
    """Plays a session's force samples and A-scans, a block for every datagram that was recorded."""

    recorded = True

    def __init__(
        self, session: str = "", speed: float = 1.0, loop: bool = False, start_at: float = 0.0
    ) -> None:
        """Read the samples of the session in the folder `session`; see `senders.replaying`.

        DriverError or ValueError, one line, where there is nothing to play.
        """
        found, self._timeline = open_recording(session, speed, loop, start_at)
        self._samples = samples = found.samples
        if not len(samples):
            raise DriverError(f"{found.folder}: no force samples were recorded in it")
        stamped = samples.sampled_at
        self._sent = moments_sent(samples.sent_at, stamped, samples.received_at)
        every = samples.datagrams()
        self._datagrams = [
            rows
            for rows in every
            if np.isfinite(self._sent[rows]).all() and np.isfinite(stamped[rows]).all()
        ]
        if skipped := len(every) - len(self._datagrams):
            logger.warning("%d datagrams of the recording have broken stamps: left out", skipped)
        if not self._datagrams:
            raise DriverError(f"{found.folder}: all its force samples have broken stamps")
        self._blocks = self._prepared()
        self._next: tuple[float, SampleBlock] | None = None
        self._closed = Event()

    def open(self) -> None:
        """Begin, where `start_at` did not say when; opened again, it goes on where it was."""
        self._timeline.start()
        self._closed.clear()

    def read(self, timeout_s: float) -> SampleBlock | None:
        """The next datagram's samples; None when it is not due in time.

        Raises RecordingOver once the session is over.
        """
        over_at = self._timeline.over_at
        # Fetched from the disk before it is due.
        if self._next is None and (found := next(self._blocks, None)) is not None:
            self._next = found
        if self._next is None:
            if wait_until(over_at, self._closed, timeout_s):
                raise RecordingOver
            return None
        deadline, block = self._next
        if not wait_until(deadline, self._closed, timeout_s):
            return None
        self._next = None
        return block

    def close(self) -> None:
        """Stop waiting."""
        self._closed.set()

    def _prepared(self) -> Iterator[tuple[float, SampleBlock]]:
        samples, timeline = self._samples, self._timeline
        for round_ in timeline.rounds():
            for rows in self._datagrams:
                block = SampleBlock(
                    timeline.stamps(samples.sampled_at[rows], round_),
                    np.array(samples.forces[rows]),
                    np.array(samples.alines[rows]),
                )
                yield timeline.deadline(float(self._sent[rows][-1]), round_), block
