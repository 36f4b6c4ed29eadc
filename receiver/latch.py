"""Holds that do not end by themselves: whoever stopped the robot decides when it moves again."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Literal, TypeAlias

from common.typed import RESUME
from receiver.threads import Latest

__all__ = ["REASONS", "Latch", "LatchedHold"]

logger = logging.getLogger(__name__)

LatchedHold: TypeAlias = Literal["emergency_stop", "error", "lost", "force"]
"""What a hold can be latched for."""

REASONS: dict[LatchedHold, str] = {
    "emergency_stop": "robot emergency stop",
    "error": "robot error",
    "lost": "robot lost",
    "force": "force above its limit",
}
"""How the guard says it."""


class Latch:
    """Keeps a hold of some kinds until a person says so; used by the fast loop alone.

    To take an emergency stop back must not start the machine: that takes an act of its own
    (ISO 13850).
    """

    def __init__(self, kinds: Collection[LatchedHold], resumed: Latest[str]) -> None:
        """Latch these kinds; every new value in `resumed` releases what is latched then."""
        self._kinds = tuple(kinds)
        self._resumed = resumed
        self._latched = ""
        self._version = resumed.version

    def reason(self, now: str, troubles: Collection[LatchedHold]) -> str:
        """Why to hold: `now`, the guard's reason of this tick, or else what is still latched.

        `troubles` are all that hold at this tick: one behind another reason is latched too. A
        `resume` counts that comes after they are gone: nobody releases what still holds.
        """
        asked = self._resumed.version != self._version
        self._version = self._resumed.version
        latching = [REASONS[kind] for kind in troubles if kind in self._kinds]
        if latching:
            self._latched = latching[0]
            if asked:
                logger.warning("[HOLD] cannot be released, it is still there: %s", latching[0])
        elif asked:
            said = f"released: {self._latched}" if self._latched else "nothing was latched"
            logger.info("[HOLD] %s", said)
            self._latched = ""
        if now or not self._latched:
            return now
        return f"waiting for {RESUME} after {self._latched}"
