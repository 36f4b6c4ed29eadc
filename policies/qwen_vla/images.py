"""Pictures become the patches that Qwen2.5-VL takes.

Same result as the Qwen2-VL image processor of transformers (its Pillow backend), without its
per-call overhead and without torchvision: Pillow resizes, so that the pixels are the same to the
last bit (torch's own antialiased bicubic differs by up to two levels), torch does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from policies.base import PolicyError
from policies.qwen_vla.config import ImageConfig

__all__ = ["PatchShape", "patches", "prepare", "resize", "target_size"]

# The processor refuses longer pictures too; no camera makes them.
MAX_ASPECT = 200


@dataclass(frozen=True, slots=True)
class PatchShape:
    """Sizes in pixels and patches that the vision tower's configuration fixes."""

    patch: int = 14
    merge: int = 2
    temporal: int = 2

    @property
    def factor(self) -> int:
        """Both sides of a resized picture are multiples of this many pixels."""
        return self.patch * self.merge


def target_size(width: int, height: int, config: ImageConfig, factor: int) -> tuple[int, int]:
    """The width and height in pixels that a picture is resized to.

    `library` is the published rule of Qwen2-VL's processor (`smart_resize`): round to multiples of
    `factor`, then scale down (rounding down) or up (rounding up) when the area is out of bounds.

    Raises:
        PolicyError: no pixels, or a side more than 200 times the other.
    """
    if min(width, height) < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise PolicyError(f"a picture of {width}x{height} pixels cannot be used")
    if config.rounding == "nearest":
        area = min(max(width * height, config.min_pixels), config.max_pixels)
        scale = math.sqrt(area / (width * height)) / factor
        sides = [max(1, round(side * scale)) * factor for side in (width, height)]
        return sides[0], sides[1]
    rounded = [round(side / factor) * factor for side in (width, height)]
    if rounded[0] * rounded[1] > config.max_pixels:
        scale = math.sqrt((width * height) / config.max_pixels)
        rounded = [
            max(factor, math.floor(side / scale / factor) * factor) for side in (width, height)
        ]
    elif rounded[0] * rounded[1] < config.min_pixels:
        scale = math.sqrt(config.min_pixels / (width * height))
        rounded = [math.ceil(side * scale / factor) * factor for side in (width, height)]
    return rounded[0], rounded[1]


def resize(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize an RGB picture (h, w, 3) to (height, width, 3), bicubic, as Pillow does it."""
    if image.shape[:2] == (height, width):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC))


def patches(image: NDArray[np.uint8], shape: PatchShape) -> Tensor:
    """Cut a picture (h, w, 3), both sides multiples of the factor, into uint8 patches.

    Returns:
        (patches, 3, patch, patch), the four patches that the merger joins next to one another.
    """
    height, width, _ = image.shape
    cut = torch.from_numpy(image).reshape(
        height // shape.factor, shape.merge, shape.patch,
        width // shape.factor, shape.merge, shape.patch, 3,
    ).permute(0, 3, 1, 4, 6, 2, 5)  # fmt: skip
    return cut.reshape(-1, 3, shape.patch, shape.patch)


def prepare(
    images: Sequence[NDArray[np.uint8]],
    config: ImageConfig,
    shape: PatchShape,
    device: torch.device,
) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Turn RGB pictures (h, w, 3) uint8 into what the vision tower takes.

    Returns:
        Pixel values (patches, 3 * temporal * patch * patch) float32 on `device`, and the height
        and width in patches of each picture.

    Raises:
        PolicyError: a picture of impossible size.
    """
    cuts: list[Tensor] = []
    grids: list[tuple[int, int]] = []
    for image in images:
        width, height = target_size(image.shape[1], image.shape[0], config, shape.factor)
        cuts.append(patches(resize(image, width, height), shape))
        grids.append((height // shape.patch, width // shape.patch))
    # Levels travel to the device, four times fewer bytes than floats.
    levels = torch.cat(cuts).to(device)
    std = torch.tensor(OPENAI_CLIP_STD, device=device).view(1, 3, 1, 1)
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=device).view(1, 3, 1, 1)
    values = levels.float().mul_(1 / (255 * std)).sub_(mean / std)
    # A still picture is a film of equal frames.
    film = values.unsqueeze(2).expand(-1, -1, shape.temporal, -1, -1)
    return film.reshape(film.shape[0], -1), tuple(grids)
