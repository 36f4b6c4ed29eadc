"""Where a six-axis arm's flange is for given joint angles.

The geometry is the Meca500's (Mecademic, Meca500 R3/R4 user manual, "Technical specifications"):
with every joint at zero the flange is at x = d4 + d6 = 190 mm, z = d1 + a2 + a3 = 308 mm, its axis
along the base's x. Euler angles are Mecademic's: mobile XYZ, R = Rx(α) Ry(β) Rz(γ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MECA500", "ArmGeometry", "euler_xyz_deg", "flange_pose", "flange_transform"]


@dataclass(frozen=True, slots=True)
class ArmGeometry:
    """Link lengths in mm, joint ranges in degrees and joint speeds in degrees a second."""

    d1_mm: float
    a2_mm: float
    a3_mm: float
    d4_mm: float
    d6_mm: float
    joint_min_deg: tuple[float, ...]
    joint_max_deg: tuple[float, ...]
    joint_speed_deg_s: tuple[float, ...]


MECA500 = ArmGeometry(
    d1_mm=135.0,
    a2_mm=135.0,
    a3_mm=38.0,
    d4_mm=120.0,
    d6_mm=70.0,
    joint_min_deg=(-175.0, -70.0, -135.0, -170.0, -115.0, -36000.0),
    joint_max_deg=(175.0, 90.0, 70.0, 170.0, 115.0, 36000.0),
    joint_speed_deg_s=(150.0, 150.0, 180.0, 300.0, 300.0, 500.0),
)


def flange_transform(
    joints_deg: ArrayLike, arm: ArmGeometry = MECA500
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The flange's rotation (3, 3) and position (3,) in mm for (6,) joint angles in degrees.

    The chain Rz(θ1) ↑d1 Ry(θ2) ↑a2 Ry(θ3) →d4 ↑a3 Rx(θ4) Ry(θ5) →d6 Rx(θ6), written out: joints 2
    and 3 turn about one axis, and plain numbers cost a tenth of twelve small matrices. The limits
    ask for this at every row of every action.
    """
    angles = [math.radians(angle) for angle in np.asarray(joints_deg, dtype=np.float64).tolist()]
    q1, q2, q3, q4, q5, q6 = angles
    c1, s1, c4, s4 = math.cos(q1), math.sin(q1), math.cos(q4), math.sin(q4)
    c5, s5, c6, s6 = math.cos(q5), math.sin(q5), math.cos(q6), math.sin(q6)
    c, s = math.cos(q2 + q3), math.sin(q2 + q3)
    # The wrist, Rx(θ4) Ry(θ5) Rx(θ6), by columns; then turned by Ry(θ2 + θ3) and by Rz(θ1).
    wrist = (
        (c5, s4 * s5, -c4 * s5),
        (s5 * s6, c4 * c6 - s4 * c5 * s6, s4 * c6 + c4 * c5 * s6),
        (s5 * c6, -c4 * s6 - s4 * c5 * c6, -s4 * s6 + c4 * c5 * c6),
    )

    def turned(x: float, y: float, z: float) -> tuple[float, float, float]:
        ahead = c * x + s * z
        return c1 * ahead - s1 * y, s1 * ahead + c1 * y, c * z - s * x

    forearm = turned(
        arm.d4_mm + arm.d6_mm * c5, arm.d6_mm * s4 * s5, arm.a3_mm - arm.d6_mm * c4 * s5
    )
    reach = arm.a2_mm * math.sin(q2)
    position = np.array(
        [
            forearm[0] + c1 * reach,
            forearm[1] + s1 * reach,
            forearm[2] + arm.d1_mm + arm.a2_mm * math.cos(q2),
        ]
    )
    x, y, z = (turned(*column) for column in wrist)
    # The flange frame's z axis points out of the flange, along the last link's x.
    return np.array([(-z[i], y[i], x[i]) for i in range(3)]), position


def euler_xyz_deg(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mobile XYZ Euler angles (3,) in degrees of a rotation matrix; γ is 0 at the singularity."""
    beta = math.asin(float(np.clip(rotation[0, 2], -1.0, 1.0)))
    if abs(rotation[0, 2]) > 1.0 - 1e-9:
        # Only α ± γ is determined there: put all of it into α.
        alpha, gamma = math.atan2(float(rotation[2, 1]), float(rotation[1, 1])), 0.0
    else:
        alpha = math.atan2(float(-rotation[1, 2]), float(rotation[2, 2]))
        gamma = math.atan2(float(-rotation[0, 1]), float(rotation[0, 0]))
    return np.degrees([alpha, beta, gamma])


def flange_pose(joints_deg: ArrayLike, arm: ArmGeometry = MECA500) -> NDArray[np.float64]:
    """The flange's pose (6,): x, y, z in mm and mobile XYZ Euler angles in degrees."""
    rotation, position = flange_transform(joints_deg, arm)
    return np.concatenate([position, euler_xyz_deg(rotation)])
