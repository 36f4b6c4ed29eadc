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
from policies.qwen_vla.layout import Grids
from scripts.training.traces import Trace

__all__ = ["Looks", "collect_looks", "levels_of", "pictures_at", "unseen"]


@dataclass(frozen=True, slots=True)
class Looks:
    """Looks of some traces.

    Attributes:
        levels: (N, patches of all views, values) uint8.
        goals_deg: (N, 6) joint angles.
        trace: (N,) which trace a look is of.
        seen_s: (N,) when in it.
        grids: height and width of each view in patches, the same of all.
    """

    levels: Tensor
    goals_deg: Tensor
    trace: NDArray[np.int64]
    seen_s: NDArray[np.float64]
    grids: Grids = ()


def levels_of(
    pictures: Sequence[NDArray[np.uint8]], config: PolicyConfig, shape: PatchShape
) -> Tensor:
    """Patches (of all views, values) uint8 of one RGB picture (h, w, 3) a view."""
    parts = []
    for picture in pictures:
        target = _size(picture, config, shape)
        small = np.ascontiguousarray(resize(picture, *target, exact=False))
        parts.append(cut(torch.from_numpy(small).unsqueeze(0), shape))
    return torch.cat(parts)


def collect_looks(
    traces: Sequence[Trace], config: PolicyConfig, shape: PatchShape, like: Grids | None = None
) -> Looks:
    """All pictures of some traces.

    Args:
        traces: what to look at.
        config: of the policy.
        shape: of its patches.
        like: the grids that they must have; by default those of the first.

    Raises:
        ValueError: a picture is no JPEG, or has another shape than the others of its view.
    """
    levels, goals, numbers, times = [], [], [], []
    for number, trace in enumerate(traces):
        for place, seen_s in enumerate(trace.seen_s):
            pictures = pictures_at(trace, place, config.views)
            grids = tuple(_grid(_size(picture, config, shape), shape) for picture in pictures)
            like = grids if like is None else like
            if grids != like:
                raise ValueError(
                    f"{trace.source}: its pictures become {_said(grids)} patches, others' "
                    f"{_said(like)}; what is trained from nothing takes pictures of one shape"
                )
            levels.append(levels_of(pictures, config, shape))
            goals.append(trace.goal_deg)
            numbers.append(number)
            times.append(seen_s)
    return Looks(
        torch.stack(levels),
        torch.tensor(np.array(goals), dtype=torch.float32),
        np.array(numbers),
        np.array(times),
        like or (),
    )


def unseen(traces: Sequence[Trace]) -> Looks:
    """All looks of some traces without their pictures: `levels` is empty."""
    numbers = [number for number, trace in enumerate(traces) for _ in trace.seen_s]
    goals = np.array([traces[number].goal_deg for number in numbers])
    times = np.concatenate([trace.seen_s for trace in traces])
    return Looks(torch.empty(0), torch.tensor(goals, dtype=torch.float32), np.array(numbers), times)


def pictures_at(trace: Trace, place: int, views: Sequence[str]) -> list[NDArray[np.uint8]]:
    """The RGB pictures (h, w, 3) of a look, one a view; ValueError for one that is no JPEG."""
    pictures = []
    for view in views:
        picture = cv2.imdecode(
            np.frombuffer(trace.pictures[view][place], np.uint8), cv2.IMREAD_COLOR
        )
        if picture is None:
            raise ValueError(f"{trace.source}: a picture of {view} is no JPEG")
        pictures.append(np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8))
    return pictures


def _size(picture: NDArray[np.uint8], config: PolicyConfig, shape: PatchShape) -> tuple[int, int]:
    height, width = picture.shape[:2]
    return target_size(width, height, config.image, shape.factor)


def _grid(size: tuple[int, int], shape: PatchShape) -> tuple[int, int]:
    return size[1] // shape.patch, size[0] // shape.patch


def _said(grids: Grids) -> str:
    return ", ".join(f"{width}x{height}" for height, width in grids)
