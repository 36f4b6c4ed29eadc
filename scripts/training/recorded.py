"""A recorded session as what is trained on: what the robot did is the example."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.session import FrameEntry, Samples, Session, States, newest_at
from scripts.training.traces import OLDEST_LOOK_S, Trace, Vector

__all__ = ["TooShort", "from_session"]

# The end of an episode, over which the goal is averaged; pictures a second that are looked at.
_END_S = 1.0
_LOOKS_HZ = 2.0
_OLDEST_PICTURE_S = 0.5
_OLDEST_SAMPLE_S = 0.1
# Between two states further apart nobody knows where the arm was.
_GAP_S, _GAP_PERIODS = 0.1, 3.0
_WINDOW_S = 0.1
_FIND = "scripts/validate_session.py says where"


class TooShort(ValueError):
    """A session of less than a second: nothing can be seen of how it was done."""


def from_session(session: Session, views: tuple[str, ...]) -> Trace:
    """A trace of a recorded session. Its end is taken for the goal: it must have gone well.

    What is not known well is no example: ticks in a gap of the robot's states, without samples of
    the last 0.1 s, or without a picture of the last 2 s.

    Raises:
        SessionError: the session cannot be read.
        TooShort: all streams together cover less than a second.
        ValueError: a stream is missing, or holds what is no number.
    """
    name = session.folder
    states, samples = session.states, session.samples
    frames = {view: session.frames(view) for view in views}
    missing = [view for view in views if not frames[view]]
    missing += [] if len(states) else ["robot"]
    missing += [] if len(samples) and samples.alines.shape[1] else ["sensor"]
    if missing:
        raise ValueError(f"{name}: nothing recorded of {', '.join(missing)}")
    felt = _Felt(name, samples)
    shots = {view: _Shots(entries) for view, entries in frames.items()}
    at, joints = _joints(name, states)
    begins = max(at[0], felt.first_at, *(shot.at[0] for shot in shots.values()))
    inside = at >= begins
    times = at[inside] - begins
    if not len(times) or times[-1] < _END_S:
        raise TooShort(f"{name}: shorter than {_END_S:g} s")
    seen, pictures = _looks(name, shots, begins, float(times[-1]))
    joints = joints[inside]
    looked_s = times - seen[np.maximum(newest_at(seen, times), 0)]
    unknown = _before_gaps(times) | (felt.age_s(times + begins) > _OLDEST_SAMPLE_S)

    def window(at_s: float, count: int, _: np.random.Generator) -> NDArray[np.float32]:
        return felt.window(begins + at_s, count)

    return Trace(
        source=str(name),
        goal_deg=joints[times >= times[-1] - _END_S].mean(axis=0),
        times_s=times,
        joints_deg=joints,
        excluded=unknown | (looked_s > OLDEST_LOOK_S),
        first_s=max(_WINDOW_S, float(seen[0])),
        window=window,
        seen_s=seen,
        pictures=pictures,
    )


def _joints(name: Path, states: States) -> tuple[Vector, Vector]:
    """Times (N,) in the order of time, and the joint angles (N, 6) at them."""
    order = np.argsort(states.sampled_at, kind="stable")
    at, joints = states.sampled_at[order], states.joints[order]
    if not (np.isfinite(at).all() and np.isfinite(joints).all()):
        raise ValueError(f"{name}: robot states hold what is no number; {_FIND}")
    return at, joints


def _before_gaps(times: Vector) -> NDArray[np.bool_]:
    """Which states (N,) are followed by too long a time without one."""
    steps = np.diff(times)
    longest = max(_GAP_S, _GAP_PERIODS * float(np.median(steps))) if len(steps) else _GAP_S
    return np.append(steps > longest, False)


class _Shots:
    """One view's pictures in the order of time."""

    def __init__(self, entries: list[FrameEntry]) -> None:
        self.entries = sorted(entries, key=lambda entry: entry.captured_at)
        self.at = np.array([entry.captured_at for entry in self.entries])


def _looks(
    name: Path, shots: dict[str, _Shots], begins: float, span_s: float
) -> tuple[Vector, dict[str, list[bytes]]]:
    """Looks from the beginning on, where no picture is old: when (P,), and the JPEGs by view.

    A look is of the moment at which the oldest of its pictures was taken.
    """
    moments = begins + np.arange(0.0, span_s, 1.0 / _LOOKS_HZ)
    # A time is rounded on its way: the last of the first pictures is as late as the beginning.
    newest = {view: newest_at(shot.at, moments + 1e-6) for view, shot in shots.items()}
    taken = np.min([shot.at[newest[view]] for view, shot in shots.items()], axis=0)
    fresh = moments - taken <= _OLDEST_PICTURE_S
    if not fresh.any():
        raise ValueError(f"{name}: at no moment pictures of {', '.join(shots)}")
    pictures = {
        view: [shot.entries[place].read() for place in newest[view][fresh]]
        for view, shot in shots.items()
    }
    return taken[fresh] - begins, pictures


class _Felt:
    """A session's samples in the order of time; the A-scans stay in their file."""

    def __init__(self, name: Path, samples: Samples) -> None:
        self._name, self._samples = name, samples
        self._order = np.argsort(samples.sampled_at, kind="stable")
        self._at = samples.sampled_at[self._order]
        if not np.isfinite(self._at).all():
            raise ValueError(f"{name}: samples have stamps that are no numbers; {_FIND}")

    @property
    def first_at(self) -> float:
        """When the first was taken."""
        return float(self._at[0])

    def age_s(self, moments: Vector) -> Vector:
        """How old (N,) the newest is at some moments; infinite where there is none yet."""
        newest = newest_at(self._at, moments)
        age: Vector = np.where(newest < 0, np.inf, moments - self._at[np.maximum(newest, 0)])
        return age

    def window(self, moment: float, count: int) -> NDArray[np.float32]:
        """The newest (up to `count`, channels) at a moment; ValueError for what is no number."""
        stop = int(newest_at(self._at, moment)) + 1
        rows = self._order[max(stop - count, 0) : max(stop, 1)]
        forces = np.asarray(self._samples.forces[rows], np.float32)[:, None]
        scans = np.asarray(self._samples.alines[rows], np.float32)
        window = np.concatenate((forces, scans), axis=1)
        if not np.isfinite(window).all():
            raise ValueError(f"{self._name}: samples hold what is no number; {_FIND}")
        return window
