"""A recorder's writers: from a lane into the files of one stretch of recording after another."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from common import wire
from common.session.frames import FrameFiles
from common.session.layout import SessionError
from common.session.rows import SampleFile, StateFile
from receiver.folders import SessionFolder
from receiver.inputs import StoredFrame, StoredState
from receiver.lanes import Lane

__all__ = ["FrameLane", "LaneWriter", "SampleLane", "Segment", "StateLane", "said_of"]

logger = logging.getLogger(__name__)

_SAY_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch that is recorded into one set of files: a recording and an episode met."""

    recording: int
    episode: int
    episode_at: float
    started_at: float


class Recording(Protocol):
    """What a writer asks and tells."""

    def place(self, segment: Segment) -> SessionFolder:
        """Where to write."""
        ...

    def finished(self, segment: Segment) -> None:
        """The files are finished."""
        ...

    def fail(self, error: Exception, segment: Segment) -> None:
        """The files cannot be written."""
        ...

    def has_failed(self, segment: Segment) -> bool:
        """Whether the segment was given up."""
        ...


T = TypeVar("T", bound=tuple[Any, ...])


def said_of(error: Exception) -> str:
    """An error as part of one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    known = isinstance(error, SessionError)  # a view that can be no folder
    return str(error) if known else f"{type(error).__name__}: {error}"


class LaneWriter(ABC, Generic[T]):
    """Writes the items of a lane; opens and finishes files as segments change. One thread."""

    def __init__(self, lane: Lane[T], recording: Recording) -> None:
        """Take from `lane`, whose items begin with their segment."""
        self.lane = lane
        self._recording = recording
        self._segment: Segment | None = None
        self._counts: dict[Segment, Counter[str]] = {}
        self._dropped: dict[Segment, int] = {}
        self._dropped_before = self._said = 0
        self._say_at = 0.0
        self.written_bytes = 0
        self.discarded = 0  # what came after a recording was given up

    @abstractmethod
    def _open(self, place: SessionFolder) -> None:
        """Begin files; OSError."""

    @abstractmethod
    def _add(self, item: T) -> tuple[str, int, int]:
        """Write one item: what it counts as, how many, and the bytes; OSError."""

    @abstractmethod
    def _finish(self) -> None:
        """Finish the files; OSError."""

    @abstractmethod
    def _abandon(self) -> None:
        """Close the files as they are."""

    def drain(self) -> None:
        """Write everything that waits."""
        while (item := self.lane.take()) is not None:
            segment: Segment = item[0]
            if self._recording.has_failed(segment):
                self.discarded += 1
                continue
            try:
                if segment != self._segment:
                    self._close()
                    self._open(self._recording.place(segment))
                    self._segment = segment
                    self._counts[segment] = Counter()
                    self._dropped_before = self.lane.dropped + self.discarded
                kind, count, size = self._add(item)
            except Exception as error:  # whatever it is, it ends the recording and nothing else
                self._recording.fail(error, segment)
                self._close()
            else:
                self._counts[segment][kind] += count
                self.written_bytes += size
        self._say_drops()

    def settle(self, current: Segment | None) -> None:
        """Finish the files unless they are those of what is recorded now."""
        if self._segment is not None and self._segment != current:
            self._close()

    def is_open(self, segment: Segment) -> bool:
        """Whether files of this segment are still being written."""
        return self._segment == segment

    def counts(self, segment: Segment) -> dict[str, Any]:
        """What was written of a segment."""
        counts = self._counts.get(segment)
        return {} if counts is None else self._told(counts)

    def dropped(self, segment: Segment) -> int:
        """What was not written of a segment."""
        if segment == self._segment:
            return self.lane.dropped + self.discarded - self._dropped_before
        return self._dropped.get(segment, 0)

    def _told(self, counts: Counter[str]) -> dict[str, Any]:
        return {self.lane.name: counts[self.lane.name]}

    def _close(self) -> None:
        segment = self._segment
        if segment is None:
            return
        try:
            self._finish()
        except Exception as error:
            self._abandon()
            logger.warning(
                "[RECORD] %s cannot be finished (%s): scripts/recover_session.py does that",
                self.lane.name,
                said_of(error),
            )
        self._dropped[segment] = self.dropped(segment)
        self._segment = None
        self._recording.finished(segment)

    def _say_drops(self) -> None:
        if self.lane.dropped > self._said and time.monotonic() >= self._say_at:
            self._said, self._say_at = self.lane.dropped, time.monotonic() + _SAY_EVERY_S
            logger.warning(
                "[RECORD] the disk is too slow: %d %s dropped", self._said, self.lane.name
            )


class FrameLane(LaneWriter[tuple[Segment, str, StoredFrame]]):
    """Pictures."""

    def _open(self, place: SessionFolder) -> None:
        self._files = FrameFiles(place.path, place.stamp)

    def _add(self, item: tuple[Segment, str, StoredFrame]) -> tuple[str, int, int]:
        _, view, stored = item
        size = self._files.add(view, stored.frame, stored.captured_at, stored.arrived_at)
        return view, 1, size

    def _finish(self) -> None:
        self._files.close()

    _abandon = _finish

    def _told(self, counts: Counter[str]) -> dict[str, Any]:
        return {"frames": dict(counts)}


class StateLane(LaneWriter[tuple[Segment, StoredState]]):
    """Robot states."""

    def _open(self, place: SessionFolder) -> None:
        self._file = StateFile(place.path, place.stamp)

    def _add(self, item: tuple[Segment, StoredState]) -> tuple[str, int, int]:
        _, stored = item
        return "states", 1, self._file.add(stored.state, stored.arrived_at)

    def _finish(self) -> None:
        self._file.close()

    _abandon = _finish


class SampleLane(LaneWriter[tuple[Segment, bytes, float]]):
    """Force samples and A-scans."""

    def __init__(
        self, lane: Lane[tuple[Segment, bytes, float]], recording: Recording, aline_length: int
    ) -> None:
        """A-scans of `aline_length` values."""
        super().__init__(lane, recording)
        self._aline_length = aline_length

    def _open(self, place: SessionFolder) -> None:
        self._file = SampleFile(place.path, place.stamp, self._aline_length)

    def _add(self, item: tuple[Segment, bytes, float]) -> tuple[str, int, int]:
        _, datagram, arrived_at = item
        batch = wire.decode_samples(datagram, self._aline_length)
        return "samples", len(batch), self._file.add(batch, arrived_at)

    def _finish(self) -> None:
        self._file.finish()

    def _abandon(self) -> None:
        self._file.abandon()

    def _told(self, counts: Counter[str]) -> dict[str, Any]:
        return {"samples": counts["samples"]}
