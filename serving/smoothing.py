"""On the way from the queue to the limits: another control rate, and a low-pass filter."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from common.step_limiter import wrap_deg

__all__ = ["LowPass", "resampled"]

_MOST_ROWS = 4096


def resampled(
    actions: NDArray[np.float64],
    dt: float,
    period_s: float,
    turns: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """A chunk's rows at another rate, on straight lines between the rows that there are.

    `actions` (H, A) are `dt` seconds apart, row 0 at the observation; returned are rows (K, A)
    that are `period_s` apart, the first the same, the last not later than row H - 1: nothing is
    made up beyond it. K is at most 4,096. `turns` (A,) are the angles for which 180 and -180 are
    the same. ValueError for a `dt` or period that is none.
    """
    if not (0.0 < dt < math.inf and 0.0 < period_s < math.inf):
        raise ValueError(f"rows {dt} s apart cannot be resampled to {period_s} s")
    last = len(actions) - 1
    # A hair more than a whole number of periods is that number: 3 × 0.1 is not 0.3 here.
    count = int(min(last * dt / period_s + 1e-6, _MOST_ROWS - 1)) + 1
    at = np.minimum(np.arange(count) * (period_s / dt), last)
    below = np.minimum(at.astype(np.int64), max(last - 1, 0))
    above = np.minimum(below + 1, last)
    change = actions[above] - actions[below]
    if turns is not None:
        change = np.where(turns, wrap_deg(change), change)
    between: NDArray[np.float64] = actions[below] + (at - below)[:, None] * change
    return between


class LowPass:
    """A Butterworth low-pass filter over the actions that are executed, one row at a time.

    It knows nothing of chunks: what is filtered is the row of each control tick, and the state
    goes on from one to the next, so that there is nothing to jump where chunks meet. It starts as
    if the robot had stood where it stands for ever, so that it does not jump there either.

    Columns can be left out: a gripper that is told to open or close should do so when told, not
    creep. The limits apply to them all the same.
    """

    def __init__(
        self,
        cutoff_hz: float,
        control_hz: float,
        order: int = 2,
        *,
        left_out: NDArray[np.bool_] | None = None,
        turns: NDArray[np.bool_] | None = None,
    ) -> None:
        """Pass what is slower than `cutoff_hz` (-3 dB there); ValueError where that cannot be.

        `left_out` (A,) are columns that pass as they are; `turns` (A,) angles for which 180 and
        -180 are the same. Needs scipy.
        """
        if not 0.0 < cutoff_hz < control_hz / 2:
            raise ValueError(
                f"the cut-off must be above 0 and below {control_hz / 2:g} Hz, "
                f"half the control rate, not {cutoff_hz:g}"
            )
        if not 1 <= order <= 8:
            raise ValueError(f"the order of the low-pass must be from 1 to 8, not {order}")
        from scipy.signal import butter, sosfilt_zi

        sections = butter(order, cutoff_hz, fs=control_hz, output="sos")
        self._sections: list[list[float]] = sections.tolist()
        self._settled: NDArray[np.float64] = sosfilt_zi(sections)[:, :, None]
        self._left_out, self._turns = left_out, turns
        self._state: NDArray[np.float64] | None = None
        self._last: NDArray[np.float64] | None = None
        self._start: NDArray[np.float64] | None = None

    def start(self, position: NDArray[np.float64]) -> None:
        """Begin at where the robot is (A,); where that is NaN (unknown), at the first action."""
        self._start = position.copy()
        self._state = None

    def next(self, wanted: NDArray[np.float64]) -> NDArray[np.float64]:
        """The filtered row (A,) for the row of this tick (A,)."""
        if self._state is None:
            start = wanted if self._start is None else self._start
            start = np.where(np.isfinite(start), start, wanted)
            self._state = self._settled * start
            self._last = start
        assert self._last is not None
        row = wanted
        if self._turns is not None:
            # Follows an angle past 180 rather than jump to -180, and filter that jump.
            row = np.where(self._turns, self._last + wrap_deg(wanted - self._last), wanted)
        self._last = row
        filtered = self._filtered(row, self._state)
        return filtered if self._left_out is None else np.where(self._left_out, wanted, filtered)

    def _filtered(
        self, row: NDArray[np.float64], state: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """One sample through the second-order sections, transposed direct form II.

        As `scipy.signal.sosfilt` does it, which takes several times as long over one sample.
        """
        for (b0, b1, b2, _, a1, a2), held in zip(self._sections, state, strict=True):
            out = b0 * row + held[0]
            held[0] = b1 * row - a1 * out + held[1]
            held[1] = b2 * row - a2 * out
            row = out
        return row
