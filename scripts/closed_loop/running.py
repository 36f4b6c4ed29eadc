"""What the three architectures have in common: what they are given and what they count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

__all__ = ["Latencies", "Sampling", "Tally"]


@runtime_checkable
class Sampling(Protocol):
    """A policy whose chunks are drawn from noise."""

    def reseed(self, seed: int) -> None:
        """Begin the noise again."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """Modelled times in seconds; the ways between the programs take none.

    Attributes:
        encode_s: of the policy's slow half.
        act_s: of its fast half.
    """

    encode_s: float
    act_s: float


@dataclass(slots=True)
class Tally:
    """What happened in an episode.

    Attributes:
        encoded: passes of the slow half.
        acted: chunks.
        ages_s: of the pictures behind what was executed, at each control tick that moved.
        ticks: control ticks.
        held: those without a motion.
    """

    encoded: int = 0
    acted: int = 0
    ages_s: list[float] = field(default_factory=list)
    ticks: int = 0
    held: int = 0

    @property
    def age_s(self) -> float:
        """Mean age of the pictures; NaN where nothing was executed."""
        return float(np.mean(self.ages_s)) if self.ages_s else float("nan")
