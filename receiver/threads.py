"""What threads share here: the latest value of something. And threads that die aloud."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Latest", "Worker"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Latest(Generic[T]):
    """A mailbox that holds the newest value only. Values are immutable by agreement."""

    def __init__(self, value: T | None = None) -> None:
        """Start with `value`, or empty."""
        self._changed = threading.Condition()
        self._value = value
        self._version = 0

    def put(self, value: T) -> None:
        """Replace the value and wake whoever waits."""
        with self._changed:
            self._value = value
            self._version += 1
            self._changed.notify_all()

    def get(self) -> T | None:
        """The newest value, None before the first."""
        return self._value

    @property
    def version(self) -> int:
        """How many values there have been."""
        return self._version

    def wait_newer(self, version: int, timeout_s: float) -> bool:
        """Wait until there is a value after `version`; False when none came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._version > version, timeout_s)


class Worker(threading.Thread):
    """A thread whose failure is logged and ends the run, which is not to go on without it."""

    def __init__(self, name: str, work: Callable[[], None], failed: Callable[[str], None]) -> None:
        """Run `work`; on an exception call `failed` with one line about it."""
        super().__init__(name=name, daemon=True)
        self._work = work
        self._failed = failed

    def run(self) -> None:
        """Do the work."""
        try:
            self._work()
        except Exception as error:
            logger.exception("thread %s failed", self.name)
            self._failed(f"thread {self.name} failed: {type(error).__name__}: {error}")
