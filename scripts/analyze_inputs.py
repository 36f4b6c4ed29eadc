"""Reads what a run left: a session's folder, inference results, or the receiver's plain lines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.session import FrameEntry, Session, SessionError, find_sessions
from common.session.reader import read_results

__all__ = ["Run", "Status", "StreamTimes", "read_run"]

Vector = NDArray[np.float64]

_MOST_LINE = 1 << 16
_DAY_S = 86_400
_UPDATE = re.compile(r"\[VL Update #(\d+)\] Completed in (\d+(?:\.\d+)?) ?ms")
_ACTION = re.compile(
    r"\[ACTION #(\d+)\] VL_reuse=(\d+)/(\d+) .*?\| Time: (\d+(?:\.\d+)?) ?ms"
    r"(?: \| Sensor: (\d+)/(\d+))?"
)
_HOLD = re.compile(r"\[HOLD\] (?!over, going on)(.+)")
_MISS = re.compile(r"\[MISS\] deadlines missed: (\d+) in all")
_STATUS = re.compile(r"--- Status \((\d\d):(\d\d):(\d\d)\) ---")
_STATUS_UPDATES = re.compile(r"VL Updates: (\d+) \| VL avg: ")
_STATUS_ACTIONS = re.compile(r"Actions: (\d+) \| Action avg: ")
_STATUS_IMAGES = re.compile(r"Images recv: (.+)")
_IMAGES = re.compile(r"([^\s:,]+):(\d+)")


def _none() -> Vector:
    return np.empty(0)


@dataclass(frozen=True)
class StreamTimes:
    """When a stream's messages came.

    Attributes:
        times: (N,) seconds, those of their capture where their arrival was not noted.
        captured: (N,) seconds, when they were captured.
        delays_ms: (N,) from capture to arrival, empty where that is not known.
        lost: messages that its counters or stamps show to be missing, None where they cannot.
    """

    times: Vector
    captured: Vector
    delays_ms: Vector
    lost: int | None


@dataclass
class Status:
    """A status block: seconds since the first one, and the counts at that moment."""

    at: float
    updates: int | None = None
    actions: int | None = None
    frames: dict[str, int] = field(default_factory=dict)


@dataclass
class Run:
    """What is known of a run; an empty array or dictionary is what the input does not hold.

    Attributes:
        source: what was read, in words.
        name: the input's name.
        action_at: (N,) UNIX seconds, when each action was out.
        deadlines: (N,) UNIX seconds, when each action's tick was due.
        inference_ms: (N,).
        lateness_ms: (N,).
        feature_age_ms: (N,).
        uses: (N,) how many actions each action's features had served, itself included.
        reuse: how many they were to serve.
        update_ms: (U,) duration of each slow pass.
        update_at: (U,) when each was ready, or first used.
        window: (N,) samples in the sensor window.
        window_full: samples in a whole one.
        holds: how often the output went on hold, by reason.
        missed: deadlines missed, None where the input does not say.
        limits: how many actions each limit cut.
        streams: the streams recorded.
        statuses: the status blocks of a log.
    """

    source: str
    name: str
    action_at: Vector = field(default_factory=_none)
    deadlines: Vector = field(default_factory=_none)
    inference_ms: Vector = field(default_factory=_none)
    lateness_ms: Vector = field(default_factory=_none)
    feature_age_ms: Vector = field(default_factory=_none)
    uses: Vector = field(default_factory=_none)
    reuse: int | None = None
    update_ms: Vector = field(default_factory=_none)
    update_at: Vector = field(default_factory=_none)
    window: Vector = field(default_factory=_none)
    window_full: int | None = None
    holds: dict[str, int] = field(default_factory=dict)
    missed: int | None = None
    limits: dict[str, int] = field(default_factory=dict)
    streams: dict[str, StreamTimes] = field(default_factory=dict)
    statuses: list[Status] = field(default_factory=list)


def read_run(path: Path) -> Run:
    """What a session's folder, an inference_results JSON or a log holds; SessionError if none."""
    if path.is_dir():
        folders = find_sessions(path)
        if len(folders) != 1:
            names = ", ".join(folder.name for folder in folders[-3:])
            said = f"{len(folders)} sessions in it, name one: {names}" if folders else "no session"
            raise SessionError(f"{path}: {said}")
        return _of_session(Session(folders[0]))
    if path.suffix == ".json":
        run = Run("inference results", path.name)
        _add_results(run, read_results(path))
    else:
        run = _of_log(path)
    if not len(run.inference_ms) and not len(run.update_ms):
        raise SessionError(f"{path}: no actions and no updates in it; {_expected()}")
    return run


def _expected() -> str:
    return "a session's folder, an inference_results JSON or a log of the receiver is expected"


def _of_session(session: Session) -> Run:
    run = Run("session", session.folder.resolve().name)
    _add_results(run, session.results)
    for note in session.notes:
        if isinstance(reuse := note.get("vl_reuse"), int):
            run.reuse = reuse
    for view in session.views:
        run.streams[view] = _pictures(session.frames(view))
    states, samples = session.states, session.samples
    if len(states):
        run.streams["robot"] = _stream(states.received_at, states.sampled_at, None)
    if len(samples):
        lost = _lost_by_time(samples.timestamps)
        run.streams["sensor"] = _stream(samples.received_at, samples.sampled_at, lost)
    return run


