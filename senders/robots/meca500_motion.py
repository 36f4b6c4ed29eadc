"""From targets to velocities: what a Meca500 in velocity mode is told to follow them; no sockets.

Vectors are (6,) float64: joint angles in degrees, or poses of x, y, z in mm and mobile XYZ Euler
angles in degrees.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["CARTESIAN_LIMIT", "Follower", "joint_difference", "pose_difference"]
__all__ += ["rotation_matrix", "rotation_vector_deg"]

Vector: TypeAlias = NDArray[np.float64]

CARTESIAN_LIMIT = np.array([1000.0] * 3 + [300.0] * 3)
"""mm/s and degrees/s that MoveLinVelWrf takes (Mecademic, Meca500 programming manual)."""

_KEPT_S = 0.5


def rotation_matrix(euler_deg: Vector) -> Vector:
    """R (3, 3) = Rx(α) Ry(β) Rz(γ) for mobile XYZ Euler angles (3,) in degrees."""
    (ca, cb, cg), (sa, sb, sg) = np.cos(np.radians(euler_deg)), np.sin(np.radians(euler_deg))
    return np.array(
        [
            [cb * cg, -cb * sg, sb],
            [ca * sg + sa * sb * cg, ca * cg - sa * sb * sg, -sa * cb],
            [sa * sg - ca * sb * cg, sa * cg + ca * sb * sg, ca * cb],
        ]
    )


def rotation_vector_deg(rotation: Vector) -> Vector:
    """Axis times angle (3,) in degrees, up to 180, of a rotation matrix (3, 3)."""
    # The skew part is sin(angle) times the axis, the trace 1 + 2 cos(angle).
    skew = 0.5 * np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine, cosine = float(np.linalg.norm(skew)), 0.5 * (float(np.trace(rotation)) - 1.0)
    angle = math.atan2(sine, cosine)
    if sine > 1e-6:
        return np.degrees(skew * (angle / sine))
    if cosine > 0:
        return np.degrees(skew)
    # Half a turn: (R + I) / 2 is axis axisᵀ there, and its largest column is the axis' direction.
    outer = 0.5 * (rotation + np.eye(3))
    column: Vector = outer[:, int(np.argmax(np.diag(outer)))]
    return np.degrees(angle * column / np.linalg.norm(column))


def joint_difference(to: Vector, start: Vector) -> Vector:
    """Degrees (6,) from `start` to `to`."""
    return to - start


def pose_difference(to: Vector, start: Vector) -> Vector:
    """What leads from the pose `start` to `to`: mm (3,) and a rotation vector (3,) in degrees.

    Both are in the frame that the poses are given in (R_to = exp(w) R_start), which is what the
    velocities of MoveLinVelWrf refer to. Differences of Euler angles are not: they are rates about
    three axes that move.
    """
    turn = rotation_matrix(to[3:]) @ rotation_matrix(start[3:]).T
    return np.concatenate([to[:3] - start[:3], rotation_vector_deg(turn)])


class Follower:
    """Velocities that take an arm along a stream of targets: feed-forward plus proportional.

    The targets' own speed is fed forward; what is measured to be missing is added, times `gain`.
    A measurement is some milliseconds old: it is compared to where the arm was meant to be then,
    or a moving arm would be told to run ahead of its target.
    """

    def __init__(
        self,
        difference: Callable[[Vector, Vector], Vector],
        limit: Vector,
        period_s: float,
        gain_per_s: float,
    ) -> None:
        """Expect a target every `period_s`; never exceed `limit` (6,) in any component."""
        self._difference, self._limit = difference, limit
        self._period_s, self._gain = period_s, gain_per_s
        self._target: Vector | None = None
        self._told: deque[tuple[float, Vector]] = deque()

    def forget(self) -> None:
        """The arm stands still, or was moved by something else: start again from there."""
        self._target = None
        self._told.clear()

    def velocity(self, target: Vector, measured: Vector, sampled_at: float, now: float) -> Vector:
        """What to move with (6,) until the next call, in units a second.

        `measured` was sampled at `sampled_at`; that and `now` are monotonic seconds. All six
        components are scaled down together, so that the path stays what it was.
        """
        if self._target is not None and now - self._told[-1][0] > _KEPT_S:
            self.forget()
        start = target if self._target is None else self._target
        along = self._speed(target, start, now)
        missing = self._difference(start, measured) - self._travelled(sampled_at, now)
        self._target = target
        self._told.append((now, along))
        while self._told[0][0] < now - _KEPT_S:
            self._told.popleft()
        wanted = along + self._gain * missing
        scale = float(np.max(np.abs(wanted) / self._limit))
        return wanted / scale if scale > 1.0 else wanted

    def _speed(self, target: Vector, start: Vector, now: float) -> Vector:
        """The targets' speed; a late call does not make it look fast, a missed one does not."""
        if not self._told:
            return np.zeros(6)
        periods = max(round((now - self._told[-1][0]) / self._period_s), 1)
        return self._difference(target, start) / (periods * self._period_s)

    def _travelled(self, since: float, now: float) -> Vector:
        """How far the targets led from `since` until `now`."""
        distance, until = np.zeros(6), now
        for began, along in reversed(self._told):
            distance += along * max(until - max(began, since), 0.0)
            if began <= since:
                break
            until = began
        return distance
