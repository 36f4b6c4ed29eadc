"""A recorded session as rows at a fixed rate: what was newest at each instant, and nothing later.

A session's streams have clocks of their own. At instant k / fps after its start a row takes of
every stream the newest sample at or before that instant. Where one is older than it may be, there
is no row; since rows follow each other at a fixed rate, a session falls into runs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.session import FrameEntry, Session, SessionError, newest_at

__all__ = ["ActionSource", "GridOptions", "Run", "runs_of"]

ActionSource: TypeAlias = Literal["auto", "executed", "next_state"]

_DEFAULT_FPS = 10
_PERIODS_IN_FORCE = 3
"""The robot's side holds after so many periods without an action: then none is in force."""
_MOST_ROWS = 10_000_000
_JOINTS = 6

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class GridOptions:
    """How a session becomes rows."""

    fps: int = 0
    """Rows a second; 0 is the rate of the session's actions, or 10 where it has none."""
    actions: ActionSource = "auto"
    """executed: the first row of the action in force; next_state: where the robot is a row later,
    for demonstrations; auto: executed where the session has actions, else next_state."""
    max_age_s: float = 0.2
    """A row is left out, and the run ends, where a picture, state or sample is older."""
    shortest_s: float = 1.0
    """Shorter runs are left out."""
    task: str = ""
    """The instruction; empty: the session's own."""

    def __post_init__(self) -> None:
        """ValueError for values that make no sense."""
        if not 0 <= self.fps <= 1000:
            raise ValueError(f"fps must be 1 to 1000, or 0 for the actions' rate, not {self.fps}")
        if not 0 < self.max_age_s < 3600 or not 0 <= self.shortest_s < 3600:
            raise ValueError("max_age_s must be above 0 and shortest_s at least 0")


@dataclass(frozen=True)
class Run:
    """Rows that follow each other at a fixed rate.

    Attributes:
        fps: rows a second.
        moments: (N,) instants, UNIX seconds in the receiver's clock.
        pictures: N pictures of each view.
        states: (N,) indices into the session's states, None where it has none.
        samples: (N,) indices into the session's samples, None where it has none.
        actions: (N, A) float32.
        tasks: N instructions.
    """

    fps: int
    moments: Vector
    pictures: dict[str, list[FrameEntry]]
    states: NDArray[np.int64] | None
    samples: NDArray[np.int64] | None
    actions: NDArray[np.float32]
    tasks: list[str]

    def __len__(self) -> int:
        """How many rows."""
        return len(self.moments)


@dataclass(frozen=True)
class _Stream:
    """One stream's times (rising) and which of its samples each belongs to."""

    times: Vector
    order: NDArray[np.int64]
    max_age_s: float

    @classmethod
    def of(cls, times: ArrayLike, max_age_s: float) -> _Stream:
        values = np.asarray(times, np.float64)
        order = np.argsort(values, kind="stable").astype(np.int64)
        order = order[np.isfinite(values[order])]
        return cls(values[order], order, max_age_s)

    def at(self, moments: Vector) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each moment the newest sample's index, and whether it is there and new enough."""
        found = newest_at(self.times, moments)
        kept = np.clip(found, 0, None)
        fresh = (found >= 0) & (moments - self.times[kept] <= self.max_age_s)
        return self.order[kept], fresh


@dataclass(frozen=True)
class _Actions:
    """The actions that can be used: when, the first row of each, and the task."""

    times: Vector
    rows: NDArray[np.float32]
    tasks: list[str]

    @property
    def period_s(self) -> float:
        return float(np.median(np.diff(np.sort(self.times)))) if len(self.times) > 1 else 0.0


