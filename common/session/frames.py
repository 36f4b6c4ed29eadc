"""Pictures in a session: a JPEG file each, the very bytes that came in, and an index of them."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.session import layout
from common.session.layout import FRAME_COLUMNS, SessionError
from common.wire import MAX_JPEG, CameraFrame

__all__ = ["FrameEntry", "FrameFiles", "index_line", "indexed", "read_frames", "unindexed"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NAME = re.compile(r"(?P<camera>.+)_(?P<timestamp>\d{1,10}\.\d{3})(_\d+)?\.jpg")
_MOST_AGAIN = 10_000


@dataclass(frozen=True, slots=True)
class FrameEntry:
    """One recorded picture. A time that the session does not hold is NaN.

    Attributes:
        folder: where its file lies.
        file: the file's name.
        view: the view it belongs to.
        camera: the sender's name for the camera.
        seq: the sender's count, None where it does not count.
        timestamp: capture time in the sender's clock.
        send_timestamp: when it was sent, in the sender's clock.
        captured_at: capture time in the receiver's clock; the sender's where nothing better is
            known.
        arrived_at: when it came, in the receiver's clock.
    """

    folder: Path
    file: str
    view: str
    camera: str
    seq: int | None
    timestamp: float
    send_timestamp: float
    captured_at: float
    arrived_at: float

    @property
    def path(self) -> Path:
        """The JPEG."""
        return self.folder / self.file

    @property
    def sent_at(self) -> float:
        """When it was sent, in the receiver's clock; its capture time where that is not known."""
        since_capture = self.send_timestamp - self.timestamp
        return self.captured_at if math.isnan(since_capture) else self.captured_at + since_capture

    def read(self) -> bytes:
        """The JPEG's bytes; SessionError when it cannot be read."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_JPEG + 1)
        except OSError as error:
            raise SessionError(f"{self.path}: {error.strerror}") from None
        if len(data) > MAX_JPEG:
            raise SessionError(f"{self.path}: over {MAX_JPEG >> 20} MiB, no recorded picture")
        return data


def index_line(values: Iterable[object]) -> bytes:
    """One line of the index; None is empty."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode()


class FrameFiles:
    """Writes pictures and their index; for one thread."""

    def __init__(self, folder: Path, stamp: str) -> None:
        """Begin an index in `folder`; OSError when that cannot be."""
        self._folder = folder
        self._index = open(folder / layout.frames_name(stamp), "xb", buffering=0)  # noqa: SIM115
        self._index.write(index_line(FRAME_COLUMNS))
        self._views: set[str] = set()
        self.count = 0

    def add(self, view: str, frame: CameraFrame, captured_at: float, arrived_at: float) -> int:
        """Write one picture; the bytes written. OSError (and nothing left of it) when that fails.

        The index follows the file, so that what is in the index is whole.
        """
        folder = self._folder / view
        if view not in self._views:
            folder = self._folder / layout.safe_view(view)
            folder.mkdir(exist_ok=True)
            self._views.add(view)
        file = self._write(folder, frame)
        values = (
            view,
            file,
            frame.camera,
            frame.seq,
            repr(frame.timestamp),
            None if frame.send_timestamp is None else repr(frame.send_timestamp),
            repr(arrived_at),
            repr(captured_at),
            len(frame.jpeg),
        )
        self._index.write(index_line(values))
        self.count += 1
        return len(frame.jpeg)

    def _write(self, folder: Path, frame: CameraFrame) -> str:
        for again in range(_MOST_AGAIN):
            file = layout.jpeg_name(frame.camera, frame.timestamp, again)
            path = f"{folder}/{file}"
            try:
                descriptor = os.open(path, _NEW, 0o644)
            except FileExistsError:
                continue
            try:
                left = memoryview(frame.jpeg)
                while left:
                    left = left[os.write(descriptor, left) :]
            except OSError:
                os.unlink(path)
                raise
            finally:
                os.close(descriptor)
            return file
        raise FileExistsError(17, "too many pictures of one millisecond", str(folder))

    def close(self) -> None:
        """Close the index."""
        self._index.close()


def _number(text: str | None) -> float:
    return float(text) if text else math.nan


def _entry(folder: Path, row: dict[str, str]) -> FrameEntry:
    view, file = layout.safe_view(row["view"]), row["file"]
    if not file or Path(file).name != file:
        raise SessionError(f"{file!r} is no file's name")
    timestamp, captured_at = float(row["timestamp"]), _number(row["captured_at"])
    return FrameEntry(
        folder=folder / view,
        file=file,
        view=view,
        camera=row["camera"],
        seq=int(row["seq"]) if row["seq"] else None,
        timestamp=timestamp,
        send_timestamp=_number(row["send_timestamp"]),
        captured_at=timestamp if math.isnan(captured_at) else captured_at,
        arrived_at=_number(row["recv_timestamp"]),
    )


def indexed(folder: Path) -> list[FrameEntry]:
    """The pictures that the indexes know, in their order; SessionError for a broken index."""
    found: list[FrameEntry] = []
    for _, path in layout.stamps_in(folder, "frames_", ".csv"):
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(line for line in file if line.endswith("\n"))
            if not set(FRAME_COLUMNS) <= set(reader.fieldnames or ()):
                raise SessionError(f"{path}: not an index of pictures")
            try:
                found += [_entry(folder, row) for row in reader]
            except (KeyError, TypeError, ValueError) as error:
                where = f"{path}, line {reader.line_num}"
                raise SessionError(
                    f"{where}: {error}; scripts/recover_session.py mends it"
                ) from None
    return found


def _from_name(folder: Path, file: str) -> FrameEntry | None:
    if not (match := _NAME.fullmatch(file)):
        return None
    at = float(match["timestamp"])
    return FrameEntry(folder, file, folder.name, match["camera"], None, at, math.nan, at, math.nan)


def unindexed(folder: Path, known: Iterable[FrameEntry]) -> list[FrameEntry]:
    """Pictures that no index knows, by their names alone: all of an older rig's."""
    files: dict[str, set[str]] = {}
    for entry in known:
        files.setdefault(entry.view, set()).add(entry.file)
    found: list[FrameEntry] = []
    for view in sorted(path for path in folder.iterdir() if path.is_dir()):
        there = files.get(view.name, set())
        with os.scandir(view) as listing:
            names = sorted(item.name for item in listing if item.name.endswith(".jpg"))
        new = [_from_name(view, name) for name in names if name not in there]
        found += [entry for entry in new if entry is not None]
    return found


def read_frames(folder: Path) -> list[FrameEntry]:
    """Every picture of a session, in the order in which they came; SessionError if it cannot be."""
    try:
        found = indexed(folder)
        found += unindexed(folder, found)
    except OSError as error:
        raise SessionError(f"{folder}: {error.strerror}") from None
    if any(math.isnan(entry.arrived_at) for entry in found):
        found.sort(key=lambda entry: entry.captured_at)
    return found
