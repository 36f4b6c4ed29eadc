"""From pictures to levels of patches on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.qwen_vla.config import ImageConfig
from policies.qwen_vla.device_resize import DeviceResize, can_resize
from policies.qwen_vla.images import PatchShape, cut, resize, target_size

__all__ = ["DeviceIntake", "HostIntake", "Intake", "Picture", "Sizes", "make_intake"]

Picture = NDArray[np.uint8]
"""RGB, (height, width, 3)."""

Sizes = Sequence[tuple[int, int]]
"""Width and height of each picture."""


class Intake(Protocol):
    """Takes pictures of sizes that are fixed."""

    def load(self, pictures: Sequence[Picture]) -> None:
        """Take a picture of each size, in order."""
        ...

    def levels(self) -> Tensor:
        """Resize and cut what was loaded: (patches, values) uint8 on the device."""
        ...


class HostIntake:
    """Resizes on the CPU, at `load`, for a model that runs there.

    Args:
        targets: width and height to resize each picture to.
        shape: how to cut.
        exact: see `images.resize`.
    """

    def __init__(self, targets: Sizes, shape: PatchShape, *, exact: bool) -> None:
        self._targets, self._shape, self._exact = targets, shape, exact
        self._levels = torch.empty(0, dtype=torch.uint8)

    def load(self, pictures: Sequence[Picture]) -> None:
        """Take a picture of each size, in order."""
        cuts: list[Tensor] = []
        for picture, (width, height) in zip(pictures, self._targets, strict=True):
            levels = np.ascontiguousarray(resize(picture, width, height, exact=self._exact))
            if not levels.flags.writeable:
                levels = levels.copy()  # torch warns of memory that it must not write to
            cuts.append(cut(torch.from_numpy(levels).unsqueeze(0), self._shape))
        self._levels = torch.cat(cuts)

    def levels(self) -> Tensor:
        """What was loaded: (patches, values) uint8."""
        return self._levels


class DeviceIntake:
    """Sends pictures to the device as they are; everything else happens there.

    Pictures travel from memory that is never paged out, so that the copy does not hold up the
    thread. `load` may be called again only when the lane has finished.

    Args:
        sizes: width and height of each picture.
        targets: width and height to resize each to.
        shape: how to cut.
        device: where the model runs.
    """

    def __init__(
        self, sizes: Sizes, targets: Sizes, shape: PatchShape, device: torch.device
    ) -> None:
        self._shape = shape
        self._stages: list[_Stage] = []
        pairs = list(zip(sizes, targets, strict=True))
        for (size, target), same in groupby(pairs):
            self._stages.append(_Stage(len(list(same)), size, target, device))

    def load(self, pictures: Sequence[Picture]) -> None:
        """Take a picture of each size, in order."""
        start = 0
        for stage in self._stages:
            stage.load(pictures[start : start + stage.number])
            start += stage.number

    def levels(self) -> Tensor:
        """Resize and cut what was loaded: (patches, values) uint8 on the device."""
        return torch.cat([cut(stage.resized(), self._shape) for stage in self._stages])


class _Stage:
    """The way of neighbouring pictures of one size to the device."""

    def __init__(
        self, number: int, size: tuple[int, int], target: tuple[int, int], device: torch.device
    ) -> None:
        self.number = number
        self._target = target
        self._early = not can_resize(size, target)  # far too large: made small before they travel
        width, height = target if self._early else size
        shape = (number, height, width, 3)
        self._host = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.empty(shape, dtype=torch.uint8, device=device)
        self._resize = DeviceResize((width, height), target, device)

    def load(self, pictures: Sequence[Picture]) -> None:
        for place, picture in zip(self._host.numpy(), pictures, strict=True):
            np.copyto(place, resize(picture, *self._target) if self._early else picture)
        self._device.copy_(self._host, non_blocking=True)

    def resized(self) -> Tensor:
        return self._resize(self._device)


def make_intake(
    sizes: Sizes, config: ImageConfig, shape: PatchShape, device: torch.device, *, exact: bool
) -> Intake:
    """The intake for pictures of these sizes and a model on this device.

    Args:
        sizes: width and height of each picture.
        config: how large pictures become.
        shape: how to cut.
        device: where the model runs.
        exact: on a CPU, resize as Pillow does, to the last bit; elsewhere that is always so.

    Raises:
        PolicyError: a picture of impossible size.
    """
    targets = [target_size(*size, config, shape.factor) for size in sizes]
    if device.type == "cpu":
        return HostIntake(targets, shape, exact=exact)
    return DeviceIntake(sizes, targets, shape, device)
