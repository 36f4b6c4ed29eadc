"""What a pickle is read into and written from, and what reading one may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.messages import MAX_MESSAGE, BadMessage

__all__ = ["Bounds", "Budget", "Buildable", "FeatureType", "Name", "Record", "Reducer"]
__all__ += ["Tensor", "excerpt"]

_SPARE_BYTES = 1 << 20


def excerpt(value: object) -> str:
    """A value from a wire for a line of a log: printable ASCII, at most 80 characters."""
    if isinstance(value, str):
        text = ascii(value[:80])
    elif isinstance(value, int | float | None):
        text = "a huge number" if isinstance(value, int) and abs(value) >= 1 << 64 else repr(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that a message may hold, whatever its size.

    An observation of 256 NumPy numbers and sixteen pictures takes 3,000 opcodes. An action takes
    40; since LeRobot repeats the chunk in every action of it, size ends before number does.

    Attributes:
        size: bytes of the message.
        opcodes: opcodes of the message and of the torch storages inside it.
        stack: values that wait for the container that takes them.
        marks: containers that are open at once.
        nodes: values that are met when the result is walked; what is shared counts each time.
        depth: containers within containers.
    """

    size: int = MAX_MESSAGE
    opcodes: int = 20_000
    stack: int = 20_000
    marks: int = 64
    nodes: int = 20_000
    depth: int = 16


@dataclass(slots=True)
class Budget:
    """What reading this message may still cost. Every method of a value that grows takes from it.

    Attributes:
        opcodes: opcodes left.
        data: bytes left for texts, and to copy, scan or show as an array. Four times the message
            is enough for any that was made by `pickle`: a text, text into bytes, bytes into an
            array, bfloat16 into float32 are each counted once, and what a message shares counts
            each time.
        storages: torch storages that were read already, by their bytes: LeRobot repeats the
            whole chunk's storage in every action.
    """

    opcodes: int
    data: int
    storages: dict[bytes, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, bounds: Bounds, size: int) -> Budget:
        """The budget of a message of so many bytes."""
        return cls(bounds.opcodes, 4 * size + _SPARE_BYTES)

    def take(self, size: int) -> None:
        """Count bytes that are copied, scanned or shown; BadMessage when they are too many."""
        self.data -= size
        if self.data < 0:
            raise BadMessage("its texts and arrays come to far more bytes than the message has")


Reducer: TypeAlias = Callable[[tuple[Any, ...], Budget], Any]
"""Makes a value from the arguments that a pickle gives to a callable; BadMessage if it cannot."""


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """What stands for a class or function that a pickle names. Nothing is looked up or called.

    Attributes:
        text: module and name, for messages.
        reduce: what a call of it gives; None where calls are refused.
        record: the kind of dataclass instance that it makes; empty where it makes none.
    """

    text: str
    reduce: Reducer | None = None
    record: str = ""


class Buildable:
    """A value that a pickle creates empty and fills once, with BUILD."""

    __slots__ = ()

    def build(self, state: Any, budget: Budget) -> None:
        """Take the state; BadMessage where that is not one of this kind of value."""
        raise NotImplementedError

    def settled(self) -> Any:
        """The finished value; BadMessage where it was never filled."""
        raise NotImplementedError


@dataclass(slots=True)
class Record(Buildable):
    """An instance of one of LeRobot's dataclasses, as plain fields.

    Attributes:
        kind: the class, e.g. `TimedAction`.
        fields: what the instance held, by name.
    """

    kind: str
    fields: dict[str, Any] | None = None

    def build(self, state: Any, budget: Budget) -> None:
        """Take the instance's `__dict__`."""
        if self.fields is not None:
            raise BadMessage(f"a {self.kind} is filled twice")
        if type(state) is not dict:
            raise BadMessage(f"a {self.kind} is filled from {excerpt(state)}, not a dictionary")
        self.fields = state

    def settled(self) -> Record:
        """Itself."""
        if self.fields is None:
            raise BadMessage(f"a {self.kind} without its fields")
        return self


class FeatureType(str):
    """A member of LeRobot's enumeration of that name, by its value, e.g. `STATE`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """An array to be written as a torch tensor: a part of `of`, which all parts share.

    Attributes:
        of: float32, contiguous.
        index: the row along the first axis; None for all of it.
    """

    of: NDArray[np.float32]
    index: int | None = None
