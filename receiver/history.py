"""The newest few of a stream, in the order in which they were taken, not in which they came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["History"]

T = TypeVar("T")


class History(Generic[T]):
    """Values ordered by their stamps; one thread puts at a time, any may look."""

    def __init__(
        self,
        length: int,
        stamp_of: Callable[[T], float],
        most_bytes: int = 0,
        bytes_of: Callable[[T], int] | None = None,
    ) -> None:
        """Keep the newest `length`, or fewer where they hold more than `most_bytes` together.

        Of a long history up to a sixteenth more is kept: to cut it at each value would touch all.
        """
        self._length, self._stamp_of = length, stamp_of
        self._slack = length // 16
        self._most_bytes, self._bytes_of = most_bytes, bytes_of
        self._size = 0  # bytes of all that are kept
        # Who looks needs no lock: the list is added to at its end, or replaced as a whole.
        self._values: list[T] = []

    def put(self, value: T) -> bool:
        """Put a value in its place; False when it is older than the newest one."""
        values, stamp = self._values, self._stamp_of(value)
        place = len(values)
        while place and self._stamp_of(values[place - 1]) > stamp:
            place -= 1
        in_order = place == len(values)
        if self._bytes_of is None and in_order and place < self._length + self._slack:
            values.append(value)
            return True
        kept = [*values[:place], value, *values[place:]]
        first = max(len(kept) - self._length, 0)
        if self._bytes_of is not None:
            self._size += self._bytes_of(value) - sum(map(self._bytes_of, kept[:first]))
            while first < len(kept) - 1 and self._size > self._most_bytes:
                self._size -= self._bytes_of(kept[first])
                first += 1
        self._values = kept[first:]
        return in_order

    def get(self) -> T | None:
        """The newest by its stamp, None while there is none."""
        values = self._values
        return values[-1] if values else None

    def last_two(self) -> tuple[T | None, T | None]:
        """The newest by its stamp and the one before; None where there is none."""
        newest = self._values[-2:]
        return (newest[0] if len(newest) > 1 else None), (newest[-1] if newest else None)

    def as_of(self, at: float) -> T | None:
        """The newest that was taken at `at` or before, None where there is none."""
        return self.around(at)[0]

    def around(self, at: float) -> tuple[T | None, T | None]:
        """The newest taken at `at` or before, and the one that follows it."""
        after: T | None = None
        for value in reversed(self._values):
            if self._stamp_of(value) <= at:
                return value, after
            after = value
        return None, after

    def clear(self) -> None:
        """Forget all: their stamps are of a clock that was set since."""
        self._size = 0
        self._values = []

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._values)
