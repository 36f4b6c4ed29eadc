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
"""A robot that cannot be read for so long is let go of and connected to again: a single lost packet
on a servo bus is no reason for that."""
_CLOSED_IN_S = 10.0


class KeptBody:
    """`body`, and a thread that opens it again while it cannot be read. It holds meanwhile.

    An emergency stop, or an error that the robot reports, lasts until a person says that it is
    over: to take the stop back must not start the robot (ISO 13850).
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
        self._failing_since: float | None = None
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
        self._check()
        self._check_leave()
        try:
            state = self._body.read()
        except BodyFault as fault:
            self._stop(fault)
            self._failed(fault)
            raise
        except BodyError as error:
            self._failed(error)
            raise
        self._failing_since = None
        self._backoff.worked()
        return state

    def seen(self) -> Mapping[str, Seen]:
        """The newest pictures."""
        return self._used(self._body.seen)

    def sensor(self, samples: int) -> NDArray[np.float32] | None:
        """The newest samples of the sensor."""
        return self._used(lambda: self._body.sensor(samples))

    def move(self, target: NDArray[np.float64]) -> None:
        """Go to (A,)."""
        self._check()
        self._check_leave()
        try:
            self._body.move(target)
        except BodyFault as fault:
            self._stop(fault)
            raise

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
        self._opening, self._failing_since = None, None

    def _stop(self, fault: BodyFault) -> None:
        """From now on leave is needed; what was given before was for something else."""
        if self._resumed is None:
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

    def _failed(self, error: BodyError) -> None:
        """Count the time; open it again when it was too long."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since < self._lost_after_s or self._stopped:
            return
        self._why = str(error)
        logger.warning("[CLIENT] the robot is lost: %s; connecting to it again", error)
        self._begin_opening()

    def _begin_opening(self) -> None:
        self._opening = threading.Thread(target=self._open_again, name="reopen", daemon=True)
        self._opening.start()

    def _open_again(self) -> None:
        with contextlib.suppress(BodyError):
            self._body.close()
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
