"""The limits that a robot sender applies to every motion, whatever the receiver asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from common.kinematics import MECA500, ArmGeometry
from common.step_limiter import StepLimiter

__all__ = ["MotionLimits"]

_POSE_SPEED_MM_S = 250.0
"""The reduced speed at which people may be near a robot (ISO 10218-1)."""
_POSE_SPEED_DEG_S = 90.0


@dataclass(frozen=True, slots=True)
class MotionLimits:
    """What an arm may be told.

    Attributes:
        joint_min_deg: (6,) lowest joint targets.
        joint_max_deg: (6,) highest joint targets.
        joint_speed_deg_s: (6,) fastest a joint target may move.
        max_step_deg: degrees a joint target may move in one control tick, at any tick rate.
        pose_min_mm: (3,) corner of the box that the flange stays in.
        pose_max_mm: (3,) the opposite corner.
        pose_speed_mm_s: fastest the target may move along x, y or z.
        pose_speed_deg_s: fastest a target's Euler angle may turn.
        max_step_mm: millimetres along x, y or z in one control tick.
        lead_s: how far, in seconds at full speed, a target may run ahead of the measured state:
            an arm that is stuck is not sent further and further away.
    """

    joint_min_deg: tuple[float, ...]
    joint_max_deg: tuple[float, ...]
    joint_speed_deg_s: tuple[float, ...]
    max_step_deg: float = 2.0
    pose_min_mm: tuple[float, ...] = (-math.inf,) * 3
    pose_max_mm: tuple[float, ...] = (math.inf,) * 3
    pose_speed_mm_s: float = 0.5 * _POSE_SPEED_MM_S
    pose_speed_deg_s: float = 0.5 * _POSE_SPEED_DEG_S
    max_step_mm: float = 2.0
    lead_s: float = 0.25

    @classmethod
    def of_arm(cls, arm: ArmGeometry = MECA500, speed_scale: float = 0.5) -> MotionLimits:
        """An arm's own ranges, and a fraction of its speeds; the box is the arm's reach."""
        reach = arm.a2_mm + math.hypot(arm.a3_mm, arm.d4_mm) + arm.d6_mm
        return cls(
            joint_min_deg=arm.joint_min_deg,
            joint_max_deg=arm.joint_max_deg,
            joint_speed_deg_s=arm.joint_speed_deg_s,
            pose_min_mm=(-reach, -reach, arm.d1_mm - reach),
            pose_max_mm=(reach, reach, arm.d1_mm + reach),
            pose_speed_mm_s=_POSE_SPEED_MM_S,
            pose_speed_deg_s=_POSE_SPEED_DEG_S,
        ).scaled(speed_scale)

    def scaled(self, speed_scale: float) -> MotionLimits:
        """The same limits at a fraction of every speed; ranges and largest steps stay."""
        return replace(
            self,
            joint_speed_deg_s=tuple(speed_scale * speed for speed in self.joint_speed_deg_s),
            pose_speed_mm_s=speed_scale * self.pose_speed_mm_s,
            pose_speed_deg_s=speed_scale * self.pose_speed_deg_s,
        )

    def joints(self, control_hz: float) -> StepLimiter:
        """The limits of joint targets that are sent `control_hz` times a second."""
        speed = np.array(self.joint_speed_deg_s)
        return StepLimiter(
            low=np.array(self.joint_min_deg),
            high=np.array(self.joint_max_deg),
            step=np.minimum(speed / control_hz, self.max_step_deg),
            lead=speed * self.lead_s,
            turns=np.zeros(6, bool),
        )

    def pose(self, control_hz: float) -> StepLimiter:
        """The limits of pose targets that are sent `control_hz` times a second."""
        speed = np.array([self.pose_speed_mm_s] * 3 + [self.pose_speed_deg_s] * 3)
        largest = np.array([self.max_step_mm] * 3 + [self.max_step_deg] * 3)
        return StepLimiter(
            low=np.array([*self.pose_min_mm, *[-math.inf] * 3]),
            high=np.array([*self.pose_max_mm, *[math.inf] * 3]),
            step=np.minimum(speed / control_hz, largest),
            lead=speed * self.lead_s,
            turns=np.array([False] * 3 + [True] * 3),
        )
