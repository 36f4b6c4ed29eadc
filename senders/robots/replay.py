"""A robot out of a recorded session: its states come again when they came, and as they were."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Event
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from common.clock import Tick
from common.session import States
from common.wire import MAX_MAGNITUDE
from senders.drivers import DriverError, RobotReading
from senders.replaying import Vector, moments_sent, open_recording, wait_until

__all__ = ["ReplayRobot"]

logger = logging.getLogger("senders.robot")

_FIRST_S = 0.02
"""A receiver's episode begins with the first state: it goes ahead of all else that was recorded."""


class ReplayRobot:
    """Plays a session's robot states; it cannot be moved."""

    recorded = True

    def __init__(
        self, session: str = "", speed: float = 1.0, loop: bool = False, start_at: float = 0.0
    ) -> None:
        """Read the states of the session in the folder `session`; see `senders.replaying`.

        With `loop`, every round is an episode of its own. DriverError or ValueError, one line,
        where there is nothing to play.
        """
        found, self._timeline = open_recording(session, speed, loop, start_at)
        if not len(found.states):
            raise DriverError(f"{found.folder}: no robot states were recorded in it")
        self._states = found.states
        self._moments, self._rows = _playable(found.states)
        if skipped := len(found.states) - len(self._rows):
            logger.warning("%d robot states of the recording are broken: left out", skipped)
        if not len(self._rows):
            raise DriverError(f"{found.folder}: all its robot states are broken")
        self._now: tuple[int, int] | None = None

    def ticks(self, stop: Event) -> Iterator[Tick]:
        """A tick as each state falls due; those that are late come at once, one after another.

        Ends at the end of the session, which may be later than its last robot state.
        """
        timeline = self._timeline
        timeline.start()
        index = 0
        for round_ in timeline.rounds():
            for row, moment in zip(self._rows.tolist(), self._moments.tolist(), strict=True):
                deadline = timeline.deadline(moment, round_)
                if moment == self._moments[0]:
                    deadline = timeline.deadline(timeline.begin, round_) - _FIRST_S
                if not wait_until(deadline, stop):
                    return
                self._now = (row, round_)
                yield Tick(index, deadline, monotonic() - deadline, 0)
                index += 1
        wait_until(timeline.over_at, stop)

    def open(self) -> None:
        """Begin, where `start_at` did not say when."""
        self._timeline.start()

    def read(self) -> RobotReading:
        """The state of the last tick."""
        if self._now is None:
            raise DriverError("no state of the recording has been due yet")
        states, (row, round_) = self._states, self._now
        return RobotReading(
            self._timeline.stamp(float(states.sampled_at[row]), round_),
            states.joints[row],
            states.pose[row],
            float(states.forces[row]),
            episode=round_,
        )

    def move_joints(self, joints_deg: NDArray[np.float64]) -> None:
        """Refused."""
        raise DriverError("a recording cannot be moved")

    def move_pose(self, pose: NDArray[np.float64]) -> None:
        """Refused."""
        raise DriverError("a recording cannot be moved")

    def hold(self) -> None:
        """Nothing to do: nothing is moved."""

    def close(self) -> None:
        """Nothing to let go of."""


def _playable(states: States) -> tuple[Vector, NDArray[np.int64]]:
    """When each state is due, and its row; those that no receiver would take are left out."""
    sent = moments_sent(states.sent_at, states.sampled_at, states.received_at)
    values = np.column_stack([states.forces, states.joints, states.pose])
    with np.errstate(invalid="ignore"):
        sound = (np.abs(values) <= MAX_MAGNITUDE).all(axis=1)
    rows = np.flatnonzero(sound & np.isfinite(sent) & np.isfinite(states.sampled_at))
    return sent[rows], rows
