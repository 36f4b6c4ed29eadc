"""The actions that wait to be executed, and when to ask for more; no clock, no thread.

Time comes in as an argument (monotonic seconds), so that the robot client, a simulation client and
a comparison in virtual time can all use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.step_limiter import wrap_deg
from serving.aggregation import Aggregation, choose

__all__ = ["ActionQueue", "Asking", "Merged", "Row"]

_MOST_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Row:
    """One action.

    Attributes:
        step: the control step that it is for.
        action: (A,) as the policy (and the aggregation) gave it; no limit was applied.
        measured_at: monotonic seconds at which the oldest input that went into it was measured.
    """

    step: int
    action: NDArray[np.float64]
    measured_at: float


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of a chunk: rows for steps already executed, mixed with queued ones, and new."""

    past: int
    mixed: int
    added: int


class ActionQueue:
    """Actions by control step, in order; used by one thread.

    A step is executed at most once and never after a later one. Steps that nothing is known of are
    left out: what is queued next is executed next, as LeRobot's client does, and counted in
    `gaps`. With answers that begin at their observation's own step no gap can arise, since an
    observation's step was executed already when it was sent; the limits bound the motion across
    one that a strange server makes.
    """

    def __init__(
        self,
        actions_per_chunk: int,
        aggregation: Aggregation | None = None,
        *,
        threshold: float = 0.5,
        max_age_s: float = math.inf,
        period_s: float = 0.0,
        turns: NDArray[np.bool_] | None = None,
    ) -> None:
        """Expect chunks of `actions_per_chunk` rows; ask for the next at `threshold` of that.

        A queued row whose input will be older than `max_age_s` when it is due, at one row each
        `period_s`, is replaced by the new one instead of mixed with it: else what is fresh would
        have to be thrown away for the sake of what is not. `turns` (A,) are the angles for which
        180 and -180 are the same: they are mixed the short way round.
        """
        if actions_per_chunk < 1 or not 0.0 <= threshold <= 1.0:
            raise ValueError("a chunk has rows, and the threshold is from 0 to 1")
        self._per_chunk = actions_per_chunk
        self._aggregation = aggregation or choose("weighted_average")
        self._threshold = threshold
        self._max_age_s, self._period_s = max_age_s, period_s
        self._turns = turns
        self._longest = 0
        self.latest = -1
        self.gaps = 0
        self.clear()

    def clear(self) -> None:
        """Forget what is queued; the count of executed steps goes on."""
        self._steps: NDArray[np.int64] = np.empty(0, np.int64)
        self._actions: NDArray[np.float64] = np.empty((0, 0))
        self._measured: NDArray[np.float64] = np.empty(0)
        self._head = 0

    def __len__(self) -> int:
        """Rows that wait."""
        return len(self._steps) - self._head

    @property
    def capacity(self) -> int:
        """Rows of a full queue: of the longest chunk so far, or as many as are asked for.

        A policy may give fewer rows than it is asked for; measured by what was asked for, its
        queue would never be full.
        """
        return self._longest or self._per_chunk

    @property
    def wants_observation(self) -> bool:
        """Whether it is time to ask for the next chunk."""
        return len(self) / self.capacity <= self._threshold

    @property
    def observation_step(self) -> int:
        """The step that an observation taken now is for, as LeRobot counts: the last executed."""
        return max(self.latest, 0)

    def peek(self) -> Row | None:
        """The next row, which stays."""
        if not len(self):
            return None
        k = self._head
        return Row(int(self._steps[k]), self._actions[k], float(self._measured[k]))

    def pop(self) -> Row | None:
        """The next row, which is executed."""
        row = self.peek()
        if row is not None:
            self._head += 1
            self.gaps += row.step - self.latest - 1
            self.latest = row.step
        return row

    def merge(
        self, first_step: int, actions: NDArray[np.float64], measured_at: float, now: float
    ) -> Merged:
        """Take a chunk: `actions` (H, A), row 0 for `first_step`, from inputs of `measured_at`.

        Rows for executed steps are discarded, those for queued steps aggregated; queued steps that
        the chunk does not cover stay, in order. What is mixed counts as old as the older of the
        two: a part of the motion still answers to what was seen then.
        """
        self._longest = min(max(self._longest, len(actions)), _MOST_ROWS)
        steps = first_step + np.arange(len(actions), dtype=np.int64)
        ahead = (steps > self.latest) & (steps <= self.latest + _MOST_ROWS)
        steps, rows = steps[ahead], actions[ahead].astype(np.float64)
        measured = np.full(len(steps), measured_at)
        queued = slice(self._head, None)
        old_steps, old_rows = self._steps[queued], self._actions[queued]
        old_measured = self._measured[queued]
        due = now + self._period_s * (1 + np.arange(len(old_steps)))
        mixable = due - old_measured <= self._max_age_s
        _, in_old, in_new = np.intersect1d(
            np.where(mixable, old_steps, -1), steps, assume_unique=False, return_indices=True
        )
        if len(in_new):
            rows[in_new] = self._mix(old_rows[in_old], rows[in_new])
            if self._aggregation.uses_queued:
                measured[in_new] = np.minimum(old_measured[in_old], measured_at)
        kept = ~np.isin(old_steps, steps)
        self._put(
            np.concatenate([old_steps[kept], steps]),
            np.concatenate([old_rows[kept], rows]) if kept.any() else rows,
            np.concatenate([old_measured[kept], measured]),
        )
        covered = len(old_steps) - int(kept.sum())
        return Merged(len(actions) - len(steps), len(in_new), len(steps) - covered)

    def _mix(self, queued: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._turns is not None and self._turns.any():
            near = queued + wrap_deg(new - queued)
            new = np.where(self._turns, near, new)
        mixed = np.asarray(self._aggregation.function(queued, new), np.float64)
        if mixed.shape != new.shape:
            raise ValueError(f"aggregation {self._aggregation.name!r} gave {mixed.shape}")
        return mixed

    def _put(
        self,
        steps: NDArray[np.int64],
        rows: NDArray[np.float64],
        measured: NDArray[np.float64],
    ) -> None:
        order = np.argsort(steps, kind="stable")[:_MOST_ROWS]
        self._steps, self._actions, self._measured = steps[order], rows[order], measured[order]
        self._head = 0


class Asking:
    """Says when an observation must be predicted from, whatever the server thinks of it.

    That is: the queue is empty, and no such observation was sent since the last chunk came. So
    that one lost message does not leave the robot waiting for ever, it is said again after
    `must_go_after_s` without an answer, and `retry_s` after the server refused.
    """

    def __init__(self, must_go_after_s: float = 2.0, retry_s: float = 0.5) -> None:
        """Nothing was asked for yet."""
        self._after_s, self._retry_s = must_go_after_s, retry_s
        self._again_at = -math.inf

    def due(self, now: float) -> bool:
        """Whether an observation sent now, with an empty queue, must go."""
        return now >= self._again_at

    def asked(self, now: float) -> None:
        """An observation that must go was sent."""
        self._again_at = now + self._after_s

    def answered(self) -> None:
        """A chunk came, or the session is a new one."""
        self._again_at = -math.inf

    def refused(self, now: float) -> None:
        """The server said that there will be no answer."""
        self._again_at = min(self._again_at, now + self._retry_s)
