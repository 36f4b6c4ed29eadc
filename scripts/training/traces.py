"""What a policy is trained on, from demonstrations and from recorded sessions, in one form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.session import Session, find_sessions, newest_at
from sim.ascan import synthesize
from sim.demonstrations import Demonstration, read_demonstrations

__all__ = ["Trace", "demonstrated", "from_demonstration", "from_session", "read_traces"]

Vector = NDArray[np.float64]
Windows = Callable[[float, int, np.random.Generator], NDArray[np.float32]]
"""(samples, channels) of the sensor up to a time; also takes a generator for speckle."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One episode.

    Attributes:
        goal_deg: (6,) joint angles when the task was done.
        times_s: (N,) moments of the joint angles, ascending.
        joints_deg: (N, 6).
        ticks_s: (K,) moments that `rows_deg` says what to do at; none: what the arm did next, at
            any moment, is the example.
        rows_deg: (K, H, 6) joint targets, 0.1 s apart.
        first_s: from when on there is a whole sensor window.
        window: gives the sensor window that ends at a time.
        seen_s: (P,) when pictures were taken.
        pictures: P JPEGs by view.
    """

    goal_deg: Vector
    times_s: Vector
    joints_deg: Vector
    ticks_s: Vector
    rows_deg: NDArray[np.float32]
    first_s: float
    window: Windows
    seen_s: Vector
    pictures: dict[str, list[bytes]]

    @property
    def moves(self) -> bool:
        """Whether there is anything to learn of acting."""
        return len(self.times_s) > 1


def from_demonstration(made: Demonstration) -> Trace:
    """A trace whose A-scans are made when they are asked for, with speckle of their own."""

    def window(at_s: float, samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
        stop = int(np.searchsorted(made.sampled_s, at_s + 1e-9, side="right"))
        part = slice(max(stop - samples, 0), stop)
        scans = synthesize(made.distances_mm[part], rng)
        return np.concatenate((made.forces_n[part, None], scans), axis=1)

    return Trace(
        goal_deg=made.goal_deg,
        times_s=made.times_s,
        joints_deg=made.joints_deg,
        ticks_s=made.ticks_s,
        rows_deg=made.rows_deg,
        first_s=0.1,
        window=window,
        seen_s=made.seen_s,
        pictures=made.pictures,
    )


# The end of an episode, over which the goal is averaged; pictures a second that are looked at.
_END_S = 1.0
_LOOKS_HZ = 2.0


def from_session(session: Session, views: tuple[str, ...]) -> Trace:
    """A trace of a recorded session: what the robot did is the example.

    Raises:
        SessionError: the session cannot be read.
        ValueError: a stream is missing, or it is shorter than a second.
    """
    states, samples = session.states, session.samples
    missing = [view for view in views if view not in session.views]
    if missing or not len(states.sampled_at) or not len(samples.sampled_at):
        what = [*missing, *(["robot"] if not len(states.sampled_at) else [])]
        what += [] if len(samples.sampled_at) else ["sensor"]
        raise ValueError(f"{session.folder}: nothing recorded of {', '.join(what)}")
    frames = {view: session.frames(view) for view in views}
    begins = max(
        states.sampled_at[0],
        samples.sampled_at[0],
        *(entries[0].captured_at for entries in frames.values()),
    )
    times = states.sampled_at - begins
    inside = times >= 0
    if not inside.any() or times[-1] < _END_S:
        raise ValueError(f"{session.folder}: shorter than {_END_S:g} s")
    seen = np.arange(0.0, times[-1], 1.0 / _LOOKS_HZ)
    pictures = {
        view: [
            entries[place].read()
            for place in newest_at([e.captured_at - begins for e in entries], seen + 1e-6)
        ]
        for view, entries in frames.items()
    }
    sampled = samples.sampled_at - begins

    def window(at_s: float, count: int, _: np.random.Generator) -> NDArray[np.float32]:
        stop = int(np.searchsorted(sampled, at_s, side="right"))
        part = slice(max(stop - count, 0), max(stop, 1))
        forces = np.asarray(samples.forces[part], np.float32)[:, None]
        return np.concatenate((forces, np.asarray(samples.alines[part], np.float32)), axis=1)

    joints = np.asarray(states.joints, np.float64)
    return Trace(
        goal_deg=joints[times >= times[-1] - _END_S].mean(axis=0),
        times_s=times[inside],
        joints_deg=joints[inside],
        ticks_s=np.zeros(0),
        rows_deg=np.zeros((0, 0, 6), np.float32),
        first_s=0.1,
        window=window,
        seen_s=seen,
        pictures=pictures,
    )


def read_traces(folders: Sequence[Path], views: tuple[str, ...]) -> list[Trace]:
    """All traces of some folders: files of demonstrations, a session, or sessions.

    Raises:
        SessionError, ValueError, OSError: with one line, for what cannot be used.
    """
    traces: list[Trace] = []
    for folder in folders:
        before = len(traces)
        traces += demonstrated(folder)
        sessions = [] if len(traces) > before else find_sessions(folder)
        traces += [from_session(Session(path), views) for path in sessions]
        if len(traces) == before:
            raise ValueError(f"{folder}: neither demonstrations (*.npz) nor sessions in it")
    return traces


def demonstrated(folder: Path) -> Iterator[Trace]:
    """Traces of all files of demonstrations in a folder; ValueError or OSError for bad ones."""
    for path in sorted(folder.glob("*.npz")):
        for made in read_demonstrations(path):
            yield from_demonstration(made)
