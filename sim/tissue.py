"""How the tissue surface moves along the port's axis: a swing, or a motion that never repeats.

A pure function of options, seed and time, for all who move the surface or know where it will be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.layout import Layout, RigConfig

__all__ = ["BAND", "MOST", "TissueMotion", "tissue_motion"]

BAND = (0.3, 1.7)
"""Frequencies of the irregular motion, as multiples of the regular one's."""
MOST = 1.4
"""Bound of the irregular motion, as a multiple of the regular one's amplitude."""

_WAVES = 12
_TAG = 0x715  # draws of its own: ports lie where they lie with either motion
# The sum of the waves has a variance of 1 and is nearly normal; erf(sum / (sqrt(2) s)) has one of
# 2 / pi * asin(1 / (1 + s^2)) (smoothly limited noise: Baum, IRE Trans. Information Theory 3,
# 1957). With this s, and times MOST, that is a sine's: 1 / 2.
_SOFTNESS = math.sqrt(1.0 / math.sin(math.pi / 4.0 / MOST**2) - 1.0)


class TissueMotion(Protocol):
    """The surface's motion in one episode."""

    def displacement(self, time_s: float) -> float:
        """How much deeper than in the middle the surface is at a time of the episode."""

    def speed(self, time_s: float) -> float:
        """The displacement's change per second then."""


def tissue_motion(config: RigConfig, layout: Layout, unit_mm: float = 1.0) -> TissueMotion:
    """The motion of an episode's tissue; the same for the same options and seed.

    `regular` is a swing of one frequency. `irregular` is the sum of twelve, between 0.3 and 1.7
    times that one, limited softly: over time its RMS is the swing's, and it stays within 1.4 of
    the swing's amplitudes. It forgets itself within a period. At 1 Hz, over many seeds:

    | seconds later | 0.1 | 0.2 | 0.4 | 0.8 | 1.2 | 1.6 |
    | --- | --- | --- | --- | --- | --- | --- |
    | autocorrelation | 0.78 | 0.26 | -0.44 | -0.03 | -0.05 | -0.08 |
    | not foreseen, % of the variance | 4 | 31 | 80 | 98 | 97 | 99 |

    Not foreseen is by who knows place and speed exactly and puts them together as well as a linear
    forecast can. Who also remembers the last 2 s does better: 46 % at 0.4 s, 90 % at 0.8 s.

    Args:
        config: says which, how far and how fast.
        layout: says where in it the episode begins.
        unit_mm: of the answers: 1 for mm and mm/s, 1000 for m and m/s.
    """
    amplitude = config.tissue_amplitude_mm / unit_mm
    omega = 2.0 * math.pi * config.tissue_hz
    if config.tissue == "regular":
        return _Regular(amplitude, omega, layout.phase_rad)
    rng = np.random.default_rng((layout.seed, _TAG))
    # One wave in each twelfth of the band: none has two that stay together for long.
    ends = np.linspace(*BAND, _WAVES + 1)
    omegas = omega * rng.uniform(ends[:-1], ends[1:])
    phases = rng.uniform(0.0, 2.0 * math.pi, _WAVES)
    waves = tuple(zip(omegas.tolist(), phases.tolist(), strict=True))
    return _Irregular(MOST * amplitude, waves)


@dataclass(frozen=True, slots=True)
class _Regular:
    amplitude: float
    omega: float
    phase_rad: float

    def displacement(self, time_s: float) -> float:
        return self.amplitude * math.sin(self.omega * time_s + self.phase_rad)

    def speed(self, time_s: float) -> float:
        return self.amplitude * self.omega * math.cos(self.omega * time_s + self.phase_rad)


@dataclass(frozen=True, slots=True)
class _Irregular:
    """Waves of equal height, limited softly; `waves` are radians a second and phases."""

    most: float
    waves: tuple[tuple[float, float], ...]

    def displacement(self, time_s: float) -> float:
        return self.most * math.erf(self._sum(time_s) / (math.sqrt(2.0) * _SOFTNESS))

    def speed(self, time_s: float) -> float:
        height = math.sqrt(2.0 / len(self.waves))
        change = height * math.fsum(w * math.cos(w * time_s + phase) for w, phase in self.waves)
        steepness = math.exp(-0.5 * (self._sum(time_s) / _SOFTNESS) ** 2)
        return self.most * math.sqrt(2.0 / math.pi) / _SOFTNESS * steepness * change

    def _sum(self, time_s: float) -> float:
        """Of all waves; its variance over time is 1."""
        height = math.sqrt(2.0 / len(self.waves))
        return height * math.fsum(math.sin(w * time_s + phase) for w, phase in self.waves)
