"""A scripted expert on the insertion rig: approach, align, insert, follow the moving tissue.

It knows what no policy does: where the port is, and how the tissue moves. Its demonstrations are
what a policy is trained on, and what a policy can reach at best.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.layout import HOME_DEG, Layout, RigConfig, tip_transform
from sim.task import DISTANCE_MM
from sim.tissue import tissue_motion

__all__ = ["Expert", "joints_for_tip"]

Vector = NDArray[np.float64]

_LATERAL_MM_S = 6.0
_TURN_DEG_S = 15.0
_DEPTH_MM_S = 16.0
# Outside, the last steps towards the axis are slow: what is left shrinks by e in this time.
_SETTLE_S = 0.15
# Where it waits until it is aligned: past the port's opening this far, i.e. in front of it.
_WAIT_DEPTH_MM = -2.5
# It goes on at full speed when it is off by no more than the first, not at all from the second on,
# and back from so far beside the port. What is in between is no whim: whoever learns from one that
# goes or waits at a threshold learns the mean of both there, and stays before the port for ever.
_GOES_MM, _GOES_DEG = (0.5, 1.0), (2.0, 4.0)
_BACK_MM = (1.0, 1.5)
# Past this depth it is in the port; going back out would be worse than any misalignment.
_INSIDE_MM = -0.5
# The arm is where it was told to be about so much later (its position loop, 30 Hz).
_ARM_LAG_S = 0.012

# A needle this far off the port's direction still goes in: 1.1 mm over the depth of the tissue, in
# a port of 1.5 mm. To turn it any further would ask much of the wrist, which is 30 degrees from
# straight, and of whoever learns it: with 3 degrees joint 4 goes four times as far.
_SLANT_DEG = 8.0

_TOLERANCE_MM, _TOLERANCE_RAD = 1e-3, 1e-5
_MOST_STEPS = 50
_STEP_DEG = 1e-4
_SLOW = 0.3  # derivatives that leave more than this of the error are found anew
_REACH_MM = 150.0  # weighs a direction's error against a place's in the least squares


def joints_for_tip(tip_mm: ArrayLike, axis: ArrayLike, near_deg: ArrayLike) -> Vector:
    """Joint angles (6,) in degrees that put the needle's tip at a point, along a direction.

    The needle is round, and joint 6 turns it about itself: joint 6 stays as it is, the others are
    found by Newton's method.

    Args:
        tip_mm: (3,) in the base's frame.
        axis: (3,) unit vector from the hub to the tip.
        near_deg: (6,) joint angles to start from; the answer is the nearest.

    Raises:
        ValueError: no such angles were found.
    """
    return _Solver().solve(tip_mm, axis, near_deg)


class _Solver:
    """Newton's method that keeps its derivatives for as long as they serve: most of its cost."""

    def __init__(self) -> None:
        self._inverse: Vector | None = None  # (5, 6)

    def solve(self, tip_mm: ArrayLike, axis: ArrayLike, near_deg: ArrayLike) -> Vector:
        """As `joints_for_tip`."""
        tip, towards = np.asarray(tip_mm, float), np.asarray(axis, float)
        joints = np.array(near_deg, dtype=float)
        error = _error(joints, tip, towards)
        for _ in range(_MOST_STEPS):
            if (
                np.abs(error[:3]).max() < _TOLERANCE_MM
                and np.abs(error[3:]).max() < _TOLERANCE_RAD * _REACH_MM
            ):
                return joints
            kept = self._inverse is not None
            if self._inverse is None:
                self._inverse = _inverse(joints, error, tip, towards)
            step = self._inverse @ error
            # Far from the answer the linearization is worth only a small step.
            moved = joints.copy()
            moved[:5] -= step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-9))
            left = _error(moved, tip, towards)
            if np.linalg.norm(left) > _SLOW * np.linalg.norm(error):
                self._inverse = None
                if kept:
                    continue  # the derivatives are to blame: once more with new ones
            joints, error = moved, left
        raise ValueError("the tip cannot be put there")


def _inverse(joints: Vector, error: Vector, tip: Vector, towards: Vector) -> Vector:
    columns = []
    for joint in range(5):
        moved = joints.copy()
        moved[joint] += _STEP_DEG
        columns.append((_error(moved, tip, towards) - error) / _STEP_DEG)
    return np.asarray(np.linalg.pinv(np.stack(columns, axis=1)))


def _error(joints: Vector, tip: Vector, towards: Vector) -> Vector:
    axis, at = tip_transform(joints)
    return np.concatenate([at - tip, _REACH_MM * (axis - towards)])


