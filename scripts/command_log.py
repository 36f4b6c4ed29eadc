"""What a simulated robot was told, read back from its record, and checked against its limits.

The checks are written from the limits' meaning, not with the code that applies them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["CommandLog", "Limits", "read_commands", "violations"]

_SAME = 1e-6
_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class CommandLog:
    """Commands in the order in which they were given.

    Attributes:
        at: (N,) monotonic seconds.
        is_move: (N,) whether it was a motion; otherwise the robot was told to stay.
        targets: (N, A) where to.
        measured: (N, A) where the joints were.
    """

    at: NDArray[np.float64]
    is_move: NDArray[np.bool_]
    targets: NDArray[np.float64]
    measured: NDArray[np.float64]

    @property
    def moves_at(self) -> NDArray[np.float64]:
        """Times of the motions."""
        return self.at[self.is_move]

    def between(self, begin: float, end: float) -> CommandLog:
        """The commands given from `begin` to `end`."""
        inside = (self.at >= begin) & (self.at <= end)
        return CommandLog(
            self.at[inside], self.is_move[inside], self.targets[inside], self.measured[inside]
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a robot's targets must keep to.

    Attributes:
        low: lowest target of every joint.
        high: highest.
        step: largest change from one command to the next.
        speed: largest change in a second.
        fps: commands a second.
    """

    low: float = -180.0
    high: float = 180.0
    step: float = 2.0
    speed: float = 60.0
    fps: float = 30.0


def read_commands(path: Path) -> CommandLog:
    """Read a record; one of a robot that was never opened has no rows, nor has a missing one.

    A last line that was cut off (the program was killed) is left out. ValueError for a file that
    is no record.
    """
    at: list[float] = []
    is_move: list[bool] = []
    values: list[list[float]] = []
    if not path.exists() or not path.stat().st_size:
        return CommandLog(np.empty(0), np.empty(0, bool), np.empty((0, 0)), np.empty((0, 0)))
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        head = next(rows)
        if head[:2] != ["monotonic_s", "command"] or len(head) % 2:
            raise ValueError(f"{path} is no record of commands")
        for row in rows:
            if len(row) != len(head):
                break
            at.append(float(row[0]))
            is_move.append(row[1] == "move")
            values.append([float(text) for text in row[2:]])
    count = (len(head) - 2) // 2
    both = np.array(values).reshape(-1, 2 * count)
    return CommandLog(np.array(at), np.array(is_move, bool), both[:, :count], both[:, count:])


def violations(log: CommandLog, limits: Limits) -> list[str]:
    """A line for each command that breaks a limit, the first twenty; empty when none does."""
    moves = np.flatnonzero(log.is_move)
    found: list[tuple[int, str]] = []

    def look(what: str, index: NDArray[np.int64], worst: NDArray[np.float64], most: float) -> None:
        for k in np.flatnonzero(~(worst <= most)):  # a NaN is a violation too
            found.append((int(index[k]), f"{what} {worst[k]:.6g}, at most {most:g}"))

    if not len(moves):
        return []
    targets = log.targets[moves]
    finite = np.isfinite(targets)
    beyond = np.maximum(limits.low - targets, targets - limits.high)
    look("out of range by", moves, np.where(finite, beyond, np.inf).max(axis=1), _SAME)
    # A motion starts from the target before it, or from where the robot was held.
    previous = np.where(
        (moves[:, None] > 0) & log.is_move[np.maximum(moves - 1, 0)][:, None],
        log.targets[np.maximum(moves - 1, 0)],
        log.measured[moves],
    )
    look("step of", moves, np.abs(targets - previous).max(axis=1), limits.step + _SAME)
    # In a second: as far as its ticks allow, and one at either end.
    at = log.at[moves]
    last = np.searchsorted(at, at + 1.0, side="right") - 1
    far = np.abs(targets[last] - targets).max(axis=1)
    allowed = limits.speed * (at[last] - at + 2 / limits.fps)
    look("too fast, over the allowed way by", moves, far - allowed, _SAME)
    lines = [f"command {k} at {log.at[k]:.3f} s: {what}" for k, what in sorted(found)]
    rest = len(lines) - _MOST_SHOWN
    return lines[:_MOST_SHOWN] + ([f"… and {rest} more"] if rest > 0 else [])
