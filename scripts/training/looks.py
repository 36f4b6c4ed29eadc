"""Pictures as the slow half takes them, each with the joint angles at which the episode ends well.

The goal is known in hindsight: where the arm was when the task was done. No label is needed that a
recorded session does not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.qwen_vla.config import PolicyConfig
from policies.qwen_vla.images import PatchShape, cut, resize, target_size
from scripts.training.traces import Trace

__all__ = ["Looks", "collect_looks", "levels_of", "unseen"]


@dataclass(frozen=True, slots=True)
class Looks:
    """Attributes:
    levels: (N, patches of all views, values) uint8.
    goals_deg: (N, 6) joint angles.
    trace: (N,) which trace a look is of.
    seen_s: (N,) when in it.
    """

    levels: Tensor
    goals_deg: Tensor
    trace: NDArray[np.int64]
    seen_s: NDArray[np.float64]


def levels_of(
    pictures: Sequence[NDArray[np.uint8]], config: PolicyConfig, shape: PatchShape
) -> Tensor:
    """Patches (of all views, values) uint8 of one RGB picture (h, w, 3) a view."""
    parts = []
    for picture in pictures:
        height, width = picture.shape[:2]
        target = target_size(width, height, config.image, shape.factor)
        small = np.ascontiguousarray(resize(picture, *target, exact=False))
        parts.append(cut(torch.from_numpy(small).unsqueeze(0), shape))
    return torch.cat(parts)


def collect_looks(traces: Sequence[Trace], config: PolicyConfig, shape: PatchShape) -> Looks:
    """All pictures of some traces; ValueError for one that is no JPEG or lacks a view."""
    levels, goals, numbers, times = [], [], [], []
    for number, trace in enumerate(traces):
        for place, seen_s in enumerate(trace.seen_s):
            pictures = [_decoded(trace.pictures[view][place]) for view in config.views]
            levels.append(levels_of(pictures, config, shape))
            goals.append(trace.goal_deg)
            numbers.append(number)
            times.append(seen_s)
    return Looks(
        torch.stack(levels),
        torch.tensor(np.array(goals), dtype=torch.float32),
        np.array(numbers),
        np.array(times),
    )


def unseen(traces: Sequence[Trace]) -> Looks:
    """All looks of some traces without their pictures: `levels` is empty."""
    numbers = [number for number, trace in enumerate(traces) for _ in trace.seen_s]
    goals = np.array([traces[number].goal_deg for number in numbers])
    times = np.concatenate([trace.seen_s for trace in traces])
    return Looks(torch.empty(0), torch.tensor(goals, dtype=torch.float32), np.array(numbers), times)


def _decoded(jpeg: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("a picture is no JPEG")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