class Expert:
    """Plans joint targets for one episode; `step` once a control tick.

    Attributes:
        port_mm: (3,) the port's opening in the base's frame.
        needle: (3,) unit vector along which the needle is to lie.
    """

    def __init__(self, config: RigConfig, layout: Layout, joints_deg: ArrayLike) -> None:
        """Begin where the arm is, (6,) joint angles in degrees."""
        self._config, self._layout = config, layout
        self._tissue = tissue_motion(config, layout)
        self.port_mm = layout.eye_mm + layout.port_mm
        self._joints = np.array(joints_deg, dtype=float)
        self._solver = _Solver()
        self._axis, self._tip = tip_transform(self._joints)
        self.needle = _slanted(layout.axis, tip_transform(HOME_DEG)[0], math.radians(_SLANT_DEG))

    @property
    def goal_deg(self) -> Vector:
        """Joint angles (6,) with the tip in the port, at its mean distance from the tissue."""
        depth = self._config.tissue_depth_mm - DISTANCE_MM
        tip = self.port_mm + self._layout.axis * depth
        return joints_for_tip(tip, self.needle, np.array(HOME_DEG))

    def step(self, time_s: float, span_s: float) -> Vector:
        """Joint targets (6,) in degrees for `span_s` after `time_s` in the episode."""
        self._steer(time_s, span_s)
        self._joints = self._solver.solve(self._tip, self._axis, self._joints)
        # Nothing needs the needle turned about itself: it goes back to where it was at home.
        self._joints[5] += _towards(HOME_DEG[5] - self._joints[5], _TURN_DEG_S * span_s)
        return self._joints.copy()

    def rows(self, time_s: float, count: int, span_s: float) -> Vector:
        """Joint targets (count, 6) in degrees, `span_s` apart, the first due `span_s` from now.

        What a policy should say at `time_s`: the whole of its chunk.
        """
        return np.array([self.step(time_s + k * span_s, span_s) for k in range(count)])

    def _place(self) -> tuple[float, Vector]:
        """The tip's depth in mm along the port, and its way (3,) from the port's axis."""
        along = self._tip - self.port_mm
        depth = float(along @ self._layout.axis)
        return depth, along - depth * self._layout.axis

    def _steer(self, time_s: float, span_s: float) -> None:
        depth, aside = self._place()
        off_mm = float(np.linalg.norm(aside))
        off_deg = math.degrees(_angle(self._axis, self.needle))
        follows = self.surface_mm(time_s + span_s + _ARM_LAG_S) - DISTANCE_MM
        on = _towards(follows - depth, _DEPTH_MM_S * span_s)
        waits = _towards(_WAIT_DEPTH_MM - depth, _DEPTH_MM_S * span_s)
        if depth <= _INSIDE_MM:
            on *= (1.0 - _ramp(off_mm, _GOES_MM)) * (1.0 - _ramp(off_deg, _GOES_DEG))
            on = max(on, waits) if waits > 0 else on + waits * _ramp(off_mm, _BACK_MM)
        depth += on
        aside = aside * (1.0 - _share(off_mm, _LATERAL_MM_S, span_s))
        turn = _share(off_deg, _TURN_DEG_S, span_s)
        self._axis = self._axis + turn * (self.needle - self._axis)
        self._axis /= np.linalg.norm(self._axis)
        self._tip = self.port_mm + depth * self._layout.axis + aside

    def surface_mm(self, time_s: float) -> float:
        """The tissue surface's depth in the port at a time of the episode."""
        return self._config.tissue_depth_mm + self._tissue.displacement(time_s)


def _angle(one: Vector, other: Vector) -> float:
    return math.acos(min(max(float(one @ other), -1.0), 1.0))


def _slanted(direction: Vector, towards: Vector, most_rad: float) -> Vector:
    """`direction` turned towards another by at most so much."""
    angle = _angle(direction, towards)
    share = min(most_rad / angle, 1.0) if angle > 0 else 0.0
    slanted = direction + share * (towards - direction)
    return np.asarray(slanted / np.linalg.norm(slanted))


def _ramp(value: float, ends: tuple[float, float]) -> float:
    """0 up to the first, 1 from the second on, straight in between."""
    return min(max((value - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0)


def _towards(left: float, most: float) -> float:
    return min(max(left, -most), most)


def _share(left: float, speed: float, span_s: float) -> float:
    """The part of what is left that is done in a step: at full speed, slowing down at the end."""
    if left < 1e-9:
        return 1.0
    return min(speed * span_s / left, span_s / _SETTLE_S, 1.0)
