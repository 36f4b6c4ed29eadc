"""What waits between two threads: the newest picture, or every picture of a recording."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

__all__ = ["PictureQueue"]

T = TypeVar("T")

_LOOK_AGAIN_S = 0.1


class PictureQueue(Generic[T]):
    """A bounded queue for one thread that puts and one that takes, in order.

    A full one drops its oldest, and counts it; where nothing may be lost, `put` waits instead.
    """

    def __init__(self, size: int = 1, *, lossless: bool = False) -> None:
        """Hold up to `size` pictures."""
        self._size, self._lossless = size, lossless
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self.dropped = 0

    @property
    def waits(self) -> bool:
        """Whether a picture waits to be taken."""
        return bool(self._items)

    @property
    def has_room(self) -> bool:
        """Whether `put` neither waits nor loses anything that must be kept."""
        return not self._lossless or len(self._items) < self._size

    def put(self, item: T, stop: threading.Event) -> None:
        """Add the newest; where nothing may be lost, wait for room, at most until `stop`."""
        with self._changed:
            while not self.has_room:
                if stop.is_set():
                    self.dropped += 1
                    return
                self._changed.wait(_LOOK_AGAIN_S)
            if len(self._items) >= self._size:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)

    def take(self) -> T | None:
        """The oldest that waits, once; None when nothing does."""
        with self._changed:
            item = self._items.popleft() if self._items else None
            self._changed.notify()
        return item

    def give_back(self, item: T) -> None:
        """Let one that could not be used wait on as the oldest, unless newer ones took its room."""
        with self._changed:
            if self._lossless or len(self._items) < self._size:
                self._items.appendleft(item)
            else:
                self.dropped += 1
