"""Demonstrations on disk: many in an npz, read as untrusted, never unpickled.

An npz of `<number>/<array>` for each demonstration, `<number>/<view>/<place>` for the bytes of each
JPEG, and `index`: a JSON list with the seed, the views and the number of looks of each.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.jpeg import jpeg_size

__all__ = ["Demonstration", "read_demonstrations", "write_demonstrations"]

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One demonstration, from wherever it starts until the tip has followed the tissue for a while.

    Attributes:
        seed: of the layout.
        goal_deg: (6,) joint angles with the tip in the port, at its mean distance to the tissue.
        times_s: (N,) every 10 ms.
        joints_deg: (N, 6) at those times.
        ticks_s: (K,) every 100 ms: when the expert was asked what to do.
        rows_deg: (K, 16, 6) joint targets that it gave, 100 ms apart, whatever the arm did then.
        sampled_s: (M,) at 650 Hz.
        forces_n: (M,) at those times.
        distances_mm: (M,) from the tip to the tissue, at those times.
        seen_s: (P,) when pictures were taken.
        pictures: P JPEGs by view.
    """

    seed: int
    goal_deg: Vector
    times_s: Vector
    joints_deg: Vector
    ticks_s: Vector
    rows_deg: NDArray[np.float32]
    sampled_s: Vector
    forces_n: NDArray[np.float32]
    distances_mm: NDArray[np.float32]
    seen_s: Vector
    pictures: dict[str, list[bytes]]


# Kind and shape of each array: a letter is a length that all with that letter have in common.
_ARRAYS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "goal_deg": ("<f8", (6,)),
    "times_s": ("<f8", ("N",)),
    "joints_deg": ("<f8", ("N", 6)),
    "ticks_s": ("<f8", ("K",)),
    "rows_deg": ("<f4", ("K", 16, 6)),
    "sampled_s": ("<f8", ("M",)),
    "forces_n": ("<f4", ("M",)),
    "distances_mm": ("<f4", ("M",)),
    "seen_s": ("<f8", ("P",)),
}
_RISING = ("times_s", "ticks_s", "sampled_s", "seen_s")
_INDEX = "index"
_MOST_VIEWS, _LONGEST_VIEW = 64, 64
_UNREADABLE = (zipfile.BadZipFile, struct.error, EOFError, RuntimeError)
"""What reading raises for bytes that are no zip, or no longer one; RuntimeError: encrypted."""


