"""From a loop's thread to a writer's: a queue that is bounded in bytes and never waits."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

__all__ = ["Lane"]

T = TypeVar("T")


class Lane(Generic[T]):
    """One producer, one consumer. What does not fit is dropped and counted.

    Each side counts for itself, so that neither ever waits for a lock.
    """

    def __init__(self, name: str, most_bytes: int) -> None:
        """Hold `most_bytes` at most."""
        self.name = name
        self._most = most_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._put = self._taken = 0
        self.dropped = 0

    def put(self, item: T, size: int) -> bool:
        """Queue an item of `size` bytes; False when it was dropped (the producer)."""
        if self._put - self._taken + size > self._most:
            self.dropped += 1
            return False
        self._put += size
        self._items.append((item, size))
        return True

    def take(self) -> T | None:
        """The oldest item, None when there is none (the consumer)."""
        try:
            item, size = self._items.popleft()
        except IndexError:
            return None
        self._taken += size
        return item

    @property
    def waiting_bytes(self) -> int:
        """What waits to be taken."""
        return self._put - self._taken