def _stream(arrived: Vector, captured: Vector, lost: int | None) -> StreamTimes:
    if np.isfinite(arrived).all():
        return StreamTimes(arrived, captured, 1e3 * (arrived - captured), lost)
    return StreamTimes(captured, captured, np.empty(0), lost)


def _pictures(entries: Sequence[FrameEntry]) -> StreamTimes:
    counts = [entry.seq for entry in entries]
    known = [seq for seq in counts if seq is not None]
    lost = None
    if len(known) == len(counts):
        steps = np.diff(np.array(known, np.float64))
        lost = int(steps[steps > 1].sum() - np.count_nonzero(steps > 1))
    arrived = np.array([entry.arrived_at for entry in entries])
    return _stream(arrived, np.array([entry.captured_at for entry in entries]), lost)


def _lost_by_time(stamps: Vector) -> int | None:
    """Samples missing in gaps of under a second, from the sensor's own stamps."""
    steps = np.diff(stamps)
    period = float(np.median(steps)) if len(steps) else 0.0
    if period <= 0:
        return None
    gaps = steps[(steps > 1.5 * period) & (steps < 1.0)]
    return int(np.round(gaps / period - 1).sum())


def _column(entries: Sequence[Mapping[str, Any]], key: str, scale: float = 1.0) -> Vector:
    """The numbers under a key; none where not every entry has one."""
    values = [entry.get(key) for entry in entries]
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        return np.empty(0)
    column: Vector = scale * np.array(values, np.float64)
    return column if np.isfinite(column).all() else np.empty(0)


def _add_results(run: Run, entries: Sequence[Mapping[str, Any]]) -> None:
    if not entries:
        return
    run.action_at = _column(entries, "timestamp")
    run.deadlines = _column(entries, "deadline")
    run.inference_ms = _column(entries, "inference_time", 1e3)
    run.lateness_ms = _column(entries, "lateness_ms")
    run.feature_age_ms = _column(entries, "feature_age_ms")
    run.window = _column(entries, "sensor_samples")
    for entry in entries:
        cut = entry.get("limits_applied")
        for name in cut if isinstance(cut, list) else ():
            run.limits[str(name)] = run.limits.get(str(name), 0) + 1
    _add_updates(run, entries)


def _add_updates(run: Run, entries: Sequence[Mapping[str, Any]]) -> None:
    """Slow passes, from the actions that used them."""
    numbers = _column(entries, "vl_update_number")
    if not len(numbers):
        return
    episodes = _column(entries, "episode")
    keys = numbers if not len(episodes) else numbers + 1e9 * episodes
    changed = np.diff(keys, prepend=np.nan) != 0
    firsts = np.flatnonzero(changed)
    # Older results do not count the uses: an update's actions follow each other.
    run.uses = _column(entries, "vl_reuse")
    if not len(run.uses):
        served = np.diff([*firsts, len(keys)])
        run.uses = (np.arange(len(keys)) - np.repeat(firsts, served) + 1).astype(np.float64)
    started, ready = _column(entries, "vl_started_at"), _column(entries, "vl_ready_at")
    if len(started) and len(ready):
        run.update_ms, run.update_at = 1e3 * (ready - started)[firsts], ready[firsts]
    else:
        run.update_at = run.action_at[firsts]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(_MOST_LINE):
                yield line.rstrip("\n")
    except OSError as error:
        raise SessionError(f"{path}: {error.strerror}; {_expected()}") from None


def _of_log(path: Path) -> Run:
    run = Run("log", path.name)
    updates: list[float] = []
    actions: list[tuple[float, ...]] = []
    for line in _lines(path):
        if found := _ACTION.search(line):
            _, use, reuse, took, samples, window = found.groups()
            actions.append((float(use), float(took), float(samples or math.nan)))
            run.reuse = int(reuse)
            run.window_full = int(window) if window else run.window_full
        elif found := _UPDATE.search(line):
            updates.append(float(found[2]))
        elif found := _HOLD.search(line):
            run.holds[found[1]] = run.holds.get(found[1], 0) + 1
        elif found := _MISS.search(line):
            run.missed = int(found[1])
        else:
            _take_status(run.statuses, line)
    columns = np.array(actions, np.float64).reshape(-1, 3).T
    run.uses, run.inference_ms = columns[0], columns[1]
    run.window = columns[2] if np.isfinite(columns[2]).all() else np.empty(0)
    run.update_ms = np.array(updates)
    # A log of a run without a miss says nothing of them.
    if run.missed is None and len(run.statuses):
        run.missed = 0
    return run


def _take_status(statuses: list[Status], line: str) -> None:
    if found := _STATUS.search(line):
        hours, minutes, seconds = map(int, found.groups())
        at = float(3600 * hours + 60 * minutes + seconds)
        while statuses and at < statuses[-1].at:
            at += _DAY_S  # past midnight
        statuses.append(Status(at))
    elif not statuses:
        return
    elif found := _STATUS_UPDATES.search(line):
        statuses[-1].updates = int(found[1])
    elif found := _STATUS_ACTIONS.search(line):
        statuses[-1].actions = int(found[1])
    elif found := _STATUS_IMAGES.search(line):
        statuses[-1].frames = {name: int(count) for name, count in _IMAGES.findall(found[1])}
