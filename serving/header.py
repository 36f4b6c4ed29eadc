"""A msgpack header that came over a network: opened within bounds, read field by field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

from serving.messages import MAX_TEXT, BadMessage

__all__ = ["MAX_HEADER", "Header", "integers", "pack_header", "text"]

MAX_HEADER = 1 << 18
"""Bytes: 256 names of some length, and sixteen cameras; a real one has a few hundred."""
MAX_ITEMS = 1 << 10
"""Elements of one array: the parser reserves room for as many as an array claims to hold."""

T = TypeVar("T")


def pack_header(fields: dict[str, Any]) -> bytes:
    """The fields as msgpack; BadMessage where they cannot be or are too long."""
    try:
        packed: bytes = msgpack.packb(fields)
    except (ValueError, TypeError, OverflowError) as error:  # e.g. a text that is not Unicode
        raise BadMessage(f"cannot be encoded: {' '.join(str(error).split())}") from None
    if len(packed) > MAX_HEADER:
        raise BadMessage(f"a header of {len(packed)} bytes; at most {MAX_HEADER}: shorter names")
    return packed


class Header:
    """The map in a header. Each method gives the field asked for, or raises BadMessage."""

    def __init__(self, data: memoryview) -> None:
        """Open the header; BadMessage unless it is a msgpack map."""
        size = len(data)
        if not 0 < size <= MAX_HEADER:
            raise BadMessage(f"a header of {size} bytes; from 1 to {MAX_HEADER} can be")
        try:
            opened = msgpack.unpackb(
                data,
                raw=False,
                strict_map_key=True,
                max_str_len=size,
                max_bin_len=0,
                max_array_len=MAX_ITEMS,
                max_map_len=size,
                max_ext_len=0,
            )
        # msgpack raises subclasses of ValueError and, for an unhashable key, TypeError.
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
            raise BadMessage("the header is not msgpack") from None
        if not isinstance(opened, dict):
            raise BadMessage("the header is not a map")
        self._fields = opened

    def value(self, key: str) -> Any:
        """What is under the key, unchecked; None where there is nothing."""
        return self._fields.get(key)

    def integer(self, key: str) -> int:
        """An integer, and not a truth value."""
        return _integer(self._fields.get(key), key)

    def number(self, key: str) -> float:
        """A number; it may be infinite or none (NaN)."""
        value = self._fields.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadMessage(f"{key}: a number expected")
        return float(value)

    def truth(self, key: str) -> bool:
        """True or false."""
        value = self._fields.get(key)
        if not isinstance(value, bool):
            raise BadMessage(f"{key}: true or false expected")
        return value

    def text(self, key: str, longest: int = MAX_TEXT) -> str:
        """A text of at most `longest` characters."""
        return _text(self._fields.get(key), key, longest)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(self.items(key, _text))

    def items(self, key: str, read: Callable[[object, str], T]) -> list[T]:
        """A list, each element read by `read(value, key)`."""
        value = self._fields.get(key)
        if not isinstance(value, list):
            raise BadMessage(f"{key}: a list expected")
        return [read(item, key) for item in value]

    def pairs(self, key: str, read: Callable[[object, str], T]) -> dict[str, T]:
        """A map from texts, each value read by `read(value, key)`."""
        value = self._fields.get(key)
        if not isinstance(value, dict):
            raise BadMessage(f"{key}: a map expected")
        return {_text(name, key): read(item, key) for name, item in value.items()}


def _integer(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadMessage(f"{key}: an integer expected")
    return value


def _text(value: object, key: str, longest: int = MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise BadMessage(f"{key}: a text of at most {longest} characters expected")
    return value


def integers(count: int) -> Callable[[object, str], tuple[int, ...]]:
    """Reads a list of exactly `count` integers, for `Header.items` and `Header.pairs`."""

    def read(value: object, key: str) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) != count:
            raise BadMessage(f"{key}: lists of {count} integers expected")
        return tuple(_integer(item, key) for item in value)

    return read


def text(value: object, key: str) -> str:
    """Reads a text, for `Header.items` and `Header.pairs`."""
    return _text(value, key)
