"""Turns the receiver's action chunks into motion commands, within limits; no sockets, no clock.

Time comes in as an argument (monotonic seconds), so that every decision can be replayed in a test.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.step_limiter import StepLimiter
from common.wire import Action
from senders.limits import MotionLimits
from senders.transit import Transit

__all__ = ["ActionExecutor", "Command"]

logger = logging.getLogger("senders.executor")

_PERIODS_OF_SILENCE = 3
_RESTART_SEQ = 100
"""A receiver that starts again counts from 0; the first messages may be missed while connecting."""
_FORGET_S = 2.0
_OLDER_S = 0.5
_DT_S = (1e-3, 10.0)
_MOST_SHOWN = 80

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Command:
    """One thing for the driver to do: go to `target` (6,), or hold and why."""

    kind: Literal["joints", "pose", "hold"]
    target: Vector | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Way points: `points` (H + 1, 6) are due at `due` (H + 1,) monotonic seconds."""

    kind: Literal["joints", "pose"]
    due: Vector
    points: Vector

    def at(self, moment: float) -> Vector:
        """The point between its rows (6,); the last one once all are past."""
        k = int(np.clip(np.searchsorted(self.due, moment) - 1, 0, len(self.due) - 2))
        part = (moment - self.due[k]) / (self.due[k + 1] - self.due[k])
        point: Vector = self.points[k] + np.clip(part, 0.0, 1.0) * (
            self.points[k + 1] - self.points[k]
        )
        return point


