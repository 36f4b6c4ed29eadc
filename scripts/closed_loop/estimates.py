"""Figures with their intervals: success by Wilson, errors by the bootstrap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.closed_loop.episode import EpisodeResult

__all__ = ["Estimate", "Point", "bootstrap", "points", "wilson"]

_Z = 1.959963984540054  # two-sided 95 %
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval; NaN where nothing was measured."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Point:
    """All episodes of one method at one latency.

    Attributes:
        method, latency_ms: which.
        episodes: how many.
        successes: of them.
        success: their share.
        measured: episodes with the tip in the port for their last 3 s.
        rms_median_mm, rms_mean_mm: of those.
        reasons: of the failures.
        age_ms: mean age of the pictures behind what was executed.
        held: mean share of the control ticks without a motion.
    """

    method: str
    latency_ms: float
    episodes: int
    successes: int
    success: Estimate
    measured: int
    rms_median_mm: Estimate
    rms_mean_mm: Estimate
    reasons: Counter[str]
    age_ms: float
    held: float


def wilson(successes: int, episodes: int) -> Estimate:
    """A share with its score interval (Wilson 1927); it holds for shares of 0 and 1 too."""
    if episodes == 0:
        return Estimate(math.nan, 0.0, 1.0)
    share, z2 = successes / episodes, _Z * _Z
    middle = (share + z2 / (2 * episodes)) / (1 + z2 / episodes)
    spread = math.sqrt(share * (1 - share) / episodes + z2 / (4 * episodes**2))
    half = _Z * spread / (1 + z2 / episodes)
    # At the ends the bound is the share itself, but for rounding.
    low = 0.0 if successes == 0 else max(middle - half, 0.0)
    high = 1.0 if successes == episodes else min(middle + half, 1.0)
    return Estimate(share, low, high)


def bootstrap(
    values: Sequence[float] | NDArray[np.float64],
    statistic: Callable[..., NDArray[np.float64]],
) -> Estimate:
    """A statistic with its percentile interval over resampled values; the same at every call.

    `statistic` takes an array and an `axis`, as `np.mean` and `np.median` do.
    """
    known = np.asarray(values, np.float64)
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(0)
    drawn = known[rng.integers(0, len(known), (_RESAMPLES, len(known)))]
    low, high = np.percentile(statistic(drawn, axis=1), (2.5, 97.5))
    return Estimate(float(statistic(known, axis=0)), float(low), float(high))


def points(rows: Sequence[EpisodeResult]) -> list[Point]:
    """The points that there are rows of, in the order in which methods and latencies appear."""
    groups: dict[tuple[str, float], list[EpisodeResult]] = {}
    for row in rows:
        groups.setdefault((row.method, row.latency_ms), []).append(row)
    return [_point(method, ms, group) for (method, ms), group in groups.items()]


def _point(method: str, latency_ms: float, rows: Sequence[EpisodeResult]) -> Point:
    errors = np.array([row.rms_mm for row in rows if math.isfinite(row.rms_mm)])
    ages = [row.age_ms for row in rows if math.isfinite(row.age_ms)]
    successes = sum(row.success for row in rows)
    return Point(
        method=method,
        latency_ms=latency_ms,
        episodes=len(rows),
        successes=successes,
        success=wilson(successes, len(rows)),
        measured=len(errors),
        rms_median_mm=bootstrap(errors, np.median),
        rms_mean_mm=bootstrap(errors, np.mean),
        reasons=Counter(row.reason for row in rows if row.reason),
        age_ms=float(np.mean(ages)) if ages else math.nan,
        held=float(np.mean([row.held for row in rows])),
    )