def write_demonstrations(path: Path, made: Sequence[Demonstration]) -> None:
    """Write a file of demonstrations, whole or not at all; raises OSError."""
    arrays: dict[str, Any] = {}
    index = []
    for number, one in enumerate(made):
        for name in _ARRAYS:
            arrays[f"{number}/{name}"] = getattr(one, name)
        for view, pictures in one.pictures.items():
            for place, picture in enumerate(pictures):
                arrays[f"{number}/{view}/{place}"] = np.frombuffer(picture, np.uint8)
        index.append({"seed": one.seed, "views": list(one.pictures), "looks": len(one.seen_s)})
    arrays[_INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    draft = path.with_name(f".{path.name}.part")
    with draft.open("wb") as file:
        np.savez(file, **arrays)
    draft.replace(path)


def read_demonstrations(path: Path) -> Iterator[Demonstration]:
    """The demonstrations of a file, one after the other; each is checked before it is given.

    Raises:
        ValueError: one line, for anything that is no whole file of demonstrations.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            reader = _Reader(archive, path.stat().st_size)
            for number, entry in enumerate(reader.index()):
                yield reader.demonstration(number, entry)
    except _UNREADABLE:
        raise ValueError(f"{path} holds no demonstrations (it is no npz, or not whole)") from None
    except ValueError as error:
        raise ValueError(f"{path} holds no demonstrations ({error})") from None


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the index says of a demonstration."""

    seed: int
    views: tuple[str, ...]
    looks: int

    @classmethod
    def of(cls, data: object) -> _Entry:
        """Check an entry; ValueError."""
        if not isinstance(data, dict):
            raise ValueError("an entry of the index is no map")
        seed, views, looks = (data.get(name) for name in ("seed", "views", "looks"))
        if type(seed) is not int or type(looks) is not int or looks < 0:
            raise ValueError("the index does not say seed and looks in whole numbers")
        if not isinstance(views, list) or not 1 <= len(views) <= _MOST_VIEWS:
            raise ValueError("the index does not list the views")
        if any(type(view) is not str or not 0 < len(view) <= _LONGEST_VIEW for view in views):
            raise ValueError("a view in the index has no name")
        return cls(seed, tuple(views), looks)

    @property
    def arrays(self) -> int:
        """How many there must be in the file."""
        return len(_ARRAYS) + len(set(self.views)) * self.looks


class _Reader:
    """Reads plain arrays of a zip; what it allocates is bounded by the file's own size."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        """Take a zip of `size` bytes; ValueError where its parts are not stored plainly in it."""
        self._archive = archive
        parts = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in parts):
            raise ValueError("its arrays are compressed")
        if sum(info.file_size for info in parts) > size:
            raise ValueError("its arrays are said to be larger than the file")

    def index(self) -> list[_Entry]:
        """What is in the file; ValueError where that is not so."""
        text = self._array(_INDEX, "|u1", (None,)).tobytes()
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("the index is no JSON") from None
        if not isinstance(listed, list):
            raise ValueError("the index is no list")
        entries = [_Entry.of(data) for data in listed]
        told, there = 1 + sum(entry.arrays for entry in entries), len(self._archive.namelist())
        if told != there:
            raise ValueError(f"there are {there} arrays, and by the index {told}")
        return entries

    def demonstration(self, number: int, entry: _Entry) -> Demonstration:
        """A demonstration, all of it checked; ValueError."""
        lengths: dict[str | int, int | None] = {"P": entry.looks}
        arrays: dict[str, NDArray[Any]] = {}
        for name, (kind, wanted) in _ARRAYS.items():
            shape = tuple(n if isinstance(n, int) else lengths.get(n) for n in wanted)
            array = arrays[name] = self._array(f"{number}/{name}", kind, shape)
            lengths[wanted[0]] = len(array)
            if not np.isfinite(array).all():
                raise ValueError(f"{number}/{name} holds what is no number")
            if name in _RISING and (np.diff(array) < 0).any():
                raise ValueError(f"{number}/{name} goes back in time")
        if not lengths["N"] or not lengths["M"]:
            raise ValueError(f"{number} has no joint angles or no samples")
        pictures = {
            view: [self._picture(f"{number}/{view}/{place}") for place in range(entry.looks)]
            for view in entry.views
        }
        return Demonstration(seed=entry.seed, pictures=pictures, **arrays)

    def _picture(self, name: str) -> bytes:
        data = self._array(name, "|u1", (None,)).tobytes()
        try:
            jpeg_size(data)
        except ValueError as error:
            raise ValueError(f"{name} is no whole JPEG: {error}") from None
        return data

    def _array(self, name: str, kind: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """An array of one kind and shape, None for any length; ValueError for any other."""
        try:
            data = self._archive.read(f"{name}.npy")
        except KeyError:
            raise ValueError(f"{name} is missing") from None
        file = io.BytesIO(data)
        found, fortran, dtype = _header(name, file)
        fits = len(found) == len(shape) and all(
            n in (None, m) for n, m in zip(shape, found, strict=False)
        )
        if dtype.str != kind or not fits or (fortran and len(found) > 1):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ValueError(f"{name} is {dtype.str} {found}, not {kind} ({wanted})")
        if len(data) - file.tell() != dtype.itemsize * math.prod(found):
            raise ValueError(f"{name} has another size than it says")
        return np.frombuffer(data, dtype, offset=file.tell()).reshape(found)


def _header(name: str, file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and kind of an .npy file; its values are not touched. ValueError."""
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)
    except Exception:  # the library raises many kinds
        raise ValueError(f"{name} is no array") from None
