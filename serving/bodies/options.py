"""Options of a body from a plain map: into a dataclass, into a driver's KEY=VALUE, per joint."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.cli import ConfigError, from_mapping
from serving.body import BodyError

__all__ = ["a_map", "as_texts", "filled", "number", "per_value"]

T = TypeVar("T")


def filled(cls: type[T], robot: Mapping[str, Any], where: str) -> T:
    """A dataclass of options out of a map; BodyError, one line, for what does not fit.

    A field that is annotated `Any` is taken as it is.
    """
    free = {key for key, hint in typing.get_type_hints(cls).items() if hint is Any}
    checked = {key: value for key, value in robot.items() if key not in free}
    try:
        made = from_mapping(cls, checked, where)
    except ConfigError as error:
        raise BodyError(str(error)) from None
    rest = {key: value for key, value in robot.items() if key in free}
    return dataclasses.replace(made, **rest)  # type: ignore[type-var]


def a_map(name: str, value: object) -> dict[str, Any]:
    """A map with names for keys, empty for None; BodyError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BodyError(f'--robot.{name} must be a map, "{{name: value}}", not {value!r}')
    return {str(key): inner for key, inner in value.items()}


def number(name: str, value: object, low: float, high: float) -> float:
    """A number within [low, high]; BodyError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise BodyError(f"--robot.{name} must be from {low:g} to {high:g}, not {value!r}")
    return float(value)


def as_texts(options: Mapping[str, Any]) -> list[str]:
    """The map as the `KEY=VALUE` texts that the drivers' tables take."""
    texts = []
    for key, value in options.items():
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, (list, tuple)):
            text = ",".join(map(str, value))
        elif isinstance(value, Mapping) or value is None:
            text = json.dumps(value)
        else:
            text = str(value)
        texts.append(f"{key}={text}")
    return texts


def per_value(
    name: str, given: Any, names: Sequence[str], default: Sequence[float] | None
) -> NDArray[np.float64]:
    """An option with a number for each of `names` (A,), or one for all, as a list or a map.

    A map's keys are names, with or without `.pos`; what it leaves out is the default (NaN where
    there is none, which the caller must look for). BodyError for what does not fit.
    """
    values = np.full(len(names), math.nan) if default is None else np.array(default, np.float64)
    wanted = (
        f"--robot.{name} must be a number, a list of {len(names)}, or a map of names to numbers"
    )
    if given is None:
        return values
    if isinstance(given, Mapping):
        short = {one.removesuffix(".pos"): place for place, one in enumerate(names)}
        for key, value in given.items():
            if (place := short.get(str(key).removesuffix(".pos"))) is None:
                raise BodyError(f"--robot.{name}: no {key!r}; there are {', '.join(names)}")
            values[place] = _finite(wanted, value)
        return values
    if isinstance(given, (list, tuple)):
        if len(given) != len(names):
            raise BodyError(wanted)
        return np.array([_finite(wanted, value) for value in given])
    return np.full(len(names), _finite(wanted, given))


def _finite(wanted: str, value: object) -> float:
    try:
        found = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise BodyError(f"{wanted}, not {value!r}")
    return found
