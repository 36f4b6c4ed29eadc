"""How fast a robot's state values change, told from its last states."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from serving.body import BodyState

__all__ = ["SpeedGauge"]

# Two states tell speeds when they are so far apart: noise below, another motion above. The receiver
# tells them over 50 ms.
_SPAN_S = (0.05, 0.2)
_SLACK_S = 2e-3
_MOST_STATES = 256


class SpeedGauge:
    """The states of the last moments; used by the control loop's thread, at every tick.

    A policy that was trained with speeds cannot tell them itself from observations that are a whole
    chunk apart.
    """

    def __init__(self) -> None:
        """No state was seen."""
        self._states: deque[BodyState] = deque(maxlen=_MOST_STATES)

    def see(self, state: BodyState) -> None:
        """Take the newest state; one of the same moment takes the last one's place."""
        if self._states and state.at < self._states[-1].at:
            self._states.clear()
        elif self._states and state.at == self._states[-1].at:
            self._states.pop()
        self._states.append(state)

    @property
    def speeds(self) -> NDArray[np.float32] | None:
        """(S,) change of each value a second; None where no state was seen just before."""
        if not self._states:
            return None
        newest = self._states[-1]
        for earlier in reversed(self._states):
            span_s = newest.at - earlier.at
            if span_s > _SPAN_S[1] + _SLACK_S:
                return None
            if span_s >= _SPAN_S[0] - _SLACK_S:
                if earlier.values.shape != newest.values.shape:
                    return None
                return ((newest.values - earlier.values) / span_s).astype(np.float32)
        return None