class ActionExecutor:
    """Follows the newest action chunk, and holds when there is none to follow.

    Row k of a chunk is due (k + 1) dt after its arrival; between rows the target moves in a
    straight line, from where the robot is (or was last sent) when the chunk arrives. Used by one
    thread: `observe` each reading, `accept` each message, then `step` once a control tick.
    """

    def __init__(
        self,
        limits: MotionLimits,
        control_hz: float,
        action_hz: float,
        max_delay_s: float = 0.5,
    ) -> None:
        """Expect `action_hz` chunks a second; refuse one that took `max_delay_s` over the usual."""
        self._limiters: dict[str, StepLimiter] = {
            "joints": limits.joints(control_hz),
            "pose": limits.pose(control_hz),
        }
        self.watchdog_s = _PERIODS_OF_SILENCE / action_hz
        self._transit = Transit(max_delay_s)
        self._measured: dict[str, Vector] | None = None
        self._commanded: tuple[str, Vector] | None = None
        self._plan: _Plan | None = None
        self._last: Action | None = None
        self._last_at = 0.0
        self._episode_at = -math.inf
        self._hold_due = False
        self._delay_said = False
        self._hold_kind = ""
        self.holding = ""
        self.accepted = 0
        self.holds: Counter[str] = Counter()

    def observe(self, joints_deg: Vector, pose: Vector) -> None:
        """Take the newest reading: joints (6,) in degrees, pose (6,) in mm and degrees."""
        self._measured = {"joints": np.array(joints_deg), "pose": np.array(pose)}

    def forget(self) -> None:
        """Nothing is known of the robot any more, or it was moved: drop what was planned."""
        self._measured = self._plan = self._commanded = None

    def begin_episode(self, moment: float) -> None:
        """Another episode began: what was seen before says nothing of it, nor what came of that."""
        self.forget()
        self._episode_at = moment

    def accept(self, action: Action, arrived_at: float) -> str:
        """Take one message; the reason as a short slug when it is refused, else empty.

        An order to hold is obeyed even when it comes late: that errs on the safe side.
        """
        refused = self._out_of_order(action, arrived_at)
        self._say_delay(arrived_at)
        if not refused:
            self._last, self._last_at = action, arrived_at
        if action.hold:
            self.hold(f"receiver: {action.reason or 'no reason given'}", "receiver")
            return refused
        refused = refused or self._outlived(action, arrived_at) or self._unusable(action)
        if refused:
            return refused
        self._plan = self._plan_for(action, arrived_at)
        self.accepted += 1
        return ""

    def hold(self, reason: str, kind: str) -> None:
        """Stop following; `kind` is what the hold is counted under, `reason` may be anyone's."""
        was_moving = self._commanded is not None or not self.holding
        self._plan = self._commanded = None
        self._hold_due = self._hold_due or was_moving
        shown = "".join(c if c.isprintable() else "?" for c in reason[:_MOST_SHOWN])
        if not self.holding or kind != self._hold_kind:
            self.holds[kind] += 1
            logger.warning("hold: %s", shown)
        self.holding, self._hold_kind = shown, kind

    def step(self, moment: float) -> Command | None:
        """What to tell the robot at this control tick; None when there is nothing to tell.

        A hold is returned until `held` says that the robot took it.
        """
        if self._measured is None:
            return None
        if self._plan is not None and moment - self._plan.due[0] > self.watchdog_s:
            self.hold(f"no action for {self.watchdog_s:.2f} s", "watchdog")
        if self._plan is None:
            return Command("hold", reason=self.holding) if self._hold_due else None
        kind = self._plan.kind
        commanded = self._commanded_in(kind)
        target = self._limiters[kind].next(self._plan.at(moment), commanded, self._measured[kind])
        if target is None:
            self.hold("the robot is outside its range: move it back", "range")
            return Command("hold", reason=self.holding) if self._hold_due else None
        if self.holding:
            logger.info("moving again, was on hold: %s", self.holding)
            self.holding = self._hold_kind = ""
        self._hold_due = False
        self._commanded = (kind, target)
        return Command(kind, target)

    def held(self) -> None:
        """The robot took the order to hold."""
        self._hold_due = False

    def _commanded_in(self, kind: str) -> Vector | None:
        if self._commanded is None or self._commanded[0] != kind:
            return None
        return self._commanded[1]

    def _out_of_order(self, action: Action, arrived_at: float) -> str:
        """Why a message is too old to be followed, or empty."""
        on_time = self._transit.on_time(action.timestamp, arrived_at)
        last = self._last
        silent_s = arrived_at - self._last_at
        if last is not None and silent_s < _FORGET_S:
            newer = action.timestamp > last.timestamp
            restarted = newer and (action.seq < _RESTART_SEQ or silent_s > self.watchdog_s)
            if action.seq <= last.seq and not restarted:
                return "late"
            if action.timestamp < last.timestamp:
                return "old"
            if action.observed_at < last.observed_at - _OLDER_S and not action.hold:
                return "old"
        return "" if on_time else "delayed"

    def _say_delay(self, arrived_at: float) -> None:
        """Once, when actions have been late for so long that it is no passing burst."""
        late = self._transit.late_for_s(arrived_at) > _FORGET_S
        if late and not self._delay_said:
            logger.warning(
                "actions come %.1f s later than the fastest did: they are not followed; see to the "
                "network, or start the receiver again if its machine was suspended",
                self._transit.late_s,
            )
        self._delay_said = late

    def _outlived(self, action: Action, arrived_at: float) -> str:
        """Whether it was made of what was seen in the episode before; else empty.

        Only how long ago that was can be told: the receiver's clock is another one. A receiver
        that does not say (0) is believed.
        """
        age_s = action.timestamp - action.observed_at
        seen_before = arrived_at - age_s < self._episode_at
        return "episode" if action.observed_at > 0 and seen_before else ""

    def _unusable(self, action: Action) -> str:
        """Why a chunk cannot be followed, or empty."""
        if self._measured is None:
            return "no_state"
        if action.actions.ndim != 2 or action.actions.shape[1] not in (6, 7):
            return "columns"  # six joints, and perhaps a gripper
        if not len(action.actions):
            return "rows"
        if not np.isfinite(action.actions).all():
            return "values"
        if not _DT_S[0] <= action.dt <= _DT_S[1]:
            return "dt"
        return ""

    def _plan_for(self, action: Action, arrived_at: float) -> _Plan:
        assert self._measured is not None
        kind: Literal["joints", "pose"] = "pose" if action.space == "pose_delta" else "joints"
        rows = action.actions[:, :6].astype(np.float64)
        here = self._measured[kind]
        if action.space != "joint_position":
            rows = here + np.cumsum(rows, axis=0)
        start = self._limiters[kind].reference(self._commanded_in(kind), here)
        due = arrived_at + action.dt * np.arange(len(rows) + 1, dtype=np.float64)
        return _Plan(kind, due, np.vstack([start, rows]))
