"""What can be wrong with a recorded session, found by looking at all of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.jpeg import JpegError, jpeg_size
from common.session.findings import Finding, SessionReport, StreamReport
from common.session.frames import FrameEntry
from common.session.layout import SessionError
from common.session.reader import Session
from common.session.rows import Samples, States

__all__ = ["broken_pictures", "check_session"]

Vector = NDArray[np.float64]
T = TypeVar("T")

GAP_PERIODS = 3.0
JUMP_S = 0.2
FEWER = 0.5
"""A view with less than this part of the fullest view's pictures is remarked on."""
_QUICK_PICTURES = 200
_QUICK_PIECES = 10
_PIECE_BYTES = 8 << 20
_READERS = 4
_TOGETHER = 256


def check_session(folder: Path, quick: bool = False) -> SessionReport:
    """Look at a session as a whole; never raises for what is wrong with it.

    `quick` opens some 200 pictures a view and a tenth of the A-scans; otherwise all.
    """
    report = SessionReport(folder)
    found = report.findings
    try:
        session = Session(folder)
    except SessionError as error:
        found.append(Finding("session", str(error), True))
        return report
    for path in session.unfinished:
        found.append(
            Finding("session", f"{path.name} is unfinished: scripts/recover_session.py", True)
        )

    def part(stream: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (SessionError, OSError) as error:
            found.append(Finding(stream, str(error), True))
            return otherwise

    notes: list[dict[str, Any]] = part("session", lambda: session.notes, [])
    frames: list[FrameEntry] = part("pictures", lambda: session.all_frames, [])
    states = part("robot", lambda: session.states, None)
    samples = part("sensor", lambda: session.samples, None)
    results: list[dict[str, Any]] = part("actions", lambda: session.results, [])
    report.actions = len(results)
    found += _check_notes(notes, frames, states)
    found += _check_views(folder, notes, frames)
    for view in sorted({entry.view for entry in frames}):
        _check_view(report, view, [entry for entry in frames if entry.view == view], quick)
    if states is not None:
        _check_states(report, states)
    if samples is not None:
        _check_samples(report, samples, quick)
    if not report.streams:
        found.append(Finding("session", "no pictures, states or samples", True))
    elif len(report.streams) > 1 and report.covered_s <= 0:
        found.append(_nothing_covered(frames, states, samples))
    return report


def _nothing_covered(
    frames: Sequence[FrameEntry], states: States | None, samples: Samples | None
) -> Finding:
    text = "no moment is covered by all streams"
    arrivals = [entry.arrived_at for entry in frames[:1]]
    arrivals += [float(r.received_at[0]) for r in (states, samples) if r is not None and len(r)]
    if all(math.isfinite(at) for at in arrivals):
        return Finding("session", text, True)
    # As older rigs recorded it: some times are in the senders' own clocks.
    return Finding("session", f"{text}; arrivals were not recorded, so their clocks may differ")


def _numbers(entry: object) -> dict[str, int]:
    """The counts in a map that may hold anything."""
    if not isinstance(entry, dict):
        return {}
    return {str(k): v for k, v in entry.items() if isinstance(v, int) and not isinstance(v, bool)}


def _check_notes(
    notes: Sequence[dict[str, Any]], frames: Sequence[FrameEntry], states: States | None
) -> Iterator[Finding]:
    """What the recorder says of it."""
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    for note in notes:
        dropped.update(_numbers(note.get("dropped")))
        noted.update(_numbers(note.get("frames")))
        noted.update(_numbers({"robot": note.get("states")}))
        if failure := note.get("failure"):
            yield Finding("session", f"recording stopped: {failure}")
        if note.get("finished") is False:
            yield Finding("session", "the receiver did not finish it")
    for kind, count in dropped.items():
        if count:
            yield Finding("session", f"the recorder dropped {count} {kind}")
    there = Counter(entry.view for entry in frames)
    there["robot"] = len(states) if states is not None else 0
    for stream, count in noted.items():
        if there[stream] < count:
            yield Finding(stream, f"{count} were recorded, {there[stream]} are there", True)


def _check_views(
    folder: Path, notes: Sequence[dict[str, Any]], frames: Sequence[FrameEntry]
) -> Iterator[Finding]:
    """Views that should be there, and views with much less than the others."""
    named = {path.name for path in folder.iterdir() if path.is_dir()}
    for note in notes:
        views = note.get("views")
        listed = views.values() if isinstance(views, dict) else views
        named |= {view for view in listed or () if isinstance(view, str)}
    counts = Counter(entry.view for entry in frames)
    for view in sorted(named - set(counts)):
        yield Finding(view, "no pictures", True)
    most = max(counts.values(), default=0)
    for view, count in sorted(counts.items()):
        if count < FEWER * most:
            yield Finding(view, f"{count} pictures where another view has {most}")


def _timing(stream: str, at: Vector) -> StreamReport | None:
    """Count, rate and gaps of readings at times `at`; None without any."""
    known = np.sort(at[np.isfinite(at)])
    if not len(known):
        return None
    begin, end = float(known[0]), float(known[-1])
    steps = np.diff(known)
    if not len(steps) or end <= begin:
        return StreamReport(stream, len(at), 0.0, begin, end, 0.0, 0)
    gaps = int((steps > GAP_PERIODS * np.median(steps)).sum())
    rate = len(steps) / (end - begin)
    return StreamReport(stream, len(at), rate, begin, end, float(steps.max()), gaps)


def _check_times(
    report: SessionReport, stream: str, at: Vector, stamps: Vector, sent: Vector, arrived: Vector
) -> None:
    """Gaps and clocks; `at` in the receiver's clock, stamps as the sender gave them."""
    found = report.findings
    if (timing := _timing(stream, at)) is not None:
        report.streams.append(timing)
        if timing.gaps:
            longest = f"the longest {timing.longest_gap_s:.3f} s"
            found.append(Finding(stream, f"{timing.gaps} gaps over 3 periods, {longest}"))
    if broken := int((~np.isfinite(stamps)).sum()):
        found.append(Finding(stream, f"{broken} stamps are no numbers", True))
    with np.errstate(invalid="ignore"):
        steps = np.diff(stamps)
    if back := int((steps < 0).sum()):
        what = "samples out of order" if stream == "sensor" else "stamps go back"
        found.append(Finding(stream, f"{back} {what}, by up to {-np.nanmin(steps):.3f} s"))
    jumps = _clock_jumps(sent, arrived)
    if len(jumps):
        largest = max(jumps.tolist(), key=abs)
        text = f"the sender's clock jumps {len(jumps)} times, by up to {largest:+.3f} s"
        found.append(Finding(stream, text))


def _clock_jumps(sent: Vector, arrived: Vector) -> Vector:
    """By how much the sender's clock jumps against arrivals, wherever it does.

    The least of *arrival − sent* in each second is compared with that of the second before: a
    stall makes messages late, but seldom all of a second's.
    """
    known = np.isfinite(sent) & np.isfinite(arrived)
    sent, arrived = sent[known], arrived[known]
    if len(sent) < 2:
        return np.empty(0)
    second = np.floor(arrived - arrived[0])
    starts = np.flatnonzero(np.diff(second, prepend=-1) != 0)
    least = np.minimum.reduceat(arrived - sent, starts)
    steps: Vector = -np.diff(least)
    return steps[np.abs(steps) > JUMP_S]


def _check_view(
    report: SessionReport, view: str, entries: Sequence[FrameEntry], quick: bool
) -> None:
    columns = [(e.captured_at, e.timestamp, e.send_timestamp, e.arrived_at) for e in entries]
    _check_times(report, view, *np.array(columns, np.float64).T)
    for camera in sorted({entry.camera for entry in entries}):
        counted = [e.seq for e in entries if e.camera == camera and e.seq is not None]
        steps = np.diff(np.array(counted, np.int64))
        if lost := int((steps[steps > 1] - 1).sum()):
            report.findings.append(Finding(view, f"{lost} pictures of {camera} never came (seq)"))
        if again := int((steps <= 0).sum()):
            text = f"{camera} counts from the start again, or twice, {again} times (seq)"
            report.findings.append(Finding(view, text))
    step = max(len(entries) // _QUICK_PICTURES, 1) if quick else 1
    wanted = entries[::step]
    report.pictures_checked += len(wanted)
    if wrong := broken_pictures(wanted):
        text = f"{len(wrong)} of {len(wanted)} pictures broken, the first: {wrong[0]}"
        report.findings.append(Finding(view, text, True))


def broken_pictures(entries: Sequence[FrameEntry]) -> list[str]:
    """What is wrong with each picture that is no whole JPEG; all are read."""

    def look(first: int) -> list[str]:
        wrong = []
        for entry in entries[first : first + _TOGETHER]:
            try:
                jpeg_size(entry.read())
            except SessionError as error:
                wrong.append(str(error))
            except JpegError as error:
                wrong.append(f"{entry.path}: {error}")
        return wrong

    # While one thread waits for the disk, others look at what came.
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(look, range(0, len(entries), _TOGETHER))
        return [text for part in found for text in part]


def _check_states(report: SessionReport, states: States) -> None:
    if not len(states):
        report.findings.append(Finding("robot", "no states"))
        return
    clocks = (states.timestamps, states.send_timestamps, states.received_at)
    _check_times(report, "robot", states.sampled_at, *clocks)
    values = np.column_stack([states.forces, states.joints, states.pose])
    if wrong := int((~np.isfinite(values).all(axis=1)).sum()):
        report.findings.append(Finding("robot", f"{wrong} states hold what is no number", True))


def _check_samples(report: SessionReport, samples: Samples, quick: bool) -> None:
    if not len(samples):
        report.findings.append(Finding("sensor", "no samples"))
        return
    clocks = (samples.timestamps, samples.send_timestamps, samples.received_at)
    _check_times(report, "sensor", samples.sampled_at, *clocks)
    if wrong := int((~np.isfinite(samples.forces)).sum()):
        report.findings.append(Finding("sensor", f"{wrong} forces are no numbers", True))
    if wrong := _broken_alines(samples.alines, quick):
        report.findings.append(Finding("sensor", f"{wrong} A-scans hold what is no number", True))


def _broken_alines(alines: NDArray[np.float32], quick: bool) -> int:
    """A-scans with a value that is no number; a piece of the file is looked at after another."""
    rows = max(math.ceil(_PIECE_BYTES / max(4 * alines.shape[1], 1)), 1)
    step = rows * (_QUICK_PIECES if quick else 1)
    wrong = 0
    for first in range(0, len(alines), step):
        piece = _piece(alines, first, min(rows, len(alines) - first))
        wrong += int((~np.isfinite(piece).all(axis=1)).sum())
    return wrong


def _piece(alines: NDArray[np.float32], first: int, count: int) -> NDArray[np.float32]:
    """Some rows; of a mapped file mapped anew, so that what was looked at does not stay in."""
    if not isinstance(alines, np.memmap) or alines.filename is None:
        return alines[first : first + count]
    offset = alines.offset + first * alines.strides[0]
    return np.memmap(alines.filename, np.float32, "r", offset, (count, alines.shape[1]))
