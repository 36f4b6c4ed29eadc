"""Percentiles of a quantity over a run of any length, in constant memory."""

from __future__ import annotations

import math

__all__ = ["Histogram"]

_GROWTH = 1.01
_SMALLEST = 1e-6
_BUCKETS = math.ceil(math.log(1e10) / math.log(_GROWTH)) + 2


class Histogram:
    """Counts in buckets that grow by 1%, from 1e-6 to 1e4: percentiles are right to 1%.

    For one writer; readers see counts that may be one behind.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._counts = [0] * _BUCKETS
        self.count = 0
        self.total = 0.0
        self.worst = 0.0

    def add(self, value: float) -> None:
        """Count a value; those below 1e-6 count as 0."""
        index = 0
        if value > _SMALLEST:
            index = min(1 + int(math.log(value / _SMALLEST) / math.log(_GROWTH)), _BUCKETS - 1)
        self._counts[index] += 1
        self.count += 1
        self.total += value
        self.worst = max(self.worst, value)

    @property
    def mean(self) -> float:
        """The mean, 0 when empty."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """The smallest value that `percent` of all do not exceed, to 1%; 0 when empty."""
        wanted, seen = math.ceil(self.count * percent / 100.0), 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                upper = 0.0 if index == 0 else _SMALLEST * _GROWTH**index
                return min(upper, self.worst)
        return 0.0
