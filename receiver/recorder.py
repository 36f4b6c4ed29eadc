"""Records what comes in: the input threads hand it over without waiting, two threads write it.

Between them are lanes bounded in bytes. What the disk does not take in time is dropped there,
counted and said; it never reaches the loops.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.clock import now
from common.session import layout
from receiver.actions import ActionRecord
from receiver.episodes import Episodes
from receiver.folders import SessionFolder, SessionFolders
from receiver.inputs import StoredFrame, StoredState
from receiver.lanes import Lane
from receiver.options import Recording
from receiver.segments import FrameLane, LaneWriter, SampleLane, Segment, StateLane, said_of

__all__ = ["Recorder", "RecorderStatus"]

logger = logging.getLogger(__name__)

_POLL_S = 0.05
_LOOK_EVERY = 20  # polls: once a second
_MIB = 1 << 20
_FRAME_BYTES = 64 * _MIB  # five seconds of five views at 1280x720
_SAMPLE_BYTES = 32 * _MIB  # twelve seconds at 650 Hz
_STATE_BYTES = 4 * _MIB
_ITEM_BYTES = 500  # what an item costs beside its payload, about


@dataclass(frozen=True, slots=True)
class RecorderStatus:
    """Where recording stands, for people.

    Attributes:
        on: whether it records.
        written_bytes: in this run.
        dropped: items that the disk did not take in time, by lane.
        failure: why it stopped by itself, empty when it did not.
    """

    on: bool
    written_bytes: int
    dropped: Mapping[str, int]
    failure: str


class Recorder:
    """A tap that records while it is on; the calls of the tap return at once."""

    def __init__(
        self,
        folders: SessionFolders,
        episodes: Episodes,
        options: Recording,
        aline_length: int,
        describe: Callable[[], dict[str, Any]],
        catch_up: Callable[[], None],
    ) -> None:
        """Record into the episodes' folders; `describe` gives what to note of the receiver.

        `catch_up` shows what has come and was not shown yet: called before recording is switched,
        so that all that came while it was on is recorded.
        """
        self._folders, self._episodes, self._options = folders, episodes, options
        self._describe, self._catch_up = describe, catch_up
        self._lock = threading.Lock()  # taken by the writing threads and by who starts and stops
        self._places: dict[Segment, SessionFolder] = {}
        self._told: set[Segment] = set()
        self._current: Segment | None = None
        self._recording, self._started_at, self._on = 0, 0.0, False
        self._failed = 0
        self.failure = ""
        self._frames: Lane[tuple[Segment, str, StoredFrame]] = Lane("frames", _FRAME_BYTES)
        self._states: Lane[tuple[Segment, StoredState]] = Lane("states", _STATE_BYTES)
        self._samples: Lane[tuple[Segment, bytes, float]] = Lane("datagrams", _SAMPLE_BYTES)
        self._pictures = FrameLane(self._frames, self)
        self._rows: list[LaneWriter[Any]] = [
            StateLane(self._states, self),
            SampleLane(self._samples, self, aline_length),
        ]
        self._writers: list[LaneWriter[Any]] = [self._pictures, *self._rows]

    # --- the tap: called by the loops' threads -----------------------------------------------

    def frame(self, view: str, stored: StoredFrame) -> None:
        """Record a picture."""
        if segment := self._segment_of(stored.arrived_at):
            self._frames.put((segment, view, stored), len(stored.frame.jpeg) + _ITEM_BYTES)

    def state(self, stored: StoredState) -> None:
        """Record a robot state."""
        if segment := self._segment_of(stored.arrived_at):
            self._states.put((segment, stored), _ITEM_BYTES)

    def samples(self, datagram: memoryview, arrived_at: float) -> None:
        """Record a datagram's samples."""
        if segment := self._segment_of(arrived_at):
            data = bytes(datagram)
            self._samples.put((segment, data, arrived_at), len(data) + _ITEM_BYTES)

    def action(self, record: ActionRecord) -> None:
        """Nothing: actions are in the inference results, recorded or not."""

    def _segment(self) -> Segment | None:
        """What is being recorded now. Whoever asks gets an equal one."""
        episode = self._episodes.current
        if not self._on or episode is None or not episode.active:
            return None
        known = self._current
        if known and (known.recording, known.episode) == (self._recording, episode.number):
            return known
        began = max(episode.started_at, self._started_at)
        self._current = Segment(self._recording, episode.number, episode.started_at, began)
        return self._current

    def _segment_of(self, arrived_at: float) -> Segment | None:
        """Where to record what came at that time: nowhere if that was before recording began."""
        segment = self._segment()
        return segment if segment and arrived_at >= segment.started_at else None

    # --- on and off: called by whoever commands -----------------------------------------------

    def start(self) -> None:
        """Record from now on, into new files."""
        self._catch_up()
        with self._lock:
            if not self._on:
                self._recording += 1
                self._started_at = now()
                self.failure = ""
                self._on = True
        logger.info("[RECORD] on")

    def stop(self) -> None:
        """Record no more; the files are finished."""
        self._catch_up()
        if self._on:
            self._on = False
            logger.info("[RECORD] off")

    @property
    def status(self) -> RecorderStatus:
        """Where recording stands."""
        dropped = {w.lane.name: w.lane.dropped + w.discarded for w in self._writers}
        return RecorderStatus(
            self._on,
            sum(writer.written_bytes for writer in self._writers),
            {name: count for name, count in dropped.items() if count},
            self.failure,
        )

    def summary(self) -> dict[str, Any]:
        """What was recorded, for the run's summary."""
        status = self.status
        return {
            "segments": [
                {
                    "folder": str(place.path),
                    **self._counts(segment),
                    "dropped": self._dropped(segment),
                }
                for segment, place in self._places.items()
            ],
            "written_mb": round(status.written_bytes / _MIB, 1),
            "dropped": dict(status.dropped),
            "failure": status.failure,
        }

    # --- the writers: each in a thread of its own ----------------------------------------------

    def write_frames(self, stop: threading.Event) -> None:
        """Write pictures until `stop` is set and everything queued before is on disk."""
        self._write([self._pictures], stop)

    def write_rows(self, stop: threading.Event) -> None:
        """Write states and samples until `stop` is set and everything queued is on disk."""
        self._write(self._rows, stop)

    def _write(self, writers: list[LaneWriter[Any]], stop: threading.Event) -> None:
        polls = 0
        while not stop.wait(_POLL_S):
            polls += 1
            current = self._segment()
            for writer in writers:
                writer.drain()
                writer.settle(current)
            if writers is self._rows and polls % _LOOK_EVERY == 0:
                self._look_at_the_disk()
        self._on = False
        for writer in writers:
            writer.drain()
            writer.settle(None)

    def place(self, segment: Segment) -> SessionFolder:
        """The folder and the stamp of a segment's files; OSError when there can be none."""
        with self._lock:
            if segment not in self._places:
                made = self._folders.of_episode(segment.episode, segment.episode_at).path
                stamp = first = layout.stamp_of(segment.started_at)
                again = 1
                while (made / layout.session_name(stamp)).exists():
                    again += 1
                    stamp = f"{first}_{again}"
                self._places[segment] = SessionFolder(made, stamp)
                self._note(segment)
                logger.info("[RECORD] writing into %s", made)
            return self._places[segment]

    def finished(self, segment: Segment) -> None:
        """One kind of a segment's files is finished: note it."""
        with self._lock:
            if segment not in self._places:
                return
            try:
                self._note(segment)
            except OSError as error:
                logger.warning("[RECORD] the session's note: %s", error.strerror)
            if not self._open_kinds(segment) and segment not in self._told:
                self._told.add(segment)
                counts = self._counts(segment)
                said = ", ".join(
                    f"{sum(n.values()) if isinstance(n, dict) else n} {kind}"
                    for kind, n in counts.items()
                )
                dropped = self._dropped(segment)
                said += f", dropped: {dropped}" if dropped else ", nothing dropped"
                logger.info("[RECORD] finished %s: %s", self._places[segment].path, said)

    def fail(self, error: Exception, segment: Segment) -> None:
        """The disk does not take it: recording stops with one line, and everything else goes on."""
        with self._lock:
            if segment.recording <= self._failed:
                return
            self._failed, self._on = segment.recording, False
            self.failure = f"{said_of(error)} ({self._folders.output_dir})"
        logger.error("[RECORD] stopped: %s; inference goes on", self.failure)

    def broken(self, message: str) -> None:
        """A writing thread is no more, for a reason nobody thought of: nothing is recorded now."""
        self._on, self.failure = False, message
        logger.error("[RECORD] stopped: %s; inference goes on", message)

    def has_failed(self, segment: Segment) -> bool:
        """Whether a segment's recording was given up."""
        return segment.recording <= self._failed

    def _look_at_the_disk(self) -> None:
        segment = self._segment()
        place = self._places.get(segment) if segment else None
        if segment is None or place is None:
            return
        try:
            disk = os.statvfs(place.path)
        except OSError as error:
            self.fail(error, segment)
            return
        # What is left lets the files be finished, and everyone else live.
        if disk.f_bavail * disk.f_frsize < self._options.keep_free_mb * _MIB:
            left = f"less than {self._options.keep_free_mb:g} MB left on the disk"
            self.fail(OSError(28, left), segment)

    def _open_kinds(self, segment: Segment) -> list[str]:
        return [w.lane.name for w in self._writers if w.is_open(segment)]

    def _counts(self, segment: Segment) -> dict[str, Any]:
        counts: dict[str, Any] = {}
        for writer in self._writers:
            counts |= writer.counts(segment)
        return counts

    def _dropped(self, segment: Segment) -> dict[str, int]:
        dropped = {w.lane.name: w.dropped(segment) for w in self._writers}
        return {name: count for name, count in dropped.items() if count}

    def _note(self, segment: Segment) -> None:
        """Write the session's note, as a whole at every moment."""
        place, still_open = self._places[segment], self._open_kinds(segment)
        note = {
            "format": 1,
            "started_at": segment.started_at,
            "written_at": now(),
            "episode": segment.episode,
            **self._describe(),
            **self._counts(segment),
            "dropped": self._dropped(segment),
            "failure": self.failure if self.has_failed(segment) else "",
            "finished": bool(self._counts(segment)) and not still_open,
        }
        path = place.path / layout.session_name(place.stamp)
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