def runs_of(session: Session, options: GridOptions) -> list[Run]:
    """The session's rows, in runs, oldest first.

    Raises SessionError for a session that has no pictures, no source of actions or no rows.
    """
    if not session.views:
        raise SessionError(f"{session.folder}: no pictures were recorded")
    executed = _executed(session)
    source = _source(session, options, executed)
    fps = options.fps or _rate(executed)
    entries = {view: session.frames(view) for view in session.views}
    streams = _streams(session, entries, options.max_age_s)
    if source == "executed":
        in_force_s = _PERIODS_IN_FORCE * (executed.period_s or 1.0 / fps)
        streams["actions"] = _Stream.of(executed.times, in_force_s)
    moments = _moments(session, list(streams.values()), fps)
    found = {name: stream.at(moments) for name, stream in streams.items()}
    fresh = np.logical_and.reduce([ok for _, ok in found.values()])
    runs = []
    for start, end in _stretches(fresh):
        rows = {name: index[start:end] for name, (index, _) in found.items()}
        if source == "executed":
            chosen = rows["actions"]
            actions, tasks = executed.rows[chosen], [executed.tasks[k] for k in chosen]
        else:
            # The last row has no row after it to be the action of.
            actions = session.states.joints[rows["states"][1:]].astype(np.float32)
            tasks = [""] * len(actions)
        count = len(actions)
        if count < max(2, round(options.shortest_s * fps)):
            continue
        tasks = [options.task or task or session.task for task in tasks]
        if not all(tasks):
            raise SessionError(f"{session.folder}: no task was recorded; give one")
        runs.append(
            Run(
                fps,
                moments[start : start + count],
                {v: [entries[v][n] for n in rows[_view(v)][:count]] for v in entries},
                rows["states"][:count] if "states" in rows else None,
                rows["samples"][:count] if "samples" in rows else None,
                actions,
                tasks,
            )
        )
    if not runs:
        raise SessionError(
            f"{session.folder}: at no time for {options.shortest_s:g} s were all of "
            f"{', '.join(streams)} there and new enough"
        )
    return runs


def _view(name: str) -> str:
    return f"pictures of {name}"


def _streams(
    session: Session, entries: dict[str, list[FrameEntry]], age: float
) -> dict[str, _Stream]:
    streams = {}
    for view, pictures in entries.items():
        streams[_view(view)] = _Stream.of([picture.captured_at for picture in pictures], age)
    if len(session.states):
        streams["states"] = _Stream.of(session.states.sampled_at, age)
    if len(session.samples):
        streams["samples"] = _Stream.of(session.samples.sampled_at, age)
    return streams


def _source(session: Session, options: GridOptions, executed: _Actions) -> ActionSource:
    source = options.actions
    if source == "auto":
        source = "executed" if len(executed.times) else "next_state"
    if source == "executed" and not len(executed.times):
        raise SessionError(f"{session.folder}: no action was recorded; take the next state instead")
    if source == "next_state" and not len(session.states):
        raise SessionError(f"{session.folder}: neither actions nor robot states were recorded")
    return source


def _rate(executed: _Actions) -> int:
    period_s = executed.period_s
    return min(max(round(1.0 / period_s), 1), 1000) if period_s > 0 else _DEFAULT_FPS


def _moments(session: Session, streams: Sequence[_Stream], fps: int) -> Vector:
    """The instants at which every stream may have something."""
    if not all(len(stream.times) for stream in streams):
        raise SessionError(f"{session.folder}: a stream without a single time")
    start = max(float(stream.times[0]) for stream in streams)
    end = min(float(stream.times[-1]) for stream in streams)
    if end < start:
        raise SessionError(
            f"{session.folder}: its streams do not overlap; were their clocks set alike?"
        )
    if (end - start) * fps > _MOST_ROWS:
        raise SessionError(f"{session.folder}: {end - start:.0f} s are too many at {fps} Hz")
    count = int((end - start) * fps) + 1
    moments: Vector = start + np.arange(count) / fps
    return moments


def _stretches(fresh: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end of each run of true values."""
    edges = np.flatnonzero(np.diff(fresh.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _executed(session: Session) -> _Actions:
    """The first rows of the recorded actions; those on hold or not sound are no actions."""
    times, rows, tasks = [], [], []
    for entry in session.results:
        row = _first_row(entry)
        if row is not None:
            times.append(float(entry["timestamp"]))
            rows.append(row)
            tasks.append(str(entry.get("task") or ""))
    if len({len(row) for row in rows}) > 1:
        raise SessionError(f"{session.folder}: actions of different widths")
    return _Actions(np.array(times), np.array(rows, np.float32), tasks)


def _first_row(entry: dict[str, Any]) -> NDArray[np.float32] | None:
    if entry.get("hold"):
        return None
    try:
        chunk = np.asarray(entry.get("actions"), np.float32)
    except (TypeError, ValueError):
        return None
    if chunk.ndim != 2 or not len(chunk) or chunk.shape[1] not in (_JOINTS, _JOINTS + 1):
        return None
    row: NDArray[np.float32] = chunk[0]
    return row if np.isfinite(row).all() else None
