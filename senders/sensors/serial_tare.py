"""The force that a sensor shows while nothing touches it; pure, with time as an argument."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from senders.drivers import DriverError

__all__ = ["Tare"]

logger = logging.getLogger("senders.sensor.serial")

_LONGEST_S = 2.0  # the program gives a silent sensor 3 s
_FEWEST = 10


class Tare:
    """The mean of the first samples, taken off all that follow.

    A tare while something touches hides that force from every limit behind it. So it is off
    unless asked for; one that is large, or taken while the force moves, is refused; and it is
    taken once, not at every reconnection, when a tool may be at work.
    """

    def __init__(self, seconds: float, max_n: float, *, again: bool = False) -> None:
        """Take the mean of so many seconds (0: no tare); refuse one above `max_n` newtons.

        `again`: anew whenever the port is opened. ValueError for values that cannot be used.
        """
        if not 0 <= seconds <= _LONGEST_S:
            raise ValueError(f"tare_s must be from 0 to {_LONGEST_S:g}, not {seconds:g}")
        if not 0 < max_n < math.inf:
            raise ValueError(f"tare_max_n must be above 0, not {max_n:g}")
        self._seconds, self._max_n, self._again = seconds, max_n, again
        self._tare: float | None = None if seconds else 0.0
        self._begun = 0.0
        self._forces: list[NDArray[np.float64]] = []

    def opened(self) -> None:
        """The port was opened."""
        self._forces = []
        if self._seconds and self._again:
            self._tare = None

    def take(self, forces: NDArray[np.float64], moment: float) -> float | None:
        """What to take off (N,) newtons that came at `moment`; None while it is being found.

        Raises DriverError when it is refused.
        """
        if self._tare is not None:
            return self._tare
        if not self._forces:
            self._begun = moment
        self._forces.append(forces)
        if moment - self._begun < self._seconds:
            return None
        self._tare = self._found()
        logger.info("tare %.4f N is taken off every force", self._tare)
        return None

    def _found(self) -> float:
        forces, self._forces = np.concatenate(self._forces), []
        if len(forces) < _FEWEST:
            raise DriverError(f"{len(forces)} samples are too few for a tare: raise tare_s")
        mean = float(forces.mean())
        moved = float(np.abs(forces - mean).max())
        if abs(mean) > self._max_n or moved > self._max_n:
            raise DriverError(
                f"tare refused: {mean:.3f} N on the mean, up to {moved:.3f} N from it, and "
                f"tare_max_n is {self._max_n:g}: free the sensor, or check scale and offset_n"
            )
        return mean
