"""What a Meca500 says, message by message: its position of each cycle, and its last error."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.clock_offset import ClockOffset

__all__ = ["CART_POS", "JOINT_POS", "Feedback", "Sample"]

logger = logging.getLogger("senders.meca500")

# Codes of the monitoring messages (Mecademic, Meca500 programming manual, "Monitoring port").
JOINT_POS, CART_POS = 2210, 2211
_SAME_CYCLE_US = 1000
_US = 1e-6


class Message(Protocol):
    """What the maker's library calls a message: `[id][data]`."""

    id: int
    data: str


@dataclass(frozen=True, slots=True)
class Sample:
    """Where the arm was.

    Attributes:
        at: monotonic seconds of this machine at which the robot sampled it.
        joints_deg: (6,) float64 joint angles in degrees.
        pose: (6,) float64: x, y, z in mm, then three mobile XYZ Euler angles in degrees.
    """

    at: float
    joints_deg: NDArray[np.float64]
    pose: NDArray[np.float64]


class Feedback:
    """Takes the messages in the library's thread; the newest sample is read from any other.

    The robot stamps each cycle in microseconds since it was switched on. The stamps are brought
    onto this machine's clock by the smallest delay seen, so that a cycle that was held up on its
    way is known to be old although it has just come in.
    """

    def __init__(self, error_codes: frozenset[int]) -> None:
        """Remember the last message whose code is in `error_codes`."""
        self._error_codes = error_codes
        self._clock = ClockOffset()
        self._values: dict[int, tuple[int, NDArray[np.float64]]] = {}
        self._newest: Sample | None = None
        self._stamp = -1
        self._came, self._failed = threading.Event(), threading.Event()
        self._last_error = ""
        self.malformed = 0

    @property
    def newest(self) -> Sample | None:
        """The newest sample, None before the first."""
        return self._newest

    def wait(self, timeout_s: float) -> bool:
        """Whether a first sample came within `timeout_s`."""
        return self._came.wait(timeout_s)

    def last_error(self, wait_s: float = 0.0) -> str:
        """The last error that was told, waiting `wait_s` for a first; empty without one."""
        self._failed.wait(wait_s)
        return self._last_error

    def take(self, message: Message) -> None:
        """Take one message; never raises: that would end the library's thread."""
        try:
            self._take(message.id, message.data)
        except (ValueError, TypeError, OverflowError) as error:
            self.malformed += 1
            if self.malformed == 1:
                logger.warning("[ROBOT] a message of the robot was left out: %s", error)

    def _take(self, code: int, data: str) -> None:
        if code in (JOINT_POS, CART_POS):
            stamp, *values = (float(value) for value in data.split(","))
            if len(values) != 6 or not all(map(math.isfinite, values)):
                raise ValueError(f"[{code}] does not hold six values")
            self._values[code] = (int(stamp), np.array(values))
            self._pair(time.monotonic())
        elif code in self._error_codes:
            self._last_error = f"[{code}] {data}".strip()
            self._failed.set()

    def _pair(self, arrived_at: float) -> None:
        joints, pose = self._values.get(JOINT_POS), self._values.get(CART_POS)
        # Both, of one cycle: a position is not completed with an old half.
        if joints is None or pose is None or abs(joints[0] - pose[0]) > _SAME_CYCLE_US:
            return
        if min(joints[0], pose[0]) <= self._stamp:  # said again: no newer for that
            return
        self._stamp = min(joints[0], pose[0])
        at, stamp_s = arrived_at, _US * self._stamp
        if self._clock.update(stamp_s, arrived_at):
            at = min(self._clock.to_local(stamp_s), arrived_at)
        self._newest = Sample(at, joints[1], pose[1])
        self._came.set()
