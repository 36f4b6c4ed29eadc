"""Writes plain values as a pickle that LeRobot reads, opcode by opcode (protocol 4).

Texts, names and torch storages are written once and referred to afterwards, so that the rows of
a chunk share one storage instead of holding a copy of it each.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Hashable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serving.pickles.arrays import CODES
from serving.pickles.torch_storage import MAGIC, PROTOCOL
from serving.pickles.values import FeatureType, Record, Tensor

__all__ = ["dump"]

_HELPERS = "lerobot.async_inference.helpers"
_MODULES: Final = {
    "RemotePolicyConfig": _HELPERS,
    "TimedObservation": _HELPERS,
    "TimedAction": _HELPERS,
    "PolicyFeature": "lerobot.configs.types",
}
# Both NumPy 1 and 2 read this name; NumPy 1 before 1.26 knows no `numpy._core`.
_MULTIARRAY = "numpy.core.multiarray"


def dump(value: Any) -> bytes:
    """The value as a pickle.

    None, truth values, numbers, texts, bytes, lists, tuples, dictionaries, NumPy's arrays and
    numbers, `Record`, `FeatureType` and `Tensor` can be in it. TypeError for anything else.
    """
    writer = _Writer()
    writer.put(b"\x80\x04")
    writer.value(value)
    writer.put(b".")
    return writer.joined()


class _Writer:
    """Collects the opcodes; large data is kept as it is until everything is joined, once."""

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []
        self._memo: dict[Hashable, int] = {}
        # What is in the memo by its address must not be freed and its address used again.
        self._alive: list[Any] = []

    def put(self, *parts: bytes | memoryview) -> None:
        self._parts.extend(parts)

    def joined(self) -> bytes:
        return b"".join(self._parts)

    def _known(self, key: Hashable) -> bool:
        """Refer to what was kept under `key`, if anything was."""
        index = self._memo.get(key)
        if index is None:
            return False
        self.put(b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<I", index))
        return True

    def _keep(self, key: Hashable) -> None:
        self._memo[key] = len(self._memo)
        self.put(b"\x94")

    def value(self, value: Any) -> None:
        """Write one value."""
        if value is None or value is True or value is False:
            self.put({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, FeatureType):
            self._feature_type(value)
        elif isinstance(value, str):
            self._text(value)
        elif isinstance(value, np.generic):  # before float: np.float64 is one
            self._scalar(value)
        elif isinstance(value, int):
            self._integer(value)
        elif isinstance(value, float):
            self.put(b"G" + struct.pack(">d", value))
        elif isinstance(value, bytes | memoryview):
            self._bytes(memoryview(value))
        elif isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, Record):
            self._record(value)
        else:
            self._container(value)

    def _container(self, value: Any) -> None:
        if isinstance(value, dict):
            self.put(b"}(")
            for key, item in value.items():
                self._text(key)
                self.value(item)
            self.put(b"u")
        elif isinstance(value, list):
            self.put(b"](")
            for item in value:
                self.value(item)
            self.put(b"e")
        elif isinstance(value, tuple):
            self.put(b"(")
            for item in value:
                self.value(item)
            self.put(b"t")
        else:
            raise TypeError(f"a {type(value).__name__} cannot be written")

    def _text(self, text: str) -> None:
        if self._known(text):
            return
        data = text.encode()
        head = b"\x8c" + bytes([len(data)]) if len(data) < 256 else _head(b"X", b"\x8d", data)
        self.put(head, data)
        self._keep(text)

    def _integer(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.put(b"K" + struct.pack("<B", value))
        elif -(1 << 31) <= value < 1 << 31:
            self.put(b"J" + struct.pack("<i", value))
        else:
            size = value.bit_length() // 8 + 1
            if size > 255:
                raise TypeError("an integer of more than 255 bytes cannot be written")
            self.put(b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True))

    def _bytes(self, data: memoryview) -> None:
        data = data.cast("B")
        self.put(b"C" + bytes([len(data)]) if len(data) < 256 else _head(b"B", b"\x8e", data), data)

    def _name(self, module: str, name: str) -> None:
        if not self._known((module, name)):
            self._text(module)
            self._text(name)
            self.put(b"\x93")
            self._keep((module, name))

    def _record(self, record: Record) -> None:
        self._name(_MODULES[record.kind], record.kind)
        self.put(b")\x81")
        self._container(dict(record.fields or {}))
        self.put(b"b")

    def _feature_type(self, value: FeatureType) -> None:
        self._name("lerobot.configs.types", "FeatureType")
        self._text(str(value))
        self.put(b"\x85R")

    def _dtype(self, dtype: np.dtype[Any]) -> None:
        code = f"{dtype.kind}{dtype.itemsize}"
        if code not in CODES:
            raise TypeError(f"elements of type {dtype} cannot be written")
        key = ("dtype", code)
        if self._known(key):
            return
        self._name("numpy", "dtype")
        self._text(code)
        self.put(b"\x89\x88\x87R")
        self._keep(key)
        self.put(b"(K\x03")
        self._text("|" if dtype.itemsize == 1 else "<")
        self.put(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")

    def _scalar(self, value: np.generic) -> None:
        dtype = value.dtype.newbyteorder("<")
        self._name(_MULTIARRAY, "scalar")
        self._dtype(dtype)
        self._bytes(memoryview(np.asarray(value, dtype).tobytes()))
        self.put(b"\x86R")

    def _array(self, array: NDArray[Any]) -> None:
        dtype = array.dtype.newbyteorder("<")
        # One axis at least, so that a lone number has bytes to be seen as.
        flat = np.ascontiguousarray(array, dtype).reshape(-1)
        self._name(_MULTIARRAY, "_reconstruct")
        self._name("numpy", "ndarray")
        self.put(b"K\x00\x85C\x01b\x87R(K\x01")
        self._shape(array.shape)
        self._dtype(dtype)
        self.put(b"\x89")
        self._bytes(flat.view(np.uint8).data if flat.size else memoryview(b""))
        self.put(b"tb")

    def _shape(self, shape: tuple[int, ...]) -> None:
        self.put(b"(")
        for side in shape:
            self._integer(side)
        self.put(b"t")

    def _tensor(self, tensor: Tensor) -> None:
        array, index = tensor.of, tensor.index
        shape = array.shape if index is None else array.shape[1:]
        self._name("torch._utils", "_rebuild_tensor_v2")
        self.put(b"(")
        self._storage(array)
        self._integer(0 if index is None else index * math.prod(shape))
        self._shape(shape)
        self._shape(tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
        self.put(b"\x89")
        self._name("collections", "OrderedDict")
        self.put(b")RtR")

    def _storage(self, array: NDArray[np.float32]) -> None:
        if self._known(("storage", id(array))):
            return
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise TypeError("a tensor is written from a contiguous array of float32")
        self._name("torch.storage", "_load_from_bytes")
        self._bytes(memoryview(_storage_file(array)))
        self.put(b"\x85R")
        self._keep(("storage", id(array)))
        self._alive.append(array)


def _head(four: bytes, eight: bytes, data: bytes | memoryview) -> bytes:
    size = len(data)
    return four + struct.pack("<I", size) if size < 1 << 32 else eight + struct.pack("<Q", size)


def _storage_file(array: NDArray[np.float32]) -> bytes:
    """The file that torch pickles a storage as: five pickles, and the elements."""
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": sizes}
    header = [dump(MAGIC), dump(PROTOCOL), dump(system)]
    writer = _Writer()
    writer.put(b"\x80\x04(")
    writer.value("storage")
    writer.put(b"ctorch\nFloatStorage\n")
    for part in ("0", "cpu", array.size, None):
        writer.value(part)
    writer.put(b"tQ.")
    header += [writer.joined(), dump(["0"])]
    data = np.ascontiguousarray(array, "<f4").tobytes()
    return b"".join([*header, struct.pack("<q", array.size), data])
