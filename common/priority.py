"""Asks the system to run a program before others, and its loop on a clock before all.

The order, where the system permits: the fast loop in real time; below it, in real time too, every
thread that takes Python's lock; then the slow half's computing, before other programs only.

Whoever holds Python's lock must get to run, or the fast loop waits for it: a thread that is merely
favoured is set aside for milliseconds while other programs have their turn, lock and all. These
threads use a tenth of a core together, and no more than one core if they are flooded, since they
share the lock.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

__all__ = ["fast_loop_first", "slow_half_behind", "this_process_first"]

_NICE = -10
_FIFO_FAST = 10
_FIFO_OTHERS = 5


def this_process_first() -> bool:
    """Put every thread that runs now, and those they start, before other programs.

    In real time where that is permitted and there is a core left for others; False when not even a
    higher share is. To be called once all sockets are open, before the loops start.
    """
    try:
        for thread in _threads():
            os.setpriority(os.PRIO_PROCESS, thread, _NICE)
    except (OSError, AttributeError):
        return False
    if (os.cpu_count() or 1) > 1:
        for thread in _threads():
            _real_time(thread, _FIFO_OTHERS)
    return True


def fast_loop_first() -> bool:
    """Put the calling thread in real time, before all others; False when not permitted."""
    return _real_time(0, _FIFO_FAST)


def slow_half_behind() -> None:
    """Take the calling thread, or process at its start, out of real time: it computes for long.

    It keeps its share before other programs.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except (OSError, AttributeError):
        return  # then it never was in real time


def _real_time(thread: int, priority: int) -> bool:
    try:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError):
        return False
    return True


def _threads() -> list[int]:
    """Python's threads and those that ZeroMQ moves bytes with, by the kernel's number.

    Not the pools of other libraries: what they start computes, or shows pictures.
    """
    found = {thread.native_id for thread in threading.enumerate()}
    for task in Path("/proc/self/task").glob("*"):
        try:
            if (task / "comm").read_text().startswith("ZMQbg"):
                found.add(int(task.name))
        except OSError:
            continue  # it has just ended
    return [thread for thread in found if thread is not None]
