"""Counts and times of what a server did, bounded in memory."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from serving.messages import RefusalKind

__all__ = ["SessionCounts", "Tally", "percentiles"]

_WINDOW = 2048


@dataclass(slots=True)
class SessionCounts:
    """What one client sent and got.

    Attributes:
        observations: that could be read.
        filtered: of them, those that were not worth predicting from.
        replaced: of them, those that gave way to a newer one: many from a client that floods.
        answers: given.
        refusals: given instead of answers.
    """

    observations: int = 0
    filtered: int = 0
    replaced: int = 0
    answers: int = 0
    refusals: int = 0

    def report(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


@dataclass(slots=True)
class Tally:
    """What one policy did, for all its sessions; who changes it holds the engine's lock.

    Attributes:
        observations: that could be read.
        filtered: of them, those that were not worth predicting from.
        replaced: of them, those that gave way to a newer one.
        predictions: observations that were predicted from.
        batch_sizes: how many calls of the model had how many observations.
        refusals: by kind.
        stuck: how often a prediction hung.
        fresh_copies: how often a hung policy was replaced.
        inference_s: how long the last calls took.
    """

    observations: int = 0
    filtered: int = 0
    replaced: int = 0
    predictions: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    refusals: Counter[RefusalKind] = field(default_factory=Counter)
    stuck: int = 0
    fresh_copies: int = 0
    inference_s: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def add(self, other: Tally) -> None:
        """Count another's in."""
        self.observations += other.observations
        self.filtered += other.filtered
        self.replaced += other.replaced
        self.predictions += other.predictions
        self.batch_sizes += other.batch_sizes
        self.refusals += other.refusals
        self.stuck += other.stuck
        self.fresh_copies += other.fresh_copies
        self.inference_s.extend(other.inference_s)

    def report(self) -> dict[str, Any]:
        """All of it as plain values; times in milliseconds, None before the first."""
        p50, p99 = percentiles(self.inference_s, 50, 99)
        calls = sum(self.batch_sizes.values())
        return {
            "observations": self.observations,
            "filtered": self.filtered,
            "replaced": self.replaced,
            "predictions": self.predictions,
            "batches": calls,
            "batch_sizes": {str(size): n for size, n in sorted(self.batch_sizes.items())},
            "batch_mean": self.predictions / calls if calls else None,
            "inference_ms_p50": p50 and p50 * 1e3,
            "inference_ms_p99": p99 and p99 * 1e3,
            "refusals": {kind: n for kind, n in sorted(self.refusals.items()) if n},
            "stuck": self.stuck,
            "fresh_copies": self.fresh_copies,
        }


def percentiles(values: Iterable[float], *shares: float) -> list[float | None]:
    """The percentiles of the values, None each where there are no values."""
    held = np.fromiter(values, np.float64)
    if not held.size:
        return [None for _ in shares]
    return [float(value) for value in np.percentile(held, shares)]
