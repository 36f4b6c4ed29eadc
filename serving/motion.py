"""What moves the robot: smoothing, then the limits, then the robot, or a hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from common.step_limiter import StepLimiter
from serving.body import Body, BodyError, BodyState
from serving.control_values import HOLDS, Counters, HoldReason, LoopOptions
from serving.smoothing import LowPass

__all__ = ["Motion", "Warnings"]

logger = logging.getLogger("serving.motion")

_WARN_EVERY_S = 1.0
_MOST_KINDS = 64


class Warnings:
    """Log lines, each kind of which is written once a second, or once."""

    def __init__(self) -> None:
        """Nothing was warned of."""
        self._at: dict[str, float] = {}

    def warn(self, kind: str, line: str, now: float) -> None:
        """Write the line, unless one of its kind was written less than a second ago."""
        if now - self._at.get(kind, -math.inf) >= _WARN_EVERY_S:
            self._at[kind] = now
            logger.warning("[CLIENT] %s", line)

    def once(self, kind: str, line: Callable[[], str]) -> None:
        """Write the line, unless one of its kind was written ever."""
        if kind not in self._at and len(self._at) < _MOST_KINDS:
            self._at[kind] = math.inf
            logger.warning("[CLIENT] %s", line())


class Motion:
    """Sends the robot where it may go, and else keeps it where it is."""

    def __init__(
        self, body: Body, options: LoopOptions, counters: Counters, warnings: Warnings
    ) -> None:
        """Move `body` at `options.fps`; ValueError for options that cannot be used with it."""
        self._body, self._counters, self._warnings = body, counters, warnings
        self.limiter: StepLimiter = body.limiter(options.fps)
        names = body.action_names
        # Where the robot is, for each action that is a position of the same name.
        places = {name: k for k, name in enumerate(body.state_names)}
        self._measured = [(a, places[name]) for a, name in enumerate(names) if name in places]
        self._low_pass = _low_pass(options, names, self.limiter)
        self._commanded: NDArray[np.float64] | None = None
        self._told = False
        self.holding: HoldReason | None = None

    def go(
        self, action: NDArray[np.float64], state: BodyState, now: float
    ) -> NDArray[np.float64] | HoldReason:
        """Go towards `action` (A,): the target (A,) that the robot was sent to, or why it holds."""
        target = self._target(action, self._positions(state))
        if target is None:
            said = "the robot is outside its range (move it back), or the action is no number"
            return self.hold("limits", said, now)
        # From here on it may be on its way, also where it then says that it refuses.
        self._told = False
        try:
            self._body.move(target)
        except BodyError as error:
            return self.hold("body", str(error), now)
        if self.holding is not None:
            logger.info("[CLIENT] moving, was on hold: %s", HOLDS[self.holding])
        self._commanded, self.holding = target, None
        self._counters.moves += 1
        return target

    def start(self, action: NDArray[np.float64], state: BodyState) -> NDArray[np.float64]:
        """Where a way to `action` (A,) begins: what was last commanded, near where the robot is.

        Not where it is: an arm is always a little behind its targets, and a way that began anew
        there at each tick would never catch up. What is not measured is where it is to go.
        """
        positions = self._positions(state)
        measured = np.where(np.isfinite(positions), positions, action)
        return self.limiter.reference(self._commanded, measured)

    def hold(self, reason: HoldReason, detail: str, now: float) -> HoldReason:
        """Stay where the robot is; told until the robot takes it, warned of once a second."""
        if reason != self.holding:
            self._counters.holds[reason] += 1
            self._told = False
        self._counters.held[reason] += 1
        self.holding, self._commanded = reason, None
        line = f"hold: {HOLDS[reason]}" + (f": {detail}" if detail else "")
        self._warnings.warn(reason, line, now)
        if not self._told:
            try:
                self._body.hold()
                self._told = True
            except BodyError as error:
                said = f"the robot does not take the order to hold: {error}"
                self._warnings.warn("untold", said, now)
        return reason

    def _positions(self, state: BodyState) -> NDArray[np.float64]:
        """Where the robot is (A,); NaN for an action that is no position."""
        positions = np.full(len(self._body.action_names), math.nan)
        for action, place in self._measured:
            positions[action] = state.values[place]
        return positions

    def _target(
        self, action: NDArray[np.float64], positions: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """The action smoothed, and then within the limits; None where they refuse."""
        wanted = action
        if self._low_pass is not None:
            if self._commanded is None:
                self._low_pass.start(positions)
            wanted = self._low_pass.next(wanted)
        if not np.isfinite(wanted).all():
            return None
        # Of an action that is not measured, what was last asked for is all that is known: 0, which
        # is standing still, after a hold.
        assumed = np.zeros(len(wanted)) if self._commanded is None else self._commanded
        measured = np.where(np.isfinite(positions), positions, assumed)
        return self.limiter.next(wanted, self._commanded, measured)


def _low_pass(options: LoopOptions, names: Sequence[str], limiter: StepLimiter) -> LowPass | None:
    if options.low_pass_hz is None:
        return None
    left_out = [any(part in name for part in options.low_pass_except) for name in names]
    return LowPass(
        options.low_pass_hz,
        options.fps,
        options.low_pass_order,
        left_out=np.array(left_out),
        turns=limiter.turns,
    )
