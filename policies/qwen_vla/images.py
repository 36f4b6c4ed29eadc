"""Pictures become the patches that Qwen2.5-VL takes: resized, cut, still 8-bit levels.

The library's processor scales and normalises every value and repeats the picture as two frames. We
do neither: both are linear, so they are part of the first layer's weights (`vision_tower.py`), and
patches travel to the device as bytes, eight times fewer than the library's floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from policies.base import PolicyError
from policies.qwen_vla.config import ImageConfig

__all__ = ["PatchShape", "cut", "resize", "target_size"]

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

    @property
    def values(self) -> int:
        """Levels in a patch of one frame: rows, columns, colours."""
        return self.patch * self.patch * 3


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


def resize(
    image: NDArray[np.uint8], width: int, height: int, *, exact: bool = True
) -> NDArray[np.uint8]:
    """Resize an RGB picture (h, w, 3) on the CPU to (height, width, 3), bicubic and antialiased.

    Args:
        image: the picture; given back as it is where it has the size already.
        width: of the result.
        height: of the result.
        exact: resize with Pillow, as the library's Pillow backend does, to the last bit. Otherwise
            with torch's own kernel for bytes, the one that the library's torchvision backend calls:
            about six times faster. Its weights have fewer bits, so that a few pixels of a thousand
            are a level off, two at most.
    """
    if image.shape[:2] == (height, width):
        return image
    whole = np.ascontiguousarray(image)
    if exact:
        picture = Image.fromarray(whole)
        return np.array(picture.resize((width, height), Image.Resampling.BICUBIC))
    if not whole.flags.writeable:
        whole = whole.copy()  # torch warns of memory that it must not write to
    levels = torch.from_numpy(whole).permute(2, 0, 1).unsqueeze(0)
    scaled = F.interpolate(levels, (height, width), mode="bicubic", antialias=True)
    return scaled[0].permute(1, 2, 0).contiguous().numpy()


def cut(pictures: Tensor, shape: PatchShape) -> Tensor:
    """Cut pictures (n, h, w, 3), both sides multiples of the factor, into patches.

    Returns:
        (n * patches, values), the patches that the merger joins next to one another; in a patch
        rows, columns, colours, so that what lay together in the picture stays together.
    """
    number, height, width, _ = pictures.shape
    blocks = pictures.reshape(
        number,
        height // shape.factor, shape.merge, shape.patch,
        width // shape.factor, shape.merge, shape.patch * 3,
    )  # fmt: skip
    return blocks.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, shape.values)
