"""Errors of joint angles as what they do at the tool's tip, in millimetres."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from common.kinematics import MECA500, flange_transform

__all__ = ["TipMetric"]

_STEP_DEG = 1e-3


class TipMetric:
    """Weighs joint errors (…, 6) in degrees by what they do: (…, 9) in mm.

    The first three are the tip's displacement. The others are the tool's turn, as the displacement
    of a point so far up the tool, and of one beside it: a turn about the tool's own axis moves the
    tip nowhere, but must not grow without bounds either. Linear about one pose: right for small
    errors, and a fixed quadratic form for all others, so that gradients are those of a plain mean
    square.

    Args:
        pose_deg: (6,) the pose about which it is right.
        tool_mm: (3,) the tool's tip in the flange's frame.
        lever_mm: how much a turn counts, and how much one about the tool's axis.
    """

    def __init__(
        self, pose_deg: ArrayLike, tool_mm: ArrayLike, lever_mm: tuple[float, float] = (20.0, 4.0)
    ) -> None:
        pose, tool = np.asarray(pose_deg, float), np.asarray(tool_mm, float)
        columns = []
        for joint in range(6):
            moved = pose.copy()
            moved[joint] += _STEP_DEG
            columns.append(_points(moved, tool, lever_mm) - _points(pose, tool, lever_mm))
        self.matrix = torch.tensor(np.stack(columns, axis=1) / _STEP_DEG, dtype=torch.float32)

    def __call__(self, error_deg: Tensor) -> Tensor:
        """Errors (…, 9) in mm for errors (…, 6) in degrees."""
        return error_deg @ self.matrix.T.to(error_deg)


def _points(
    joints: NDArray[np.float64], tool: NDArray[np.float64], lever_mm: tuple[float, float]
) -> NDArray[np.float64]:
    rotation, position = flange_transform(joints, MECA500)
    along, beside = lever_mm
    turned = (along * rotation[:, 2], beside * rotation[:, 0])
    return np.concatenate([position + rotation @ tool, *turned])
