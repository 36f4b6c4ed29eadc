"""A robot that is connected to again when it was lost, and not before leave when it was stopped."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from common.program import Backoff
from common.step_limiter import StepLimiter
from common.typed import RESUME
from serving.body import Body, BodyError, BodyFault, BodyState, Seen

__all__ = ["KeptBody"]

logger = logging.getLogger("serving.body")

T = TypeVar("T")

_LOST_AFTER_S = 1.0
"""A robot that cannot be read, or refuses every move, for so long is let go of and connected to
again: a single lost packet on a servo bus is no reason for that."""
_CLOSED_IN_S = 10.0


class _Failing:
    """How long something has done nothing but fail."""

    def __init__(self) -> None:
        self._since: float | None = None

    def failed(self) -> float:
        """Count a failure; seconds since the first of those without a success between them."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since

    def worked(self) -> None:
        """It has not failed."""
        self._since = None


class KeptBody:
    """`body`, and a thread that opens it again while it cannot be used. It holds meanwhile.

    An emergency stop, or an error that the robot reports, lasts until a person says that it is
    over: to take the stop back must not start the robot (ISO 13850). Where no leave is needed, it
    lasts until the robot can be opened again, which looks at its errors anew: that the next reading
    succeeds says nothing, most look at positions alone.
    """

    def __init__(
        self,
        body: Body,
        lost_after_s: float = _LOST_AFTER_S,
        resumed: threading.Event | None = None,
    ) -> None:
        """Keep `body`, which is not open yet.

        `resumed` is set by whoever gives leave to go on after a stop; without it, none is needed.
        """
        self._body, self._lost_after_s = body, lost_after_s
        self._resumed, self._stopped = resumed, ""
        self._reads, self._moves = _Failing(), _Failing()
        self._backoff = Backoff()
        self._opening: threading.Thread | None = None
        self._why = ""
        self._leaving = threading.Event()

    @property
    def state_names(self) -> tuple[str, ...]:
        """The body's."""
        return self._body.state_names

    @property
    def action_names(self) -> tuple[str, ...]:
        """The body's."""
        return self._body.action_names

    @property
    def cameras(self) -> Mapping[str, tuple[int, int, int]]:
        """The body's."""
        return self._body.cameras

    def limiter(self, control_hz: float) -> StepLimiter:
        """The body's."""
        return self._body.limiter(control_hz)

    def open(self) -> None:
        """Connect; BodyError when the first time fails."""
        self._body.open()

    def read(self) -> BodyState:
        """The state now; BodyError while the robot is away."""
        state = self._asked(self._body.read, self._reads)
        self._backoff.worked()
        return state

    def seen(self) -> Mapping[str, Seen]:
        """The newest pictures."""
        return self._used(self._body.seen)

    def sensor(self, samples: int) -> NDArray[np.float32] | None:
        """The newest samples of the sensor."""
        return self._used(lambda: self._body.sensor(samples))

    def move(self, target: NDArray[np.float64]) -> None:
        """Go to (A,); BodyError while the robot is away, or where it refuses."""
        # Counted apart from the readings: a robot can be read at every tick and still refuse.
        self._asked(lambda: self._body.move(target), self._moves)

    def hold(self) -> None:
        """Stay; BodyError while the robot is away, so that it is told when it is back."""
        self._used(self._body.hold)

    def close(self) -> None:
        """Let go of it, also while it is being opened."""
        self._leaving.set()
        if self._opening is not None:
            self._opening.join(_CLOSED_IN_S)
        self._body.close()

    def _check(self) -> None:
        """BodyError while another thread is opening the robot."""
        if self._opening is None:
            return
        if self._opening.is_alive():
            raise BodyError(f"{self._why}; connecting to it again")
        self._opening = None
        self._reads.worked()
        self._moves.worked()

    def _stop(self, fault: BodyFault) -> None:
        """From now on leave is needed; what was given before was for something else.

        Where none is needed, the robot is as good as lost.
        """
        if self._resumed is None:
            self._lose(fault, self._lost_after_s)
            return
        if not self._stopped:
            logger.warning("[CLIENT] the robot is stopped: %s", fault)
        self._stopped = str(fault)
        self._resumed.clear()

    def _check_leave(self) -> None:
        """BodyError while the robot was stopped and nobody has said that it may go on."""
        if self._resumed is None or not self._stopped:
            return
        if not self._resumed.is_set():
            raise BodyError(f"{self._stopped}; type {RESUME} once it is safe to go on")
        logger.info("[CLIENT] released: %s; connecting to the robot again", self._stopped)
        # A driver whose device was stopped is of no use before it was opened anew.
        self._why, self._stopped = self._stopped, ""
        self._begin_opening()
        raise BodyError(f"{self._why}; connecting to it again")

    def _used(self, call: Callable[[], T]) -> T:
        self._check()
        return call()

    def _asked(self, call: Callable[[], T], failing: _Failing) -> T:
        """Make a call of a robot that may be used; it is let go of when it fails for too long."""
        self._check()
        self._check_leave()
        try:
            done = call()
        except BodyFault as fault:
            self._stop(fault)
            raise
        except BodyError as error:
            if failing.failed() >= self._lost_after_s:
                self._lose(error)
            raise
        failing.worked()
        return done

    def _lose(self, error: BodyError, pause_s: float = 0.0) -> None:
        self._why = str(error)
        logger.warning("[CLIENT] the robot cannot be used: %s; connecting to it again", error)
        self._begin_opening(pause_s)

    def _begin_opening(self, pause_s: float = 0.0) -> None:
        self._opening = threading.Thread(
            target=self._open_again, args=(pause_s,), name="reopen", daemon=True
        )
        self._opening.start()

    def _open_again(self, pause_s: float) -> None:
        """Close the robot, which holds first, and open it until that works, from `pause_s` on."""
        with contextlib.suppress(BodyError):
            self._body.close()
        self._leaving.wait(pause_s)
        while not self._leaving.is_set():
            try:
                self._body.open()
            except BodyError as error:
                if isinstance(error, BodyFault) and self._resumed is not None:
                    self._stop(error)  # it is tried again once there is leave
                    return
                delay_s = self._backoff.failed()
                logger.warning("[CLIENT] the robot: %s; next try in %.2g s", error, delay_s)
                self._leaving.wait(delay_s)
                continue
            if self._leaving.is_set():  # `close` may have given up waiting, and closed nothing
                self._body.close()
                return
            logger.info("[CLIENT] the robot is back")
            return
