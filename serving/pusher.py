"""Gives answers out when they are due."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from serving.messages import Reply

__all__ = ["Pusher"]

logger = logging.getLogger("serving.engine")

_MOST_WAITING = 65_536


class Pusher:
    """Calls `deliver` with a reply at a time, one call at a time, in the order of their times.

    A thread of its own calls, or the one that comes with a reply that is due already, where none
    waits before it: that saves a change of threads. `lost` counts what came while far too many
    waited, which only a `deliver` that blocks can bring about.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._delivering = threading.Lock()  # taken before `_changed` by who takes both
        self._due: list[tuple[float, int, Callable[[Reply], None], Reply]] = []
        self._numbers = itertools.count()
        self._ended = False
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="push answers", daemon=True)
        self._thread.start()

    def push(self, due_at: float, deliver: Callable[[Reply], None], reply: Reply) -> None:
        """Have the reply delivered at `due_at` (`time.monotonic()` seconds); returns at once."""
        with self._changed:
            if self._ended:
                return
            if len(self._due) >= _MOST_WAITING:
                self.lost += 1
                return
            due_at = max(due_at, time.monotonic())
            heapq.heappush(self._due, (due_at, next(self._numbers), deliver, reply))
            self._changed.notify_all()

    def deliver(self, due_at: float, deliver: Callable[[Reply], None], reply: Reply) -> None:
        """As `push`, but in the calling thread if that can be done at once; not with a lock."""
        now = time.monotonic()
        if due_at <= now and self._delivering.acquire(blocking=False):
            try:
                with self._changed:
                    first = not self._ended and not (self._due and self._due[0][0] <= now)
                if first:
                    _call(deliver, reply)
                    return
            finally:
                self._delivering.release()
        self.push(due_at, deliver, reply)

    def end(self) -> None:
        """Deliver nothing more."""
        with self._changed:
            self._ended = True
            self._due.clear()
            self._changed.notify_all()

    def join(self, deadline: float) -> None:
        """Wait for the thread to end, until `deadline`."""
        self._thread.join(max(deadline - time.monotonic(), 0.0))

    def _run(self) -> None:
        while self._wait():
            with self._delivering:
                with self._changed:
                    if not self._due:
                        continue
                    _, _, deliver, reply = heapq.heappop(self._due)
                _call(deliver, reply)

    def _wait(self) -> bool:
        """Until a reply is due; False at the end."""
        with self._changed:
            while not self._ended:
                left_s = self._due[0][0] - time.monotonic() if self._due else None
                if left_s is not None and left_s <= 0:
                    return True
                self._changed.wait(left_s)
        return False


def _call(deliver: Callable[[Reply], None], reply: Reply) -> None:
    try:
        deliver(reply)
    except Exception:
        # A transport's fault must not stop the answers of other clients.
        logger.exception("an answer could not be delivered")
