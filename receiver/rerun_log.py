"""Logs what the receiver tells to Rerun: pictures, curves, a rolling B-scan, text."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import rerun as rr
from numpy.typing import NDArray

from common import wire
from receiver.rerun_layout import COLORS, JOINT_NAMES, PLAN_HEIGHT, PLAN_WIDTH, TIMELINE
from receiver.rerun_tap import RerunSetup
from receiver.rerun_wire import (
    ActionSeen,
    FrameSeen,
    LineSaid,
    Message,
    SamplesSeen,
    StateSeen,
    decode,
)

__all__ = ["RerunLog"]

_SCAN_COLUMNS = 512
_SCAN_ROWS = 256
_SCAN_PERIOD_S = 0.2
_TIMINGS = ("inference_ms", "lateness_ms", "feature_age_ms", "update_ms")
_LEVELS = {logging.WARNING: "WARN", logging.ERROR: "ERROR", logging.CRITICAL: "CRITICAL"}


class RerunLog:
    """Takes the tap's messages and logs them to a recording."""

    def __init__(self, recording: rr.RecordingStream, setup: RerunSetup) -> None:
        """Name the curves."""
        self._recording, self._setup = recording, setup
        self._task: str | None = None
        self._scans = _RollingScans()
        self.broken = 0
        joints = rr.SeriesLines(names=list(JOINT_NAMES), colors=list(COLORS[:6]))
        recording.log("robot/joints", joints, static=True)
        recording.log(
            "robot/position", rr.SeriesLines(names=["x", "y", "z"], colors=_colors(3)), static=True
        )
        columns = list(setup.columns)
        actions = rr.SeriesLines(names=columns, colors=_colors(len(columns)))
        recording.log("action/first_row", actions, static=True)
        recording.log(
            "sensor/force", rr.SeriesLines(names=["force"], colors=_colors(1)), static=True
        )
        for n, name in enumerate(_TIMINGS):
            line = rr.SeriesLines(names=[_spoken(name)], colors=[COLORS[n % 2]])
            recording.log(f"timing/{name}", line, static=True)
        for n, name in enumerate((*setup.views, "robot", "sensor")):
            line = rr.SeriesLines(names=[name], colors=[COLORS[n % len(COLORS)]])
            recording.log(f"age_ms/{name}", line, static=True)

    def take(self, parts: list[bytes]) -> None:
        """Log one message; one that is broken is counted."""
        try:
            message = decode(parts)
            self._show(message)
        except ValueError:
            self.broken += 1

    def _show(self, message: Message) -> None:
        if isinstance(message, FrameSeen):
            picture = rr.EncodedImage(contents=message.jpeg, media_type="image/jpeg")
            self._log(message.arrived_at, f"views/{message.view}", picture)
        elif isinstance(message, StateSeen):
            self._log(message.sampled_at, "robot/joints", rr.Scalars(list(message.joints)))
            self._log(message.sampled_at, "robot/position", rr.Scalars(list(message.pose[:3])))
        elif isinstance(message, SamplesSeen):
            self._show_samples(message)
        elif isinstance(message, ActionSeen):
            self._show_action(message)
        else:
            self._show_line(message)

    def _log(self, at: float, entity: str, value: Any) -> None:
        self._recording.set_time(TIMELINE, timestamp=at)
        self._recording.log(entity, value)

    def _show_samples(self, message: SamplesSeen) -> None:
        batch = wire.decode_samples(message.datagram, self._setup.aline_length)
        # The last of them was sent just before it came; the others as long before it as their own
        # stamps say.
        times = message.arrived_at + (batch.timestamps - float(batch.send_timestamps[-1]))
        self._recording.send_columns(
            "sensor/force",
            [rr.TimeColumn(TIMELINE, timestamp=times)],
            rr.Scalars.columns(scalars=batch.forces.astype(np.float64)),
        )
        image = self._scans.add(batch.alines, message.arrived_at)
        if image is not None:
            self._log(message.arrived_at, "sensor/ascans", rr.Image(image, "L"))

    def _show_action(self, message: ActionSeen) -> None:
        at, rows = message.at, message.rows
        self._log(at, "action/first_row", rr.Scalars(rows[0].astype(np.float64).tolist()))
        for name in _TIMINGS:
            if name in message.numbers:
                self._log(at, f"timing/{name}", rr.Scalars(message.numbers[name]))
        for name, age_ms in message.ages_ms.items():
            self._log(at, f"age_ms/{name}", rr.Scalars(age_ms))
        lines, legend = _plan(rows, list(self._setup.columns))
        self._log(at, "action/chunk/lines", lines)
        self._log(at, "action/chunk/legend", legend)
        if message.task != self._task:
            self._task = message.task
            text = f"**{message.task}**\n\n{self._setup.title}\n\nspace: {self._setup.space}"
            document = rr.TextDocument(text, media_type="text/markdown")
            self._log(at, "task", document)
        if message.cut:
            said = f"limits: {', '.join(message.cut)}"
            self._log(at, "log", rr.TextLog(said, level="DEBUG"))

    def _show_line(self, message: LineSaid) -> None:
        level = _LEVELS.get(message.level, "INFO")
        self._log(message.at, "log", rr.TextLog(message.text, level=level))


