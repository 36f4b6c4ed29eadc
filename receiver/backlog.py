"""What has come and was not read yet: put aside when it comes, read when it is wanted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Backlog"]

T = TypeVar("T")

# Reading all that waits takes a millisecond. Who would look looks at what is known rather than
# wait for a reader that does not come to an end.
_PATIENCE_S = 0.02


class Backlog(Generic[T]):
    """Messages of one stream, in order: one thread adds them, whoever wants to know reads them.

    To read a message right when it woke its thread takes several times what it takes beside
    others: a processor that has just slept holds nothing of the code in its caches. So the thread
    puts each aside with its time of arrival, and reads only when a few have gathered; who looks
    before that reads what there is by himself, and so knows all that has come.
    """

    def __init__(self, read: Callable[[T], None], together: int) -> None:
        """`read` takes one message in; at most `together` wait for it."""
        self._read, self._together = read, together
        self._waiting: deque[T] = deque()
        self._reading = threading.Lock()
        self._failure: Exception | None = None

    def add(self, message: T, *, urgent: bool = False) -> None:
        """Put a message aside; read all that wait if it is `urgent` or they are many.

        For the stream's own thread only. Raises what reading raised, whoever was reading.
        """
        self._waiting.append(message)
        if urgent or len(self._waiting) >= self._together:
            self.read()

    def read(self) -> None:
        """Read all that wait, for the stream's own thread. Raises what reading raised."""
        with self._reading:
            self._read_all()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def catch_up(self) -> None:
        """Read all that wait, for any other thread; what fails then fails in the stream's own."""
        if not self._waiting and not self._reading.locked():
            return
        if self._reading.acquire(timeout=_PATIENCE_S):
            try:
                self._read_all()
            finally:
                self._reading.release()

    def _read_all(self) -> None:
        # No more than wait now: who looks does not go on reading as fast as more comes.
        for _ in range(len(self._waiting)):
            if self._failure is not None:
                return
            try:
                self._read(self._waiting.popleft())
            except Exception as error:
                self._failure = error
