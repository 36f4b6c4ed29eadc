"""A recorded motion on an even grid of times: what the comparison is held against. Pure."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_JOINTS", "Series", "Trajectory", "TrajectoryError", "on_a_grid"]

MAX_JOINTS = 64
_MOST_ROWS = 1_000_000
_MAX_FILE = 1 << 30
_LONGEST_NAME = 200

Vector: TypeAlias = NDArray[np.float64]
Series: TypeAlias = tuple[Vector, Vector]
"""Times (K,) in seconds and values (K,) of one joint, in any order."""


class TrajectoryError(Exception):
    """A recording that cannot be used; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Joint positions at a fixed rate; row k is k / rate seconds after the first.

    Attributes:
        names: of the A joints.
        positions: (N, A), degrees (or what a joint that is no angle was recorded in).
        rate_hz: rows a second.
        source: where it comes from, for people.
        longest_gap_s: the longest time without a sample of some joint, bridged by a straight line.
    """

    names: tuple[str, ...]
    positions: Vector
    rate_hz: float
    source: str = ""
    longest_gap_s: float = 0.0

    def __post_init__(self) -> None:
        """TrajectoryError for what makes no sense."""
        if not 1 <= len(self.names) <= MAX_JOINTS or len(set(self.names)) != len(self.names):
            raise TrajectoryError(f"{self.source}: from 1 to {MAX_JOINTS} joints, each once")
        if any(not n or len(n) > _LONGEST_NAME or not n.isprintable() for n in self.names):
            raise TrajectoryError(f"{self.source}: a joint has no name, or none that can be shown")
        if self.positions.ndim != 2 or self.positions.shape[1] != len(self.names):
            raise TrajectoryError(f"{self.source}: not one position for each joint in a row")
        if not 2 <= len(self.positions) <= _MOST_ROWS or not np.isfinite(self.positions).all():
            raise TrajectoryError(f"{self.source}: from 2 to {_MOST_ROWS:,} finite rows are needed")
        if not 1.0 <= self.rate_hz <= 1000.0:
            raise TrajectoryError(f"{self.source}: a rate of {self.rate_hz:g} Hz")

    def __len__(self) -> int:
        """How many rows."""
        return len(self.positions)

    @property
    def period_s(self) -> float:
        """Seconds between two rows."""
        return 1.0 / self.rate_hz

    @property
    def seconds(self) -> float:
        """How long it lasts, each row for one period."""
        return len(self) / self.rate_hz

    @property
    def times_s(self) -> Vector:
        """(N,) seconds since the first row."""
        return np.arange(len(self)) / self.rate_hz

    @property
    def top_speeds(self) -> Vector:
        """(A,) the fastest that each joint moves, units a second."""
        return np.asarray(np.abs(np.diff(self.positions, axis=0)).max(axis=0) * self.rate_hz)

    @property
    def identity(self) -> str:
        """Tells this motion from others."""
        content = np.ascontiguousarray(self.positions).tobytes()
        about = f"{self.names} {self.rate_hz!r} ".encode()
        return hashlib.sha256(about + content).hexdigest()[:16]

    def first(self, seconds: float) -> Trajectory:
        """The first so many seconds of it; all of it where it is shorter."""
        rows = max(round(seconds * self.rate_hz), 2)
        return replace(self, positions=self.positions[:rows])

    def save(self, path: Path) -> None:
        """Write it as an npz of plain arrays; OSError when that cannot be."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                names=np.array(self.names),
                positions=self.positions,
                rate_hz=np.array(self.rate_hz),
            )

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Read what `save` wrote; TrajectoryError for anything else."""
        try:
            if path.stat().st_size > _MAX_FILE:
                raise TrajectoryError(f"{path}: over {_MAX_FILE >> 20} MiB")
            with np.load(path, allow_pickle=False) as arrays:
                names = tuple(str(name) for name in arrays["names"])
                positions = np.asarray(arrays["positions"], np.float64)
                return cls(names, positions, float(arrays["rate_hz"]), str(path))
        except OSError as error:
            raise TrajectoryError(f"{path}: {error.strerror or error}") from None
        except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise TrajectoryError(f"{path}: no trajectory of this program ({error})") from None


def on_a_grid(
    series: Mapping[str, Series], rate_hz: float, source: str, joints: Sequence[str] = ()
) -> Trajectory:
    """Joints, each with times of its own, as rows at one rate; straight lines between samples.

    The grid covers the time in which every joint has samples. Samples that are not finite are
    left out; of several at one time the last counts. `joints` picks and orders; all by default.

    Raises:
        TrajectoryError: a joint that is not there, fewer than two samples, no common time.
    """
    wanted = tuple(joints) or tuple(series)
    if missing := [name for name in wanted if name not in series]:
        raise TrajectoryError(
            f"{source}: no joint {', '.join(missing)}; there are {', '.join(series) or 'none'}"
        )
    if not wanted:
        raise TrajectoryError(f"{source}: no joint has a position")
    sound = {name: _sound(*series[name]) for name in wanted}
    if short := [name for name, (times, _) in sound.items() if len(times) < 2]:
        raise TrajectoryError(f"{source}: fewer than two positions of {', '.join(short)}")
    start = max(float(times[0]) for times, _ in sound.values())
    end = min(float(times[-1]) for times, _ in sound.values())
    # A last row that is a rounding error beyond the end is still a row.
    rows = int(np.floor((end - start) * rate_hz + 1e-6)) + 1
    if rows < 2:
        raise TrajectoryError(f"{source}: its joints have no two rows at {rate_hz:g} Hz in common")
    if rows > _MOST_ROWS:
        raise TrajectoryError(f"{source}: {end - start:.0f} s are too long at {rate_hz:g} Hz")
    grid = start + np.arange(rows) / rate_hz
    columns = [np.interp(grid, times, values) for times, values in sound.values()]
    gap_s = max(float(np.diff(times).max()) for times, _ in sound.values())
    return Trajectory(wanted, np.stack(columns, axis=1), rate_hz, source, gap_s)


def _sound(times: Vector, values: Vector) -> Series:
    """Finite samples in the order of time, one for each time."""
    kept = np.isfinite(times) & np.isfinite(values)
    times, values = times[kept], values[kept]
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    last = np.append(np.diff(times) > 0, True)[: len(times)]
    return times[last], values[last]
