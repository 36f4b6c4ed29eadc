"""A recorded session as one object; sessions of older rigs too."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.session import layout
from common.session.frames import FrameEntry, read_frames
from common.session.layout import PART, SessionError
from common.session.rows import Samples, States, read_samples, read_states

__all__ = ["Session", "find_sessions", "newest_at", "read_results"]

_MAX_JSON = 4 << 30
_MAX_META = 16 << 20


def newest_at(times: ArrayLike, moments: ArrayLike) -> NDArray[np.int64]:
    """For each moment the index of the newest of the rising `times` at or before it; −1 if none."""
    found: NDArray[np.int64] = np.searchsorted(np.asarray(times), np.asarray(moments), "right") - 1
    return found


def _load(path: Path, largest: int) -> Any:
    try:
        if path.stat().st_size > largest:
            raise SessionError(f"{path}: over {largest >> 20} MiB")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise SessionError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        hint = "scripts/recover_session.py mends a file that was cut short"
        raise SessionError(f"{path}: not JSON ({error}); {hint}") from None


def read_results(path: Path) -> list[dict[str, Any]]:
    """The entries of an inference_results file, of older rigs too; SessionError if it is none."""
    entries = _load(path, _MAX_JSON)
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise SessionError(f"{path}: not a list of inference results")
    for number, entry in enumerate(entries):
        at = entry.get("timestamp")
        if isinstance(at, bool) or not isinstance(at, (int, float)):
            raise SessionError(f"{path}: entry {number} has no timestamp")
    return entries


class Session:
    """One recorded session (one episode). Files are read when first asked for.

    All time points named `…_at` are UNIX seconds in the receiver's clock. Reading raises
    SessionError, one line, for what cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        """The session in `folder`; SessionError when there is none."""
        self.folder = folder
        if not folder.is_dir():
            raise SessionError(f"{folder}: no such folder; give a session's, async_inference_…")
        if not _is_session(folder):
            raise SessionError(f"{folder}: no session in it (no pictures, states or results)")

    @cached_property
    def all_frames(self) -> list[FrameEntry]:
        """Every picture, in the order in which they came."""
        return read_frames(self.folder)

    @cached_property
    def views(self) -> tuple[str, ...]:
        """The views that have pictures, sorted."""
        return tuple(sorted({entry.view for entry in self.all_frames}))

    def frames(self, view: str) -> list[FrameEntry]:
        """One view's pictures, in the order in which they came."""
        return [entry for entry in self.all_frames if entry.view == view]

    @cached_property
    def states(self) -> States:
        """The robot's states; none where none were recorded."""
        return read_states(self.folder)

    @cached_property
    def samples(self) -> Samples:
        """The force samples; none where none were recorded."""
        return read_samples(self.folder)

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """The inference results, one map an action: docs/sessions.md names the keys.

        Older rigs' have `timestamp`, `actions`, `delta`, `inference_time`, `vl_update_number` and
        `robot_state` only.
        """
        found: list[dict[str, Any]] = []
        for _, path in layout.stamps_in(self.folder, "inference_results_", ".json"):
            found += read_results(path)
        return found

    @cached_property
    def notes(self) -> list[dict[str, Any]]:
        """What the receiver said of each recording in the folder; none for older rigs'."""
        paths = [path for _, path in layout.stamps_in(self.folder, "session_", ".json")]
        notes = [_load(path, _MAX_META) for path in paths]
        if not all(isinstance(note, dict) for note in notes):
            raise SessionError(f"{self.folder}: session_….json holds no map")
        return notes

    @property
    def unfinished(self) -> list[Path]:
        """Files that a killed receiver left: scripts/recover_session.py finishes them."""
        return sorted(self.folder.glob(f"*{PART}"))

    @property
    def task(self) -> str:
        """The instruction; of the last action where it changed, empty where it is not known."""
        said: Iterable[dict[str, Any]] = [*self.notes, *self.results[-1:]]
        tasks = [str(entry["task"]) for entry in said if entry.get("task")]
        return tasks[-1] if tasks else ""

    @cached_property
    def span(self) -> tuple[float, float]:
        """First and last time point at which something came (or, unknown, was captured)."""
        times: list[float] = []
        for entry in (*self.all_frames[:1], *self.all_frames[-1:]):
            times.append(entry.captured_at)
        for rows in (self.states.sampled_at, self.samples.sampled_at):
            times += [float(rows[0]), float(rows[-1])] if len(rows) else []
        times += [float(entry["timestamp"]) for entry in (*self.results[:1], *self.results[-1:])]
        if not times:
            raise SessionError(f"{self.folder}: nothing was recorded")
        return min(times), max(times)


def _is_session(folder: Path) -> bool:
    kinds = ("frames_*.csv", "robot_state_*.csv", "sensor_data_*", "inference_results_*.json")
    return any(next(folder.glob(kind), None) for kind in (*kinds, "*/*.jpg"))


def find_sessions(path: Path) -> list[Path]:
    """`path` itself if it is a session's folder, else those in it, oldest first; may be none."""
    if not path.is_dir():
        raise SessionError(f"{path}: no such folder")
    if _is_session(path) and not any(path.glob("async_inference_*/")):
        return [path]
    return sorted(p for p in path.glob("async_inference_*/") if _is_session(p))
