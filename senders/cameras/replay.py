"""Cameras out of a recorded session: the very JPEGs that came, when they came."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator, Sequence
from threading import Event, Thread
from time import monotonic

import numpy as np

from common.jpeg import JpegError, jpeg_size
from common.program import Every
from common.session import FrameEntry, SessionError
from senders.drivers import DriverError, Frame, RecordingOver
from senders.replaying import Timeline, moments_sent, open_recording, wait_until

__all__ = ["ReplayCamera", "open_replay_cameras"]

logger = logging.getLogger("senders.camera")

_READ_AHEAD = 8
_NOTICE_S = 0.2
_LEAVE_S = 2.0

_Due = tuple[float, Frame]


class ReplayCamera:
    """Plays one camera's pictures; a thread of its own reads a few ahead from the disk."""

    recorded = True

    def __init__(self, name: str, frames: Sequence[FrameEntry], timeline: Timeline) -> None:
        """Play `frames`, in their order, as the camera `name`."""
        self._name, self._timeline = name, timeline
        sent = moments_sent(
            [f.sent_at for f in frames],
            [f.captured_at for f in frames],
            [f.arrived_at for f in frames],
        )
        stamped = np.isfinite(sent) & np.isfinite([f.captured_at for f in frames])
        self._frames = [
            (moment, frame)
            for moment, frame, good in zip(sent.tolist(), frames, stamped.tolist(), strict=True)
            if good
        ]
        self.skipped = len(frames) - len(self._frames)
        self._source = self._read_files()
        self._ready: queue.Queue[_Due | None] = queue.Queue(_READ_AHEAD)
        self._carried: _Due | None = None
        self._next: _Due | None = None
        self._over = False
        self._closed = Event()
        self._reader: Thread | None = None
        self._say = Every()

    @property
    def name(self) -> str:
        """The name that it had on the wire."""
        return self._name

    def open(self) -> None:
        """Begin, where `start_at` did not say when; opened again, it goes on where it was."""
        self.close()
        self._timeline.start()
        # An event for each reader: one that hangs in the disk must not be let loose again.
        self._closed = Event()
        self._reader = Thread(
            target=self._read_ahead, args=(self._closed,), name=f"read {self._name}", daemon=True
        )
        self._reader.start()

    def read(self, timeout_s: float) -> Frame | None:
        """The next picture; None when it is not due in time.

        Raises RecordingOver once the session is over.
        """
        until = monotonic() + timeout_s
        if self._next is None and not self._over:
            try:
                self._next = self._ready.get(timeout=timeout_s)
            except queue.Empty:
                return None
            self._over = self._next is None
        deadline = self._timeline.over_at if self._next is None else self._next[0]
        if not wait_until(deadline, self._closed, max(until - monotonic(), 0.0)):
            return None
        if self._next is None:
            left_out = f", {self.skipped} pictures left out" if self.skipped else ""
            raise RecordingOver(f"the recording is over{left_out}")
        frame, self._next = self._next[1], None
        return frame

    def close(self) -> None:
        """Stop reading ahead."""
        self._closed.set()
        if self._reader is not None:
            self._reader.join(_LEAVE_S)
            if self._reader.is_alive():
                raise DriverError(f"the disk with camera {self._name}'s pictures hangs")
            self._reader = None

    def _read_ahead(self, closed: Event) -> None:
        """The body of the reader's thread: keep the queue full."""
        while not closed.is_set():
            if self._carried is None:
                self._carried = next(self._source, None)
            try:
                self._ready.put(self._carried, timeout=_NOTICE_S)
            except queue.Full:
                continue
            if self._carried is None:
                return
            self._carried = None

    def _read_files(self) -> Iterator[_Due]:
        timeline = self._timeline
        for round_ in timeline.rounds():
            readable = 0
            for moment, entry in self._frames:
                try:
                    jpeg = entry.read()
                    jpeg_size(jpeg)
                except (SessionError, JpegError) as error:
                    self._skip(entry, error)
                    continue
                readable += 1
                stamp = timeline.stamp(entry.captured_at, round_)
                yield timeline.deadline(moment, round_), Frame(stamp, jpeg=jpeg)
            if not readable:
                return  # another round would find nothing either

    def _skip(self, entry: FrameEntry, error: Exception) -> None:
        self.skipped += 1
        if self._say.due() or self.skipped == 1:
            what = str(error) if isinstance(error, SessionError) else f"{entry.path}: {error}"
            logger.warning("camera %s: %s; left out, %d so far", self._name, what, self.skipped)


def open_replay_cameras(
    session: str = "", speed: float = 1.0, loop: bool = False, start_at: float = 0.0
) -> list[ReplayCamera]:
    """A camera for each one of the session in the folder `session`; see `senders.replaying`.

    DriverError or ValueError, one line, where there is nothing to play.
    """
    found, timeline = open_recording(session, speed, loop, start_at)
    by_camera: dict[str, list[FrameEntry]] = {}
    for entry in found.all_frames:
        by_camera.setdefault(entry.camera, []).append(entry)
    if not by_camera:
        raise DriverError(f"{found.folder}: no pictures were recorded in it")
    return [ReplayCamera(name, by_camera[name], timeline) for name in sorted(by_camera)]
