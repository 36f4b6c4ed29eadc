"""The force sensor's datagrams."""

from __future__ import annotations

import struct
from dataclasses import dataclass

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

_COUNT = struct.Struct("<I")


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


_REFERENCE_SAMPLE = _sample_dtype(ALINE_LENGTH)


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


def decode_samples(datagram: Buffer, aline_length: int = ALINE_LENGTH) -> SampleBatch:
    """Decode one datagram; raises MalformedMessage and nothing else.

    The arrays are views of the datagram where it was given: copy what is to outlive the buffer.
    """
    stream = endpoints.SENSOR.stream
    data = view(stream, datagram)
    if len(data) < _COUNT.size:
        raise MalformedMessage(stream, "truncated", f"{len(data)} bytes")
    if len(data) > MAX_DATAGRAM:
        raise MalformedMessage(stream, "oversized", f"{len(data)} bytes")
    dtype = _REFERENCE_SAMPLE if aline_length == ALINE_LENGTH else _sample_dtype(aline_length)
    (count,) = _COUNT.unpack_from(data)
    if count < 1:
        raise MalformedMessage(stream, "count", "no samples")
    if len(data) != _COUNT.size + count * dtype.itemsize:
        raise MalformedMessage(stream, "size", f"{len(data)} bytes for {count} samples")
    rows = np.frombuffer(data, dtype, offset=_COUNT.size)
    for stamps in (rows["t"], rows["sent"]):
        if not (stamps.min() >= 0.0 and stamps.max() < MAX_TIMESTAMP):  # false for NaN too
            raise MalformedMessage(stream, "timestamp", "not UNIX seconds")
    with np.errstate(invalid="ignore"):
        largest = [np.abs(rows[name]).max(initial=0.0) for name in ("force", "aline")]
    if not all(value <= MAX_MAGNITUDE for value in largest):  # false for NaN too
        raise MalformedMessage(stream, "values", "not finite or absurd")
    return SampleBatch(rows["t"], rows["sent"], rows["force"], rows["aline"])
