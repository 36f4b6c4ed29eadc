"""OCT A-scans as a probe in the needle would see them: speckle, and a surface at its distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["RANGE_MM", "SAMPLES", "depth_of_mm", "synthesize"]

SAMPLES = 1025
# Depth of the last sample: 15.6 µm a sample, about what a swept-source OCT of 1,300 nm resolves.
RANGE_MM = 16.0

_NOISE_FLOOR = 0.045
_SURFACE = 0.55
_SURFACE_WIDTH_MM = 0.06
_TISSUE = 0.32
# Amplitude falls to 1/e over this depth: retina and choroid at near infrared.
_DECAY_MM = 1.1

_PER_MM = (SAMPLES - 1) / RANGE_MM


# Rows past the last sample, so that a surface just out of range still shows its flank.
_LAST_ROW = SAMPLES + 32


def _profile() -> NDArray[np.float32]:
    """Mean amplitude before and behind a surface, which is at index `_LAST_ROW`."""
    behind_mm = np.arange(-_LAST_ROW, SAMPLES) / _PER_MM
    peak = _SURFACE * np.exp(-0.5 * (behind_mm / _SURFACE_WIDTH_MM) ** 2)
    bulk = np.where(behind_mm >= 0, _TISSUE * np.exp(-np.maximum(behind_mm, 0) / _DECAY_MM), 0.0)
    return (_NOISE_FLOOR + peak + bulk).astype(np.float32)


# Row i is the profile with its surface at sample i: a view, no copies.
_AT_SAMPLE = np.lib.stride_tricks.sliding_window_view(_profile(), SAMPLES)[::-1]


def depth_of_mm(distance_mm: float) -> int:
    """The sample a surface shows at when `distance_mm` ahead of the tip; SAMPLES: out of range."""
    return min(max(round(distance_mm * _PER_MM), 0), SAMPLES)


def synthesize(distances_mm: ArrayLike, rng: np.random.Generator) -> NDArray[np.float32]:
    """A-scans (N, 1025) float32 in 0 to 1 for tip-to-tissue distances (N,) in mm.

    Beyond the range (or NaN) there is only the noise floor; a tip pushed into the tissue sees it
    at depth 0. Speckle is fully developed: Rayleigh-distributed amplitude with a mean of 1
    (Goodman, "Speckle Phenomena in Optics", section 3.2).
    """
    distances = np.atleast_1d(np.asarray(distances_mm, dtype=np.float64))
    samples = np.nan_to_num(distances * _PER_MM, nan=_LAST_ROW, posinf=_LAST_ROW, neginf=0.0)
    rows = np.clip(np.rint(samples), 0, _LAST_ROW).astype(np.intp)
    scans = rng.standard_exponential((len(rows), SAMPLES), dtype=np.float32)
    np.sqrt(scans, out=scans)
    scans *= np.float32(2.0 / np.sqrt(np.pi))
    for i, row in enumerate(rows):
        scans[i] *= _AT_SAMPLE[row]
    return np.clip(scans, 0.0, 1.0, out=scans)
