"""Calls into a vendor's library that may never return, made in a thread that can be given up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Bounded"]

T = TypeVar("T")


class _Call:
    """One call and what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.done = threading.Event()
        self.value: Any = None
        self.error: Exception | None = None


class Bounded:
    """Makes calls one after the other in a daemon thread, and waits for each so long at most."""

    def __init__(self, name: str) -> None:
        """Start the thread; `name` is what debuggers show."""
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._stuck = False
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """What `function` returns or raises; TimeoutError when it takes over `timeout_s` seconds.

        After a TimeoutError nothing more is called: the thread may be stuck for good.
        """
        if self._stuck:
            raise TimeoutError
        asked = _Call(function)
        self._calls.put(asked)
        if not asked.done.wait(timeout_s):
            self._stuck = True
            raise TimeoutError
        if asked.error is not None:
            raise asked.error
        value: T = asked.value
        return value

    def end(self) -> None:
        """Let the thread end after the call that it is in."""
        self._stuck = True
        self._calls.put(None)

    def _work(self) -> None:
        while (asked := self._calls.get()) is not None:
            try:
                asked.value = asked.function()
            except Exception as error:  # raised again where it was called
                asked.error = error
            asked.done.set()
