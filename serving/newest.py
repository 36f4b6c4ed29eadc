"""The newest observation of a session, and which ones are not worth predicting from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serving.messages import Observation

__all__ = ["Likeness", "NewestSlot", "Offered", "Waiting"]

Offered = Literal["taken", "replaced", "filtered"]
"""taken: it waits now; replaced: it does, in the place of an older one; filtered: left out."""

_REMEMBERED = 1024
_MOST_KEPT = 1 << 20
"""Bytes of a sensor window that is compared with the next one; a larger one is always new."""


class Likeness:
    """Whether two states count as the same.

    Each value may differ by `share` of its range: of the range given for its name, else of the
    range that was seen so far. A robot that has hardly moved yet has shown a small range, so that
    its small moves count. With a share of 0.0 only the very same state is the same.
    """

    def __init__(
        self,
        share: float = 0.0,
        names: tuple[str, ...] = (),
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self._share = share
        known = [(ranges or {}).get(name) for name in names]
        self._known = np.array([np.nan if r is None else r[1] - r[0] for r in known])
        self._lowest: NDArray[np.float32] | None = None
        self._highest: NDArray[np.float32] | None = None

    def see(self, state: NDArray[np.float32]) -> None:
        """Widen the range seen so far."""
        if not self._share:
            return
        if self._lowest is None or self._highest is None or self._lowest.shape != state.shape:
            self._lowest, self._highest = state.copy(), state.copy()
        else:
            np.minimum(self._lowest, state, out=self._lowest)
            np.maximum(self._highest, state, out=self._highest)

    def same(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
        """Whether the two states count as one."""
        if a.shape != b.shape or not self._share or self._lowest is None:
            return bool(np.array_equal(a, b))
        assert self._highest is not None
        seen = (self._highest - self._lowest).astype(np.float64)
        fits = self._known.shape == seen.shape
        span = np.where(np.isnan(self._known), seen, self._known) if fits else seen
        return bool((np.abs(a.astype(np.float64) - b) <= self._share * span).all())


@dataclass(frozen=True, slots=True)
class Waiting:
    """An observation that waits, and when it came (`time.monotonic()` seconds)."""

    observation: Observation
    arrived_at: float


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a later observation is compared with: none of the pictures, which are large.

    Attributes:
        state: a copy; the observation's own is a view that keeps its whole message in memory.
        sensor: likewise.
        task: of the observation.
        wants: of the observation.
        at: when its prediction began, `time.monotonic()` seconds.
    """

    state: NDArray[np.float32]
    sensor: NDArray[np.float32] | None
    task: str
    wants: str
    at: float

    @classmethod
    def of(cls, observation: Observation, at: float) -> _Shown | None:
        """What there is to compare with; None where that would be too much to keep."""
        sensor = observation.sensor
        if sensor is not None and sensor.nbytes > _MOST_KEPT:
            return None
        copied = None if sensor is None else sensor.copy()
        return cls(observation.state.copy(), copied, observation.task, observation.wants, at)


class NewestSlot:
    """Holds one observation, the newest, and remembers what was predicted from.

    An observation is taken when it is `must_go`, or when its timestep was not predicted yet and it
    does not show what the last prediction was made from. It shows the same when state, task and
    sensor window are the same, it asks for actions (features depend on pictures alone), and the
    last prediction began no longer than `unchanged_for_s` ago: before a robot that stands still
    the pictures may change, and they are not compared. One older than the one that waits already
    is left out, `must_go` or not.
    """

    def __init__(self, likeness: Likeness, unchanged_for_s: float) -> None:
        self._likeness = likeness
        self._unchanged_for_s = unchanged_for_s
        self._waiting: Waiting | None = None
        self._predicted: dict[int, None] = {}
        self._last: _Shown | None = None

    @property
    def filled(self) -> bool:
        """Whether an observation waits."""
        return self._waiting is not None

    def offer(self, observation: Observation, now: float) -> Offered:
        """Put the observation into the slot, or leave it out."""
        self._likeness.see(observation.state)
        waiting = self._waiting
        if waiting and observation.timestep < waiting.observation.timestep:
            return "filtered"
        if not observation.must_go and (
            observation.timestep in self._predicted or self._shows_the_same(observation, now)
        ):
            return "filtered"
        self._waiting = Waiting(observation, now)
        return "replaced" if waiting else "taken"

    def take(self, now: float) -> Waiting:
        """Empty the slot to predict from what waits there."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            raise LookupError("no observation waits")
        timestep = waiting.observation.timestep
        # A dict keeps the order, so that the one predicted longest ago is forgotten first.
        self._predicted.pop(timestep, None)
        self._predicted[timestep] = None
        if len(self._predicted) > _REMEMBERED:
            del self._predicted[next(iter(self._predicted))]
        self._last = _Shown.of(waiting.observation, now) if self._unchanged_for_s else None
        return waiting

    def clear(self) -> None:
        """Empty the slot; what waited there was refused."""
        self._waiting = None

    def failed(self, timestep: int) -> None:
        """No answer came of this step: the same step and state may be tried again.

        A robot whose queue is empty stands still at one step: it must not be left out for that.
        """
        self._last = None
        self._predicted.pop(timestep, None)

    def _shows_the_same(self, observation: Observation, now: float) -> bool:
        last = self._last
        if last is None or observation.wants == "features":
            return False
        return (
            now - last.at < self._unchanged_for_s
            and (last.wants, last.task) == (observation.wants, observation.task)
            and self._likeness.same(last.state, observation.state)
            and _same_window(last.sensor, observation.sensor)
        )


def _same_window(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.array_equal(a, b))
