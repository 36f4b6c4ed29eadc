"""Reads a message of LeRobot's into plain values; what is not in one of those is refused."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from serving.messages import BadMessage
from serving.pickles import arrays, torch_storage
from serving.pickles.machine import Machine, Names
from serving.pickles.values import Bounds, Budget, Buildable, FeatureType, Name, Record, excerpt

__all__ = ["NAMES", "load"]

# Since LeRobot 0.4 in `async_inference`, before that in `scripts.server`.
_HELPERS = ("lerobot.async_inference.helpers", "lerobot.scripts.server.helpers")
_CONFIGS = ("lerobot.configs.types", "lerobot.configs.policies", "lerobot.configs")
_FEATURE_TYPES = frozenset(["STATE", "VISUAL", "ENV", "ACTION", "REWARD", "LANGUAGE"])


def _feature_type(arguments: tuple[Any, ...], budget: Budget) -> FeatureType:
    value = arguments[0] if len(arguments) == 1 else None
    if type(value) is not str or value not in _FEATURE_TYPES:
        raise BadMessage(f"{excerpt(value)} is not a type of feature")
    return FeatureType(value)


def _named() -> Names:
    names: dict[tuple[str, str], Name] = {}
    for kind in ("RemotePolicyConfig", "TimedObservation", "TimedAction"):
        names |= {(module, kind): Name(kind, record=kind) for module in _HELPERS}
    for module in _CONFIGS:
        names[module, "PolicyFeature"] = Name("PolicyFeature", record="PolicyFeature")
        names[module, "FeatureType"] = Name("FeatureType", _feature_type)
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = Name("_reconstruct", arrays.reconstruct)
        names[f"{core}.multiarray", "scalar"] = Name("scalar", arrays.scalar)
        names[f"{core}.numeric", "_frombuffer"] = Name("_frombuffer", arrays.frombuffer)
    names["numpy", "ndarray"] = arrays.NDARRAY
    names["numpy", "dtype"] = Name("dtype", arrays.element_type)
    names["_codecs", "encode"] = Name("encode", arrays.encoded)
    names["collections", "OrderedDict"] = Name("OrderedDict", torch_storage.ordered_dict)
    rebuild = Name("_rebuild_tensor_v2", torch_storage.rebuild_tensor)
    names["torch._utils", "_rebuild_tensor_v2"] = rebuild
    loads = Name("_load_from_bytes", torch_storage.storage_of)
    names["torch.storage", "_load_from_bytes"] = loads
    return names


NAMES: Names = _named()
"""All that a message may name, and what stands for each. There is no other way to a name."""


def load(data: bytes | memoryview, bounds: Bounds) -> Any:
    """The value that the pickle `data` holds.

    None, truth values, numbers, texts, lists, tuples and dictionaries (with texts as keys) as
    they are; bytes as memoryviews; NumPy's arrays and numbers and torch's tensors as read-only
    arrays that refer to `data`; instances of LeRobot's classes as `Record`s. Nothing is shared
    in the result, and nothing holds itself.

    Raises:
        BadMessage: anything else, or more of it than `bounds` allow.
    """
    if len(data) > bounds.size:
        raise BadMessage(f"a message of {len(data)} bytes; at most {bounds.size} are taken")
    view = memoryview(data).cast("B").toreadonly()
    machine = Machine(view, NAMES, bounds, Budget.of(bounds, len(view)))
    try:
        value = machine.run()
    except (IndexError, KeyError, struct.error):
        raise BadMessage(
            "the pickle ends too early, or uses something that it does not hold"
        ) from None
    except (ArithmeticError, TypeError, ValueError):
        raise BadMessage("the pickle makes no sense") from None
    if machine.at != len(view):
        raise BadMessage("something follows the pickle")
    return _Walk(bounds).settled(value, bounds.depth)


class _Walk:
    """Turns what the machine left into a tree, counting every value that it meets."""

    def __init__(self, bounds: Bounds) -> None:
        self._nodes = bounds.nodes

    def settled(self, value: Any, depth: int) -> Any:
        """The value with everything in it finished; BadMessage below `depth` containers."""
        self._nodes -= 1
        if self._nodes < 0 or depth < 0:
            raise BadMessage("the message holds too much, or is nested too deeply")
        if isinstance(value, Buildable):
            value = value.settled()
        kind = type(value)
        if kind is dict:
            return {key: self.settled(item, depth - 1) for key, item in value.items()}
        if kind is list:
            return [self.settled(item, depth - 1) for item in value]
        if kind is tuple:
            return tuple(self.settled(item, depth - 1) for item in value)
        if kind is Record:
            return Record(value.kind, self.settled(value.fields, depth - 1))
        if value is None or isinstance(value, _LEAVES):
            return value
        raise BadMessage(f"the message holds {excerpt(value)} where a value should be")


_LEAVES = (str, bool, int, float, memoryview, np.ndarray, np.generic, np.dtype)
