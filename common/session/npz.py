"""An npz file whose largest array grows on disk row by row, and that is whole at once at the end.

An npz is a zip of .npy files. The growing array is the zip's first member, stored without
compression; the small arrays and the zip's directory are put behind it when it is finished. So an
hour of A-scans, 10 GB, is finished in the time that the small arrays take.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GrowingNpz", "array_in_npz", "crc32_joined", "resumed"]

_NPY_HEADER = 128
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_CRC_AT = 14
_CHUNK = 4 << 20
_DATE = (1980, 1, 1, 0, 0, 0)


def crc32_joined(first: int, second: int, second_length: int) -> int:
    """The CRC-32 of two pieces of data joined, from their own CRCs and the second's length.

    Appending n zero bits to a message multiplies its CRC by x^n modulo the polynomial, which is
    linear over GF(2); squaring the step's matrix doubles n (M. Adler's method in zlib).
    """

    def times(matrix: list[int], vector: int) -> int:
        total, row = 0, 0
        while vector:
            if vector & 1:
                total ^= matrix[row]
            vector >>= 1
            row += 1
        return total

    # One zero bit: shift right, and fold the polynomial in for the bit that falls out.
    step = [0xEDB88320] + [1 << n for n in range(31)]
    bits = 8 * second_length
    while bits:
        if bits & 1:
            first = times(step, first)
        bits >>= 1
        step = [times(step, row) for row in step]
    return first ^ second


def _npy_header(rows: int, width: int) -> bytes:
    """The head of an .npy file (format 1.0) of (rows, width) float32, always of one length."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    start = np.lib.format.magic(1, 0) + struct.pack("<H", _NPY_HEADER - 10)
    return start + text.ljust(_NPY_HEADER - len(start) - 1).encode() + b"\n"


class _WholeWrites(io.FileIO):
    """An unbuffered file that writes all it is given or raises."""

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while len(view):
            view = view[super().write(view) or 0 :]
        return size


class GrowingNpz:
    """Writes (N, width) float32 rows as they come; readable by `numpy.load` once finished."""

    def __init__(self, path: Path, name: str, width: int, *, over: bool = False) -> None:
        """Begin the array `name` in a new file; `over`: write the same again over an old one."""
        self._file = _WholeWrites(path, "r+" if over else "x")
        self._info = zipfile.ZipInfo(f"{name}.npy", _DATE)
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)
        # The sizes are not known yet, and zip's 32-bit ones end at 4 GB.
        self._member = self._zip.open(self._info, "w", force_zip64=True)
        self._data_at = self._file.tell()
        self._member.write(_npy_header(0, width))
        self._width = width
        self._bytes = self._crc = 0

    @property
    def rows(self) -> int:
        """Whole rows so far."""
        return self._bytes // (4 * self._width)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Append (n, width) rows; OSError when the disk does not take them."""
        if not rows.size:
            return
        data = np.ascontiguousarray(rows, "<f4").data.cast("B")
        self._member.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self._bytes += len(data)

    def finish(self, others: Mapping[str, NDArray[Any]]) -> None:
        """Add the other arrays and the zip's directory, and close the file."""
        self._member.close()
        header = _npy_header(self.rows, self._width)
        self._info.CRC = crc32_joined(zlib.crc32(header), self._crc, self._bytes)
        for at, data in (
            (self._data_at, header),
            (self._info.header_offset + _CRC_AT, struct.pack("<L", self._info.CRC)),
        ):
            self._file.seek(at)
            self._file.write(data)
        for name, values in others.items():
            with self._zip.open(zipfile.ZipInfo(f"{name}.npy", _DATE), "w") as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
        self._zip.close()
        self._file.truncate()
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is, unfinished."""
        with contextlib.suppress(OSError):
            self._member.close()  # rewrites its header, of the same length
        self._zip.fp = None  # else the zip would write its directory when it is let go
        self._file.close()


def _rows_of_part(path: Path, width: int) -> tuple[int, int]:
    """Where the rows of an unfinished file begin, and how many whole ones there are."""
    with path.open("rb") as file:
        head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size or head[:4] != b"PK\x03\x04":
        return 0, 0
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(head)
    start = _LOCAL_HEADER.size + name_length + extra_length + _NPY_HEADER
    return start, max(path.stat().st_size - start, 0) // (4 * width)


def resumed(path: Path, name: str, width: int, rows: int) -> tuple[GrowingNpz, Iterator[int]]:
    """An unfinished file taken up again: its first `rows` rows (or as many as there are).

    The rows are read and written over themselves, for the zip's checksum, so that no second copy
    of what may fill the disk is needed, and a kill meanwhile changes nothing. Returns the writer
    and an iterator that does the work and yields how many rows are done.
    """
    start, there = _rows_of_part(path, width)
    rows = min(rows, there)
    grown = GrowingNpz(path, name, width, over=True)

    def work() -> Iterator[int]:
        at_once = max(_CHUNK // (4 * width), 1)
        with path.open("rb") as file:
            file.seek(start)
            done = 0
            while done < rows:
                count = min(at_once, rows - done)
                data = np.frombuffer(file.read(4 * width * count), "<f4").reshape(count, width)
                grown.append(data)
                done += count
                yield done

    return grown, work()


def array_in_npz(path: Path, name: str) -> NDArray[Any] | None:
    """An array of an npz, mapped from the file where it is stored plainly; None if not there.

    Raises ValueError, OSError or zipfile.BadZipFile for a file that is no npz of plain arrays.
    """
    with zipfile.ZipFile(path) as archive:
        try:
            info = archive.getinfo(f"{name}.npy")
        except KeyError:
            return None
        if info.compress_type != zipfile.ZIP_STORED:
            with np.load(path, allow_pickle=False) as loaded:
                array: NDArray[Any] = loaded[name]
                return array
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(_LOCAL_HEADER.size)
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(head)
        file.seek(info.header_offset + _LOCAL_HEADER.size + name_length + extra_length)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        if dtype.hasobject or fortran:
            raise ValueError(f"{name} is not a plain array")
        if not all(shape):
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape)
