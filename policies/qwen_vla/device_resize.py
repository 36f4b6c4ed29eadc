"""Resizing on the device as Pillow does it, to the last bit, as two matrix products.

Pillow resizes 8-bit pictures in two passes, along rows and then along columns. Each pass sums
levels times whole-numbered weights of 22 bits after the point, rounds, and cuts to 0 … 255 (its
`Resample.c`). Matrix units have no such numbers, but float32 holds whole numbers below 2^24: with
the weights split into two parts of 11 bits, both sums are exact, in any order, TF32 or not.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["DeviceResize", "can_resize", "pillow_weights"]

# Pillow's PRECISION_BITS: 32 less 8 of the level less 2 of headroom.
BITS = 22
PART_BITS = 11
# The support of the bicubic filter, in output pixels to each side.
SUPPORT = 2.0
# So many taps times 255 times 2^11 still lie below 2^24.
MAX_TAPS = 32


def can_resize(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether sums stay exact: pictures are at most some seven times as large as wanted."""
    return all(_taps(old, new) <= MAX_TAPS for old, new in zip(size, target, strict=True))


def pillow_weights(old: int, new: int) -> NDArray[np.int64]:
    """Pillow's weights for bicubic resizing along one side: (new, old), 2^22 for one.

    Source: `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's `Resample.c`; the filter is
    Keys' cubic with a = -0.5.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    support = SUPPORT * stretch
    weights = np.zeros((new, old), dtype=np.int64)
    for place in range(new):
        centre = (place + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), old)
        inverse = 1.0 / stretch
        taps = [_cubic((tap - centre + 0.5) * inverse) for tap in range(first, last)]
        total = sum(taps)
        for tap, value in zip(range(first, last), taps, strict=True):
            share = value / total if total else value
            weights[place, tap] = int(math.copysign(0.5, share) + share * (1 << BITS))
    return weights


class DeviceResize:
    """Resizes pictures of one size to another, on the device.

    Args:
        size: width and height of the pictures.
        target: width and height to resize to.
        device: where the pictures lie.
    """

    def __init__(
        self, size: tuple[int, int], target: tuple[int, int], device: torch.device
    ) -> None:
        self._across = _parts(size[0], target[0], device)
        self._down = _parts(size[1], target[1], device)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures (n, h, w, 3) uint8 to (n, height, width, 3) uint8."""
        number, height, width, _ = pictures.shape
        if self._across is not None:
            # One product over all rows of all colours: (n * h * 3, w).
            rows = pictures.movedim(3, 2).reshape(-1, width).float()
            levels = _rounded(rows @ self._across.T, dim=1)
            pictures = levels.view(number, height, 3, -1).movedim(2, 3)
        if self._down is not None:
            columns = pictures.reshape(number, height, -1).float()  # (n, h, w * 3)
            levels = _rounded(self._down @ columns, dim=1)
            pictures = levels.reshape(number, levels.shape[1], -1, 3)
        return pictures


def _taps(old: int, new: int) -> int:
    return 2 * math.ceil(SUPPORT * max(old / new, 1.0)) + 1


def _cubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


def _parts(old: int, new: int, device: torch.device) -> Tensor | None:
    """The upper parts of the weights over the lower ones: (2 * new, old) float32."""
    if old == new:
        return None
    weights = pillow_weights(old, new)
    upper = weights >> PART_BITS
    both = np.concatenate((upper, weights - (upper << PART_BITS)))
    return torch.from_numpy(both.astype(np.float32)).to(device)


def _rounded(sums: Tensor, dim: int) -> Tensor:
    upper, lower = (part.to(torch.int32) for part in sums.chunk(2, dim))
    whole = (upper << PART_BITS) + lower + (1 << (BITS - 1))
    return (whole >> BITS).clamp(0, 255).to(torch.uint8)
