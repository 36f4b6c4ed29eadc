"""Asks the system to run the receiver before other programs, and the fast loop before all."""

from __future__ import annotations

import os

__all__ = ["fast_loop_first", "this_process_first"]

_NICE = -10
_FIFO_PRIORITY = 10


def this_process_first() -> bool:
    """Give the calling thread, and those it starts, a higher share; False when not permitted.

    All threads need it, not the fast loop's alone: whoever holds Python's lock must get to run, or
    the fast loop waits for it.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except (OSError, AttributeError):
        return False
    return True


def fast_loop_first() -> bool:
    """Put the calling thread under the real-time scheduler; False when not permitted."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_FIFO_PRIORITY))
    except (OSError, AttributeError):
        return False
    return True
