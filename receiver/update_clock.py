"""When the slow loop starts its next pass: as late as features stay freshest, and no later."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from common.clock import Ticker

__all__ = ["UpdateClock", "best_start"]

_KEPT = 32
"""Passes remembered: seconds at the usual rates, enough to see how durations spread."""
_FADES = 0.93
"""Weight of a pass against the one after it, so that a pass that became slower is followed."""
_MARGIN_S = 0.002
"""For waking up, and for handing the features over."""
_TARGETS = 3
"""First uses that are weighed: as soon as the reuse permits, and the deadlines after it."""


class UpdateClock:
    """When to start the next update, from how long the last ones took.

    An update that starts late has newer pictures; one that is not ready in time costs a whole
    further use of the old features. The start is that with the least expected age at use, had the
    next pass the durations of the last ones: a rare long pass is then left to be late where waiting
    for it would make all others older.
    """

    def __init__(self, grid: Ticker, reuse: int) -> None:
        """`grid` is the fast loop's clock: features are used at its deadlines."""
        self._grid = grid
        self._reuse = reuse
        self._durations: deque[float] = deque(maxlen=_KEPT)
        self._start_at = 0.0

    def finished(self, duration_s: float, ready_at: float) -> None:
        """A pass took `duration_s` and was ready at `ready_at` (monotonic seconds)."""
        self._durations.append(duration_s)
        grid = self._grid
        durations = np.array(self._durations)
        start = best_start(durations, duration_s, ready_at - grid.start, self._reuse, grid.period_s)
        self._start_at = grid.start + start

    def start_at(self, next_picture_at: float | None = None) -> float:
        """When to start, in monotonic seconds; in the past when it is time already.

        `next_picture_at`: when the view with the oldest picture is expected to have a newer one.
        When that is after the start, waiting would gain nothing but the risk to be late.
        """
        if next_picture_at is not None and next_picture_at > self._start_at:
            return 0.0
        return self._start_at


def best_start(
    durations_s: NDArray[np.float64], last_s: float, ready_s: float, reuse: int, period_s: float
) -> float:
    """The start of the next pass with the least expected mean age at use; seconds, as `ready_s`.

    Features of a pass that took `last_s` were ready at `ready_s`; deadlines are at k P. They are
    first used at a = ⌈ready / P⌉, and are to serve `reuse` uses at least. A pass that starts at s
    and takes d is first used at K = ⌈(s + d) / P⌉ and then serves L uses, as many as the mean
    duration lasts. The uses from a to K + L then have the ages

        Σ (k P − s_old), k = a … K − 1,  and  L (K P − s) + P L (L − 1) / 2,

    and the quotient of the expected sum and the expected number of uses is the mean (renewal reward
    theorem). Tried are the starts from which the passes `durations_s` (N,), oldest first, would be
    ready right at a deadline, or at once; a pass that is ready before the uses are over gains
    nothing by it. The pictures' own age adds to all alike.
    """
    count = len(durations_s)
    weights = _FADES ** np.arange(count - 1, -1, -1.0)
    weights /= weights.sum()
    first = math.ceil(ready_s / period_s)
    targets = (first + reuse + np.arange(_TARGETS)) * period_s
    allowed = np.unique(durations_s) + _MARGIN_S
    starts = np.unique(np.maximum((targets[:, None] - allowed).ravel(), ready_s))
    taken = durations_s + _MARGIN_S
    firsts = np.maximum(np.ceil((starts[:, None] + taken) / period_s - 1e-9), first + reuse)
    served = max(float(reuse), float(weights @ taken) / period_s)
    waited, first_age = firsts - first, firsts * period_s - starts[:, None]
    old_age = first * period_s - (ready_s - last_s)
    sums = waited * old_age + period_s * waited * (waited - 1) / 2
    sums += served * first_age + period_s * served * (served - 1) / 2
    ages = (sums @ weights) / (waited @ weights + served)
    return float(starts[ages.argmin()])
