"""What becomes of a step that is both queued and in the new chunk: a registry of functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.program import OptionError

__all__ = ["Aggregate", "Aggregation", "choose", "names", "register"]

Rows: TypeAlias = NDArray[np.float64]
Aggregate: TypeAlias = Callable[[Rows, Rows], Rows]
"""(queued (K, A), new (K, A)) → what is executed (K, A)."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """A function of the registry.

    Attributes:
        name: what it is called on the command line.
        function: (queued (K, A), new (K, A)) → (K, A).
        uses_queued: whether the queued values go into the result. Where they do, the result is as
            old as the older of the two inputs behind it.
    """

    name: str
    function: Aggregate
    uses_queued: bool = True


_KNOWN: dict[str, Aggregation] = {}


def register(name: str, *, uses_queued: bool = True) -> Callable[[Aggregate], Aggregate]:
    """Make a function known as `name`; ValueError when that is taken."""

    def add(function: Aggregate) -> Aggregate:
        if name in _KNOWN:
            raise ValueError(f"there is an aggregation {name!r} already")
        _KNOWN[name] = Aggregation(name, function, uses_queued)
        return function

    return add


def names() -> tuple[str, ...]:
    """The names that are known."""
    return tuple(sorted(_KNOWN))


def choose(text: str) -> Aggregation:
    """The one of that name, or the function that `module:function` names.

    OptionError for one that is not there, or does not map rows to rows.
    """
    if text in _KNOWN:
        return _KNOWN[text]
    module, colon, function = text.partition(":")
    if not (module and colon and function):
        raise OptionError(
            f"no aggregation {text!r}: there are {', '.join(names())}, or module:function of yours"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise OptionError(f"aggregation {text!r} cannot be imported: {error}") from None
    # A module of the user's own may have registered it, and said there what it uses.
    known = next((known for known in _KNOWN.values() if known.function is found), None)
    return _checked(known or Aggregation(text, found))


def _checked(aggregation: Aggregation) -> Aggregation:
    """Try a user's function on a few rows: better now than when the robot moves."""
    queued, new = np.zeros((3, 2)), np.ones((3, 2))
    try:
        result = np.asarray(aggregation.function(queued, new), np.float64)
    except Exception as error:
        raise OptionError(f"aggregation {aggregation.name!r} fails: {error}") from None
    if result.shape != new.shape:
        raise OptionError(
            f"aggregation {aggregation.name!r} makes {result.shape} of (3, 2) and (3, 2): "
            "it must give one row for each row"
        )
    return aggregation


@register("weighted_average")
def _weighted_average(queued: Rows, new: Rows) -> Rows:
    return 0.3 * queued + 0.7 * new


@register("latest_only", uses_queued=False)
def _latest_only(_queued: Rows, new: Rows) -> Rows:
    return new


@register("average")
def _average(queued: Rows, new: Rows) -> Rows:
    return 0.5 * queued + 0.5 * new


@register("conservative")
def _conservative(queued: Rows, new: Rows) -> Rows:
    return 0.7 * queued + 0.3 * new
