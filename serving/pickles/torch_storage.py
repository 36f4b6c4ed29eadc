"""torch's pickles: a tensor is a part of a storage, and a storage is a file within the message.

That file is the format `torch.save` wrote before version 1.6, which a storage is still pickled
as: three pickles of a header, one that names the storage's type, size and device, one with its
key, and the elements. Tensors on an accelerator are written the same way, from a copy in memory;
the device is only a word in it, which is read over.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.messages import BadMessage
from serving.pickles.arrays import check_truths, shape_of
from serving.pickles.machine import Machine, Names
from serving.pickles.values import Bounds, Budget, Name, excerpt

__all__ = ["MAGIC", "PROTOCOL", "Storage", "ordered_dict", "rebuild_tensor", "storage_of"]

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
"""Both from torch.serialization."""

_MOST_KEPT = 1 << 16
_BOUNDS = Bounds(stack=32, marks=4)
_DEVICE = re.compile(r"cpu|(cuda|mps|xpu)(:\d{1,3})?", re.ASCII)
_BFLOAT16 = "bfloat16"
_TYPES: Mapping[str, str] = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
_NAMES: Names = {("torch", name): Name(f"torch.{name}") for name in _TYPES}


@dataclass(frozen=True, slots=True)
class Storage:
    """Elements that tensors are parts of.

    Attributes:
        data: their bytes.
        dtype: of one; uint16 for bfloat16.
        is_bfloat16: whether the elements are that.
    """

    data: memoryview
    dtype: np.dtype[Any]
    is_bfloat16: bool


@dataclass(frozen=True, slots=True)
class _Declared:
    key: str
    code: str
    count: int


def ordered_dict(arguments: tuple[Any, ...], budget: Budget) -> dict[str, Any]:
    """`OrderedDict()`, filled by the items that follow."""
    if arguments:
        raise BadMessage("an OrderedDict is made from arguments")
    return {}


def storage_of(arguments: tuple[Any, ...], budget: Budget) -> Storage:
    """`_load_from_bytes(file)`."""
    if len(arguments) != 1 or not isinstance(arguments[0], memoryview):
        raise BadMessage("a torch storage is read from something other than bytes")
    file: memoryview = arguments[0]
    budget.take(len(file))
    if len(file) > _MOST_KEPT:
        return _read_file(file, budget)
    key = bytes(file)
    found: Storage | None = budget.storages.get(key)
    if found is None:
        found = budget.storages[key] = _read_file(file, budget)
    return found


def _read_file(file: memoryview, budget: Budget) -> Storage:
    values: list[Any] = []
    at = 0
    for _ in range(5):
        persistent = _declared if len(values) == 3 else None
        machine = Machine(file, _NAMES, _BOUNDS, budget, at, persistent)
        values.append(machine.run())
        at = machine.at
    magic, protocol, system, declared, keys = values
    if magic != MAGIC or protocol != PROTOCOL or type(system) is not dict:
        raise BadMessage("the file of a torch storage does not begin like one")
    if system.get("little_endian") is not True:
        raise BadMessage("a torch storage from a big-endian machine is not taken")
    if not isinstance(declared, _Declared) or type(keys) is not list:
        raise BadMessage("the file of a torch storage holds something else")
    if len(keys) != 1 or type(keys[0]) is not str or keys[0] != declared.key:
        raise BadMessage("the file of a torch storage holds other keys than its own")
    (count,) = struct.unpack_from("<q", file, at)
    is_bfloat16 = declared.code == _BFLOAT16
    dtype = np.dtype("<u2" if is_bfloat16 else f"<{declared.code}")
    data = file[at + 8 :]
    if count != declared.count or len(data) != count * dtype.itemsize:
        raise BadMessage("a torch storage does not have as many bytes as it says")
    check_truths(np.ndarray((count,), dtype, buffer=data))
    return Storage(data, dtype, is_bfloat16)


def _declared(said: Any) -> _Declared:
    """The persistent id: ("storage", type, key, device, number of elements, None)."""
    if type(said) is not tuple or len(said) != 6 or said[0] != "storage" or said[5] is not None:
        raise BadMessage("a torch storage is described in another way than torch does")
    kind, key, device, count = said[1:5]
    if not isinstance(kind, Name) or type(key) is not str or type(count) is not int:
        raise BadMessage("a torch storage is described in another way than torch does")
    if type(device) is not str or not _DEVICE.fullmatch(device):
        raise BadMessage(f"a torch storage on the device {excerpt(device)} is not taken")
    return _Declared(key, _TYPES[kind.text.removeprefix("torch.")], count)


def rebuild_tensor(arguments: tuple[Any, ...], budget: Budget) -> NDArray[Any]:
    """`_rebuild_tensor_v2(storage, offset, size, stride, needs gradient, hooks[, metadata])`.

    An array with the same elements, a view of the storage; bfloat16 becomes float32.
    """
    if len(arguments) not in (6, 7):
        raise BadMessage("a torch tensor has other parts than torch gives it")
    storage, offset, size, stride, gradient, hooks, *metadata = arguments
    if not isinstance(storage, Storage):
        raise BadMessage(f"a torch tensor is a part of {excerpt(storage)}")
    if type(gradient) is not bool or type(hooks) is not dict or hooks:
        raise BadMessage("a torch tensor with hooks is not taken")
    if any(part is not None for part in metadata):
        raise BadMessage("a torch tensor with metadata is not taken")
    shape, steps = shape_of(size), shape_of(stride)
    if type(offset) is not int or offset < 0 or len(shape) != len(steps):
        raise BadMessage("a torch tensor's offset and strides make no sense")
    last = offset + sum((side - 1) * step for side, step in zip(shape, steps, strict=True))
    count, width = math.prod(shape), storage.dtype.itemsize
    if count and (last + 1) * width > len(storage.data):
        raise BadMessage("a torch tensor reaches beyond its storage")
    budget.take((count + 1) * max(width, 4))
    if not count:
        return np.zeros(shape, np.float32 if storage.is_bfloat16 else storage.dtype)
    part: NDArray[Any] = np.ndarray(
        shape, storage.dtype, storage.data, offset * width, tuple(step * width for step in steps)
    )
    return _widened(part) if storage.is_bfloat16 else part


def _widened(part: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of a float32."""
    return (part.astype(np.uint32) << np.uint32(16)).view(np.float32)
