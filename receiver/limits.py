"""The limits that every command goes through before it leaves. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.kinematics import MECA500, flange_transform
from common.wire import ActionSpace, RobotState
from receiver.options import Limits

__all__ = ["Limited", "NoState", "limit_rows"]


class NoState(ValueError):
    """The limits cannot be checked without knowing where the robot is."""


@dataclass(frozen=True, slots=True)
class Limited:
    """Rows that may leave, and which limits cut them down.

    Attributes:
        rows: (H, A) float32 in the space that the policy used.
        cut: names of the limits that changed something.
    """

    rows: NDArray[np.float32]
    cut: frozenset[str]


def limit_rows(
    rows: NDArray[np.float32],
    space: ActionSpace,
    dt: float,
    robot: RobotState | None,
    limits: Limits,
) -> Limited:
    """Cut rows (H, 6 or 7) down to the limits, each row from where the one before would end.

    Raises NoState without a robot state, ValueError for rows that are not finite or not of 6 or 7
    columns. Deltas are changes over one `dt` each, so that row k ends at the state plus the sum of
    rows 0 to k.
    """
    if rows.ndim != 2 or rows.shape[1] not in (6, 7):
        raise ValueError(f"rows of 6 or 7 values expected, not {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("the policy's output is not finite")
    if robot is None:
        raise NoState("no robot state to check the limits against")
    cut: set[str] = set()
    if space == "pose_delta":
        moved = _limit_pose(rows[:, :6].astype(np.float64), dt, robot, limits, cut)
    else:
        moved = _limit_joints(rows[:, :6].astype(np.float64), space, dt, robot, limits, cut)
    limited = rows.copy()
    limited[:, :6] = moved
    if rows.shape[1] == 7:
        limited[:, 6] = np.clip(rows[:, 6], limits.gripper_min, limits.gripper_max)
        if not np.array_equal(limited[:, 6], rows[:, 6]):
            cut.add("gripper")
    return Limited(limited, frozenset(cut))


def _limit_joints(
    rows: NDArray[np.float64],
    space: ActionSpace,
    dt: float,
    robot: RobotState,
    limits: Limits,
    cut: set[str],
) -> NDArray[np.float64]:
    low, high = np.asarray(limits.joint_min_deg), np.asarray(limits.joint_max_deg)
    fastest = np.asarray(limits.joint_speed_deg_s) * dt
    largest = np.minimum(fastest, limits.joint_step_deg)
    at = np.asarray(robot.joints, np.float64)
    out = np.empty_like(rows)
    for index, row in enumerate(rows):
        wanted = at + row if space == "joint_delta" else row
        target = np.clip(wanted, low, high)
        if not np.array_equal(target, wanted):
            cut.add("joint_range")
        step, scale = _scaled(target - at, largest)
        if scale < 1.0:
            cut.add("joint_speed" if (np.abs(target - at) > fastest).any() else "joint_step")
        # A joint that already stands outside its range may move back at the allowed speed only.
        target = at + step
        if limits.arm == "meca500" and not _box_allows(at, target, limits):
            cut.add("workspace")
            target = at
        out[index] = target - at if space == "joint_delta" else target
        at = target
    return out


def _scaled(
    step: NDArray[np.float64], largest: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """A step cut to the largest one without changing its direction, and by how much."""
    ratio = float(np.max(np.abs(step) / largest))
    scale = 1.0 if ratio <= 1.0 else 1.0 / ratio
    return step * scale, scale


def _outside_mm(point: NDArray[np.float64], limits: Limits) -> float:
    """How far a point is outside the workspace box, 0 inside."""
    low, high = np.asarray(limits.workspace_min_mm), np.asarray(limits.workspace_max_mm)
    return float(np.linalg.norm(point - np.clip(point, low, high)))


def _tool_mm(joints: NDArray[np.float64], limits: Limits) -> NDArray[np.float64]:
    rotation, position = flange_transform(joints, MECA500)
    tip: NDArray[np.float64] = position + rotation @ np.asarray(limits.tool_mm)
    return tip


def _box_allows(at: NDArray[np.float64], target: NDArray[np.float64], limits: Limits) -> bool:
    """Whether the tool ends inside the box or, when it is outside already, goes no further out."""
    beyond = _outside_mm(_tool_mm(target, limits), limits)
    return beyond == 0.0 or beyond < _outside_mm(_tool_mm(at, limits), limits)


def _limit_pose(
    rows: NDArray[np.float64], dt: float, robot: RobotState, limits: Limits, cut: set[str]
) -> NDArray[np.float64]:
    low, high = np.asarray(limits.workspace_min_mm), np.asarray(limits.workspace_max_mm)
    at = np.asarray(robot.pose[:3], np.float64)
    out = np.empty_like(rows)
    for index, row in enumerate(rows):
        move, scale = _scaled(row[:3], np.full(3, limits.position_speed_mm_s * dt))
        turn, turn_scale = _scaled(row[3:], np.full(3, limits.rotation_speed_deg_s * dt))
        if scale < 1.0:
            cut.add("position_speed")
        if turn_scale < 1.0:
            cut.add("rotation_speed")
        beyond = _outside_mm(at + move, limits)
        if beyond > 0.0 and beyond >= _outside_mm(at, limits):
            cut.add("workspace")
            move = (
                np.clip(at + move, low, high) - at if _outside_mm(at, limits) == 0.0 else 0 * move
            )
        out[index] = np.concatenate([move, turn])
        at = at + move
    return out
