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


def _rotation(axis: str, angle_rad: float) -> NDArray[np.float64]:
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    if axis == "x":
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if axis == "y":
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def flange_transform(
    joints_deg: ArrayLike, arm: ArmGeometry = MECA500
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The flange's rotation (3, 3) and position (3,) in mm for (6,) joint angles in degrees."""
    q = np.radians(np.asarray(joints_deg, dtype=np.float64))
    links = (
        ("z", q[0], (0.0, 0.0, arm.d1_mm)),
        ("y", q[1], (0.0, 0.0, arm.a2_mm)),
        ("y", q[2], (arm.d4_mm, 0.0, arm.a3_mm)),
        ("x", q[3], (0.0, 0.0, 0.0)),
        ("y", q[4], (arm.d6_mm, 0.0, 0.0)),
        ("x", q[5], (0.0, 0.0, 0.0)),
    )
    rotation, position = np.eye(3), np.zeros(3)
    for axis, angle, along in links:
        rotation = rotation @ _rotation(axis, float(angle))
        position = position + rotation @ np.asarray(along)
    # The flange frame's z axis points out of the flange, along the last link's x.
    return rotation @ _rotation("y", math.pi / 2), position


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
