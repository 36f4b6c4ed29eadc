"""Compares two recordings of the same data, such as a session and the recording of its replay.

python scripts/compare_sessions.py FIRST SECOND
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs()

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from common.session import Session, SessionError

__all__ = ["Compared", "compare"]

_EDGE = 64


@dataclass(frozen=True)
class CompareOptions:
    """Say whether two sessions hold the same bytes and values in the same order, and how timed."""

    first: Annotated[Path, tyro.conf.Positional]
    """A session's folder."""
    second: Annotated[Path, tyro.conf.Positional]
    """Another's."""
    speed: float = 1.0
    """How much faster the second was played."""


@dataclass(frozen=True)
class Compared:
    """How one stream of the second session fits the first's.

    Attributes:
        name: the stream.
        first: items in the first session.
        second: items in the second.
        same: items that are equal, one after the other.
        shifts_s: (same,) arrival in the second less arrival in the first; NaN where not known.
    """

    name: str
    first: int
    second: int
    same: int
    shifts_s: NDArray[np.float64]

    @property
    def equal(self) -> bool:
        """Whether both hold the same, whole."""
        return self.first == self.second == self.same


def _digests(count: int, item: Callable[[int], bytes]) -> list[bytes]:
    return [hashlib.blake2b(item(k), digest_size=16).digest() for k in range(count)]


def _fit(
    name: str,
    first: Sequence[bytes],
    second: Sequence[bytes],
    times: tuple[NDArray[np.float64], NDArray[np.float64]],
    speed: float,
) -> Compared:
    """The longest run of equal items when one may have begun up to _EDGE items later."""
    best, at = 0, (0, 0)
    for skip in range(min(_EDGE, max(len(first), len(second), 1))):
        for a, b in ((skip, 0), (0, skip)):
            pairs = zip(first[a:], second[b:], strict=False)
            same = next((k for k, (x, y) in enumerate(pairs) if x != y), None)
            run = min(len(first) - a, len(second) - b) if same is None else same
            if run > best:
                best, at = run, (a, b)
        if best >= min(len(first), len(second)) - skip:
            break
    (a, b), (one, two) = at, times
    began = one[a] if best else 0.0
    shifts = two[b : b + best] - (began + (one[a : a + best] - began) / speed)
    return Compared(name, len(first), len(second), best, shifts)


def _rows(values: NDArray[Any]) -> Callable[[int], bytes]:
    def item(k: int) -> bytes:
        return bytes(np.ascontiguousarray(values[k]).tobytes())

    return item


def compare(first: Session, second: Session, speed: float = 1.0) -> list[Compared]:
    """Every stream that one of them has; SessionError for what cannot be read."""
    found = []
    for view in sorted({*first.views, *second.views}):
        one, two = first.frames(view), second.frames(view)
        sides = [_digests(len(side), lambda k, side=side: side[k].read()) for side in (one, two)]  # type: ignore[misc]
        times = tuple(np.array([entry.arrived_at for entry in side]) for side in (one, two))
        found.append(_fit(view, sides[0], sides[1], (times[0], times[1]), speed))
    both = (first.states, second.states)
    rows = [np.column_stack([s.forces, s.joints, s.pose]).astype(np.float32) for s in both]
    sides = [_digests(len(side), _rows(side)) for side in rows]
    found.append(
        _fit("robot", sides[0], sides[1], (both[0].received_at, both[1].received_at), speed)
    )
    samples = (first.samples, second.samples)
    sides = [
        _digests(len(s), lambda k, s=s: s.forces[k].tobytes() + s.alines[k].tobytes())  # type: ignore[misc]
        for s in samples
    ]
    arrivals = (samples[0].received_at, samples[1].received_at)
    found.append(_fit("sensor", sides[0], sides[1], arrivals, speed))
    return [stream for stream in found if stream.first or stream.second]


def timing_ms(streams: Sequence[Compared]) -> NDArray[np.float64]:
    """How far each item's arrival is off, in ms, with the sessions' beginnings laid together."""
    shifts = np.concatenate([stream.shifts_s for stream in streams])
    known = shifts[np.isfinite(shifts)]
    off: NDArray[np.float64] = 1e3 * np.abs(known - np.median(known)) if len(known) else known
    return off


def main() -> int:
    """Compare and print; the exit code (0: the same, 1: not)."""
    options = cli.parse(CompareOptions)
    try:
        streams = compare(Session(options.first), Session(options.second), options.speed)
    except SessionError as error:
        cli.fail(str(error))
    out = Console()
    table = Table(title="the same items, in the same order")
    for heading in ("stream", "first", "second", "same", "p50", "p99", "worst"):
        table.add_column(heading, justify="left" if heading == "stream" else "right")
    middle = np.median(np.concatenate([s.shifts_s for s in streams])) if streams else 0.0
    for stream in streams:
        off = 1e3 * np.abs(stream.shifts_s - middle)
        figures = [f"{q:.2f} ms" for q in np.percentile(off, (50, 99, 100))] if len(off) else []
        mark = "green" if stream.equal else "red"
        counts = (str(stream.first), str(stream.second), f"[{mark}]{stream.same}[/{mark}]")
        table.add_row(stream.name, *counts, *figures)
    out.print(table)
    off = timing_ms(streams)
    if len(off):
        p50, p99, worst = np.percentile(off, (50, 99, 100))
        out.print(f"arrival against the first: p50 {p50:.2f}, p99 {p99:.2f}, worst {worst:.2f} ms")
    same = bool(streams) and all(stream.equal for stream in streams)
    out.print("the same" if same else "[red]not the same[/red]")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
