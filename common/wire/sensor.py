"""The force sensor's datagrams."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common import endpoints
from common.wire.checks import (
    ALINE_LENGTH,
    MAX_DATAGRAM,
    MAX_MAGNITUDE,
    MAX_TIMESTAMP,
    Buffer,
    MalformedMessage,
    view,
)

_STREAM = endpoints.SENSOR.stream
_COUNT = struct.Struct("<I")
_STAMP = np.dtype("<f8")
_VALUE = np.dtype("<f4")
_STAMPS = 2 * _STAMP.itemsize
_BITS = np.dtype("<u8")
_BITS_OF_MAX_TIMESTAMP = int(np.array(MAX_TIMESTAMP, _STAMP).view(_BITS))
_SURELY_FINE = MAX_MAGNITUDE**2 / 2

_Views: TypeAlias = tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """The samples of one datagram, oldest first.

    Attributes:
        timestamps: (N,) float64, when each was sampled.
        send_timestamps: (N,) float64.
        forces: (N,) float32, newtons.
        alines: (N, L) float32, one A-scan a sample, ordered by depth.
    """

    timestamps: NDArray[np.float64]
    send_timestamps: NDArray[np.float64]
    forces: NDArray[np.float32]
    alines: NDArray[np.float32]

    def __len__(self) -> int:
        """Samples in the batch."""
        return len(self.timestamps)


def _sample_dtype(aline_length: int) -> np.dtype[np.void]:
    return np.dtype(
        [("t", "<f8"), ("sent", "<f8"), ("force", "<f4"), ("aline", "<f4", (aline_length,))]
    )


def max_samples(aline_length: int = ALINE_LENGTH) -> int:
    """How many samples fit into one datagram (15 of the reference rig's)."""
    return (MAX_DATAGRAM - _COUNT.size) // _sample_dtype(aline_length).itemsize


def encode_samples(batch: SampleBatch) -> bytes:
    """One datagram; ValueError when the batch is empty or does not fit."""
    count, length = batch.alines.shape
    if not 1 <= count <= max_samples(length):
        raise ValueError(f"{count} samples do not make a datagram of 1 to {max_samples(length)}")
    rows = np.empty(count, _sample_dtype(length))
    rows["t"], rows["sent"] = batch.timestamps, batch.send_timestamps
    rows["force"], rows["aline"] = batch.forces, batch.alines
    return _COUNT.pack(count) + rows.tobytes()


class SampleReader:
    """Reads datagrams out of one buffer, all samples of a datagram at once.

    A sample is a row of 4-byte values: two stamps that take two each, the force, the A-scan. From
    the count on, a datagram is an array of such rows, whose last columns are what a window is made
    of. So the views of the buffer depend on the number of samples alone and are made once each.
    """

    def __init__(self, buffer: Buffer, aline_length: int = ALINE_LENGTH) -> None:
        """Read samples with A-scans of `aline_length` values from the start of `buffer`."""
        self._data = view(_STREAM, buffer)
        self._channels = 1 + aline_length
        self._size = _STAMPS + _VALUE.itemsize * self._channels
        self._views: dict[int, _Views] = {}  # at most as many as samples fit into a datagram

    def read(self, size: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """The stamps and values of a datagram of `size` bytes, checked but for the values.

        Stamps (2, N) float64: when each was sampled, when it was sent. Values (N, 1 + L) float32:
        force, then the A-scan. Both are views of the buffer: copy what is to outlive it.
        MalformedMessage for a wrong size, count or stamp; see `check_values` for the values.
        """
        if size < _COUNT.size:
            raise MalformedMessage(_STREAM, "truncated", f"{size} bytes")
        if size > MAX_DATAGRAM:
            raise MalformedMessage(_STREAM, "oversized", f"{size} bytes")
        (count,) = _COUNT.unpack_from(self._data)
        if count < 1:
            raise MalformedMessage(_STREAM, "count", "no samples")
        if size != _COUNT.size + count * self._size:
            raise MalformedMessage(_STREAM, "size", f"{size} bytes for {count} samples")
        bits, stamps, values = self._views.get(count) or self._view(count)
        # Read as integers, all numbers from 0 on are in order, and below the negative ones, the
        # infinite ones and what is no number. (Of so few, Python finds the largest sooner.)
        if max(map(max, bits.tolist())) >= _BITS_OF_MAX_TIMESTAMP:
            raise MalformedMessage(_STREAM, "timestamp", "not UNIX seconds")
        return stamps, values

    def _view(self, count: int) -> _Views:
        start, strides = _COUNT.size, (_STAMP.itemsize, self._size)
        bits = np.ndarray((2, count), _BITS, self._data, start, strides)
        stamps = np.ndarray((2, count), _STAMP, self._data, start, strides)
        shape, strides = (count, self._channels), (self._size, _VALUE.itemsize)
        values = np.ndarray(shape, _VALUE, self._data, start + _STAMPS, strides)
        views = self._views[count] = (bits, stamps, values)
        return views


def check_values(values: NDArray[np.float32]) -> None:
    """MalformedMessage unless all are finite and of a size that a reading can have."""
    # A sum of squares is no smaller than its largest term, however it is rounded: one pass, and
    # the fastest there is, clears what is ordinary. NaN is refused by every comparison. (Of all
    # products this one does not warn of what is no number, which is looked for here.)
    if np.vdot(values, values) <= _SURELY_FINE:
        return
    with np.errstate(invalid="ignore"):
        largest = max(values.max(), -values.min())
    if not largest <= MAX_MAGNITUDE:
        raise MalformedMessage(_STREAM, "values", "not finite or absurd")


def decode_samples(datagram: Buffer, aline_length: int = ALINE_LENGTH) -> SampleBatch:
    """Decode one datagram; raises MalformedMessage and nothing else.

    The arrays are views of the datagram where it was given: copy what is to outlive the buffer.
    """
    data = view(_STREAM, datagram)
    (sampled, sent), values = SampleReader(data, aline_length).read(len(data))
    check_values(values)
    return SampleBatch(sampled, sent, values[:, 0], values[:, 1:])