def _spoken(name: str) -> str:
    return name.removesuffix("_ms").replace("_", " ")


def _plan(rows: NDArray[np.float32], columns: list[str]) -> tuple[rr.LineStrips2D, rr.Points2D]:
    """A chunk's rows as one line a column, each from its own start and all to one scale; a legend.

    The largest change fills the height; the legend says how much each column changes in all.
    """
    height, width = rows.shape
    change = rows - rows[0]
    scale = PLAN_HEIGHT / 2 / max(float(np.abs(change).max()), 1e-3)
    x = np.linspace(0.0, PLAN_WIDTH, max(height, 2))[:height]
    strips = [np.stack([x, -scale * change[:, n]], 1).tolist() for n in range(width)]
    names = [columns[n] if n < len(columns) else str(n) for n in range(width)]
    labels = [f"{name} {change[-1, n]:+.2f}" for n, name in enumerate(names)]
    places = [(1.2 * PLAN_WIDTH, PLAN_HEIGHT * ((n + 0.5) / width - 0.5)) for n in range(width)]
    colors = _colors(width)
    return (
        rr.LineStrips2D(strips, colors=colors, radii=0.5),
        rr.Points2D(places, colors=colors, labels=labels, radii=0.5, show_labels=True),
    )


def _colors(count: int) -> list[tuple[int, int, int]]:
    return [COLORS[n % len(COLORS)] for n in range(count)]


class _RollingScans:
    """The newest A-scans as a picture: a column a datagram, depth downwards, the newest right."""

    def __init__(self) -> None:
        self._image = np.zeros((_SCAN_ROWS, _SCAN_COLUMNS), np.float32)
        self._largest = 1e-6
        self._due = 0.0

    def add(self, alines: NDArray[np.float32], at: float) -> NDArray[np.uint8] | None:
        """Take the A-scans of a datagram; the picture, five times a second."""
        if alines.shape[1] == 0:
            return None
        column = np.abs(alines).max(axis=0)
        rows = min(_SCAN_ROWS, len(column))
        starts = np.linspace(0, len(column), rows, endpoint=False).astype(np.int64)
        column = np.maximum.reduceat(column, starts)
        self._image[:, :-1] = self._image[:, 1:]
        self._image[:rows, -1] = column
        # The scale follows the largest echo, and forgets it in some seconds.
        self._largest = max(float(column.max()), 0.999 * self._largest)
        if at < self._due:
            return None
        self._due = at + _SCAN_PERIOD_S
        shown = np.clip(self._image[:rows] / self._largest * 255, 0, 255)
        return np.asarray(shown, np.uint8)
