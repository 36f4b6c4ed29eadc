"""What a policy is trained on, in one form: an episode, and how demonstrations become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim.ascan import synthesize
from sim.demonstration_files import Demonstration

__all__ = ["OLDEST_LOOK_S", "ROW_S", "Trace", "Vector", "Windows", "from_demonstration"]

Vector = NDArray[np.float64]
Windows = Callable[[float, int, np.random.Generator], NDArray[np.float32]]
"""(up to so many samples, channels) of the sensor, the last at a time; takes a generator for
speckle. ValueError for samples that cannot be learned from."""

OLDEST_LOOK_S = 2.0
"""The features of a policy at work are as old as this at most, or the output is on hold."""


ROW_S = 0.1
"""How far apart an expert's rows are."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One episode.

    Attributes:
        source: where it comes from, for a person.
        goal_deg: (6,) joint angles when the task was done.
        times_s: (N,) moments of the joint angles, ascending.
        joints_deg: (N, 6).
        excluded: (N,) bool; what the arm did from then until the next moment is no example.
        first_s: from when on there is a whole sensor window.
        window: gives the sensor window that ends at a time.
        seen_s: (P,) when pictures were taken.
        pictures: P JPEGs by view.
        ticks_s: (K,) moments that `rows_deg` says what to do at; where there are none, what the
            arm did next is the example, at any moment.
        rows_deg: (K, H, 6) joint targets, `ROW_S` apart.
    """

    source: str
    goal_deg: Vector
    times_s: Vector
    joints_deg: Vector
    excluded: NDArray[np.bool_]
    first_s: float
    window: Windows
    seen_s: Vector
    pictures: dict[str, list[bytes]]
    ticks_s: Vector = field(default_factory=lambda: np.zeros(0))
    rows_deg: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1, 6), np.float32))

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
        source=f"the demonstration of seed {made.seed}",
        goal_deg=made.goal_deg,
        times_s=made.times_s,
        joints_deg=made.joints_deg,
        excluded=np.zeros(len(made.times_s), bool),
        first_s=0.1,
        window=window,
        seen_s=made.seen_s,
        pictures=made.pictures,
        ticks_s=made.ticks_s,
        rows_deg=made.rows_deg,
    )
