"""NumPy's pickles: element types, arrays and scalars, as views onto the message.

The forms are those of `ndarray.__reduce__` (`_reconstruct` and a state), of protocol 5
(`_frombuffer`), and of scalars and element types; numbers and truth values only.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serving.messages import MAX_MESSAGE, BadMessage
from serving.pickles.values import Budget, Buildable, Name, excerpt

__all__ = ["CODES", "NDARRAY", "ArrayShell", "ElementType", "array_of", "element_type", "encoded"]
__all__ += ["frombuffer", "reconstruct", "scalar", "shape_of"]

NDARRAY = Name("numpy.ndarray")
MAX_AXES = 8

CODES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
"""The element types that messages may have."""

_ORDERS: dict[str, Literal["<", ">", "|"]] = {"<": "<", ">": ">", "|": "|"}


def shape_of(value: Any) -> tuple[int, ...]:
    """The sides of an array, each checked, and so that no product of them can overflow."""
    if type(value) is not tuple or len(value) > MAX_AXES:
        raise BadMessage(f"{excerpt(value)} is not the shape of an array")
    if not all(type(side) is int and 0 <= side <= MAX_MESSAGE for side in value):
        raise BadMessage("an array's shape has a side that cannot be")
    if math.prod(max(side, 1) for side in value) > MAX_MESSAGE:
        raise BadMessage("an array's shape is larger than any message")
    return value


def array_of(
    data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any, budget: Budget
) -> NDArray[Any]:
    """An array over bytes of the message; BadMessage unless they are exactly as many as it has."""
    if not isinstance(data, memoryview) or len(data) != math.prod(shape) * dtype.itemsize:
        raise BadMessage(f"an array of {shape} {dtype} does not have that many bytes")
    budget.take(len(data) + 1)
    flat: NDArray[Any] = np.ndarray((len(data) // dtype.itemsize,), dtype, buffer=data)
    check_truths(flat)
    return flat.reshape(shape, order=order)


def check_truths(array: NDArray[Any]) -> None:
    """BadMessage for an array of truth values with a byte that is neither; NumPy trusts them."""
    if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        raise BadMessage("an array of truth values holds something else")


class ElementType(Buildable):
    """An element type: made from a code such as `f4`, its byte order given afterwards."""

    __slots__ = ("_built", "dtype")

    def __init__(self, code: str) -> None:
        self.dtype: np.dtype[Any] = np.dtype(code)
        self._built = False

    def build(self, state: Any, budget: Budget) -> None:
        """(version, byte order, and six fields that plain numbers leave empty)."""
        plain = (None, None, None, -1, -1, 0)
        if self._built or type(state) is not tuple or len(state) != 8:
            raise BadMessage("the state of an element type is not one of a plain number")
        version, order, *rest = state
        same = all(type(a) is type(b) and a == b for a, b in zip(rest, plain, strict=True))
        if not same or type(version) is not int or version != 3:
            raise BadMessage("the state of an element type is not one of a plain number")
        if type(order) is not str or order not in _ORDERS:
            raise BadMessage(f"an element type of the byte order {excerpt(order)}")
        self.dtype, self._built = self.dtype.newbyteorder(_ORDERS[order]), True

    def settled(self) -> np.dtype[Any]:
        """The type itself."""
        return self.dtype


class ArrayShell(Buildable):
    """An array that is still empty."""

    __slots__ = ("_array",)

    def __init__(self) -> None:
        self._array: NDArray[Any] | None = None

    def build(self, state: Any, budget: Budget) -> None:
        """(version, shape, element type, whether in Fortran's order, bytes)."""
        if self._array is not None or type(state) is not tuple or len(state) != 5:
            raise BadMessage("the state of an array is not one")
        version, shape, dtype, fortran, data = state
        if type(version) is not int or version != 1 or type(fortran) is not bool:
            raise BadMessage("the state of an array is not one")
        self._array = array_of(
            data, _dtype(dtype), shape_of(shape), "F" if fortran else "C", budget
        )

    def settled(self) -> NDArray[Any]:
        """The array."""
        if self._array is None:
            raise BadMessage("an array without its state")
        return self._array


def _dtype(value: Any) -> np.dtype[Any]:
    if not isinstance(value, ElementType):
        raise BadMessage(f"{excerpt(value)} is not an element type")
    return value.dtype


def element_type(arguments: tuple[Any, ...], budget: Budget) -> ElementType:
    """`numpy.dtype(code, align, copy)` of a number."""
    code = arguments[0] if len(arguments) == 3 else None
    if type(code) is not str or code not in CODES:
        raise BadMessage(f"elements of type {excerpt(code)} are not taken: numbers are")
    return ElementType(code)


def reconstruct(arguments: tuple[Any, ...], budget: Budget) -> ArrayShell:
    """`_reconstruct(ndarray, (0,), b"b")`: an empty array, filled by its state."""
    if len(arguments) != 3 or arguments[0] is not NDARRAY:
        raise BadMessage("an array of a class of its own is not taken")
    return ArrayShell()


def frombuffer(arguments: tuple[Any, ...], budget: Budget) -> NDArray[Any]:
    """`_frombuffer(bytes, element type, shape, order[, axes])`, protocol 5."""
    if len(arguments) not in (4, 5):
        raise BadMessage("an array has other parts than bytes, type, shape and order")
    data, dtype, shape, order = arguments[:4]
    axes = arguments[4] if len(arguments) == 5 else None
    if type(order) is not str or order not in "CFK" or len(order) != 1:
        raise BadMessage(f"an array in the order {excerpt(order)}")
    shape = shape_of(shape)
    if order == "K":
        # NumPy 2.3 and later: the axes as they lie in memory, and how they are turned.
        if type(axes) is not tuple or not all(type(axis) is int for axis in axes):
            raise BadMessage("an array's axes are not numbers")
        if sorted(axes) != list(range(len(shape))):
            raise BadMessage("an array's axes are not those of its shape")
        return array_of(data, _dtype(dtype), shape, "C", budget).transpose(axes)
    if axes is not None:
        raise BadMessage("an array has axes that its order does not need")
    return array_of(data, _dtype(dtype), shape, order, budget)


def scalar(arguments: tuple[Any, ...], budget: Budget) -> Any:
    """`scalar(element type, bytes)`."""
    if len(arguments) != 2:
        raise BadMessage("a NumPy number has other parts than a type and bytes")
    return array_of(arguments[1], _dtype(arguments[0]), (), "C", budget)[()]


def encoded(arguments: tuple[Any, ...], budget: Budget) -> memoryview:
    """`_codecs.encode(text, "latin1")`: how protocol 2 writes bytes."""
    text, encoding = arguments if len(arguments) == 2 else ("", None)
    if type(text) is not str or type(encoding) is not str or encoding != "latin1":
        raise BadMessage("text is encoded in a way that pickles of bytes do not use")
    budget.take(len(text))
    return memoryview(text.encode("latin-1"))
