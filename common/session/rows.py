"""Robot states and force samples in a session: files that grow, and their arrays."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.session import layout
from common.session.layout import PART, ROBOT_COLUMNS, SAMPLE_ROW, SessionError
from common.session.npz import GrowingNpz, array_in_npz
from common.wire import RobotState, SampleBatch

__all__ = ["ALINES", "SampleFile", "Samples", "StateFile", "States", "finish_samples"]
__all__ += ["read_samples", "read_states"]

Vector = NDArray[np.float64]

ALINES = "alines"
_BLOCK_S = 10.0


class StateFile:
    """A CSV file of robot states; each is on disk when `add` returns."""

    def __init__(self, folder: Path, stamp: str) -> None:
        """Begin a file in `folder`; OSError when that cannot be."""
        self._file = open(folder / layout.robot_name(stamp), "xb", buffering=0)  # noqa: SIM115
        self._file.write((",".join(ROBOT_COLUMNS) + "\n").encode())
        self.count = 0

    def add(self, state: RobotState, arrived_at: float) -> int:
        """Write one state; the bytes written. Values are written so that they read back exactly."""
        stamps = (arrived_at, state.origin_timestamp, state.send_timestamp)
        values = (state.force, *state.joints, *state.pose)
        line = f"{','.join(map(repr, stamps))},{','.join(f'{v:.9g}' for v in values)}\n".encode()
        self._file.write(line)
        self.count += 1
        return len(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SampleFile:
    """An npz file of samples that grows; each datagram is on disk when `add` returns."""

    def __init__(self, folder: Path, stamp: str, aline_length: int) -> None:
        """Begin a file in `folder`; OSError when that cannot be."""
        self._path = folder / layout.sensor_name(stamp)
        self._part = folder / (layout.sensor_name(stamp) + PART)
        self._rows_path = folder / layout.row_file_name(stamp)
        self._npz = GrowingNpz(self._part, ALINES, aline_length)
        self._rows = open(self._rows_path, "xb", buffering=0)  # noqa: SIM115
        self.count = 0

    def add(self, batch: SampleBatch, arrived_at: float) -> int:
        """Write the samples of a datagram; the bytes written."""
        rows = np.empty(len(batch), SAMPLE_ROW)
        rows["recv"], rows["timestamp"] = arrived_at, batch.timestamps
        rows["send"], rows["force"] = batch.send_timestamps, batch.forces
        # The A-scans first: what has a row is whole.
        self._npz.append(batch.alines)
        self._rows.write(rows.tobytes())
        self.count += len(batch)
        return rows.nbytes + batch.alines.nbytes

    def finish(self) -> None:
        """Make it a whole npz under its own name; OSError leaves it for a recovery."""
        self._rows.close()
        finish_samples(self._npz, self._part, self._rows_path, self._path)

    def abandon(self) -> None:
        """Leave it as it is, for a recovery."""
        self._rows.close()
        self._npz.abandon()


def finish_samples(npz: GrowingNpz, part: Path, rows_path: Path, path: Path) -> None:
    """Put the small arrays behind the A-scans, and the file under its own name."""
    rows: NDArray[np.void] = np.empty(0, SAMPLE_ROW)
    if npz.rows:  # the file may end in half a row
        rows = np.memmap(rows_path, SAMPLE_ROW, "r", shape=(npz.rows,))
    npz.finish(
        {
            "timestamps": rows["timestamp"],
            "send_timestamps": rows["send"],
            "forces": rows["force"],
            "recv_timestamps": rows["recv"],
        }
    )
    part.rename(path)
    rows_path.unlink()


def _in_receivers_clock(stamps: Vector, sent: Vector, received: Vector) -> Vector:
    """Stamps of a sender's clock in the receiver's; as they are where no arrival is known.

    Every 10 s the least of *received − sent* is taken for the offset (a delay is never negative),
    with straight lines between, so that drift is followed.
    """
    known = np.isfinite(received) & np.isfinite(sent)
    if not known.any():
        return stamps
    sent, received = sent[known], received[known]
    block = ((received - received[0]) // _BLOCK_S).astype(np.int64)
    starts = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    least = np.minimum.reduceat(received - sent, starts)
    offset: Vector = np.interp(stamps, sent[starts], least)
    return stamps + offset


@dataclass(frozen=True)
class States:
    """A session's robot states, in the order in which they came.

    Attributes:
        received_at: (N,) in the receiver's clock, NaN where not known.
        timestamps: (N,) when the robot was sampled, in the sender's clock.
        send_timestamps: (N,) in the sender's clock.
        forces: (N,) newtons, a placeholder on most rigs.
        joints: (N, 6) degrees.
        pose: (N, 6) mm and degrees.
        sampled_at: (N,) when the robot was sampled, in the receiver's clock.
        sent_at: (N,) when it was sent, in the receiver's clock.
    """

    received_at: Vector
    timestamps: Vector
    send_timestamps: Vector
    forces: Vector
    joints: Vector
    pose: Vector
    sampled_at: Vector = field(init=False)
    sent_at: Vector = field(init=False)

    def __post_init__(self) -> None:
        """Estimate the sender's clock."""
        clock = (self.send_timestamps, self.received_at)
        object.__setattr__(self, "sampled_at", _in_receivers_clock(self.timestamps, *clock))
        object.__setattr__(self, "sent_at", _in_receivers_clock(self.send_timestamps, *clock))

    def __len__(self) -> int:
        """How many."""
        return len(self.timestamps)


@dataclass(frozen=True)
class Samples:
    """A session's force samples, in the order in which they came.

    Attributes:
        received_at: (N,) in the receiver's clock, NaN where not known.
        timestamps: (N,) when each was taken, in the sender's clock.
        send_timestamps: (N,) in the sender's clock.
        forces: (N,) float32 newtons.
        alines: (N, L) float32; where it can be, mapped from the file and read when looked at.
        sampled_at: (N,) when each was taken, in the receiver's clock.
        sent_at: (N,) when each was sent, in the receiver's clock.
    """

    received_at: Vector
    timestamps: Vector
    send_timestamps: Vector
    forces: NDArray[np.float32]
    alines: NDArray[np.float32]
    sampled_at: Vector = field(init=False)
    sent_at: Vector = field(init=False)

    def __post_init__(self) -> None:
        """Estimate the sender's clock."""
        clock = (self.send_timestamps, self.received_at)
        object.__setattr__(self, "sampled_at", _in_receivers_clock(self.timestamps, *clock))
        object.__setattr__(self, "sent_at", _in_receivers_clock(self.send_timestamps, *clock))

    def __len__(self) -> int:
        """How many."""
        return len(self.timestamps)

    def datagrams(self) -> list[slice]:
        """The rows of each datagram: those that came, or else were sent, at one moment."""
        if not len(self):
            return []
        known = np.isfinite(self.received_at).all()
        moments = self.received_at if known else self.send_timestamps
        starts = np.flatnonzero(np.diff(moments, prepend=np.nan) != 0)
        ends = [*starts[1:].tolist(), len(self)]
        return [slice(a, b) for a, b in zip(starts.tolist(), ends, strict=True)]


def _table(path: Path) -> dict[str, Vector]:
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]  # a kill may have torn the last line
    head, _, body = whole.partition(b"\n")
    names = [name.strip() for name in head.decode("utf-8", "replace").split(",")]
    if missing := [name for name in ROBOT_COLUMNS[1:] if name not in names]:
        raise SessionError(f"{path}: no column {missing[0]}")
    if not body.strip():
        return {name: np.empty(0) for name in names}
    try:
        table = np.loadtxt(io.BytesIO(body), delimiter=",", ndmin=2)
    except ValueError as error:
        raise SessionError(f"{path}: {error}") from None
    if table.shape[1] != len(names):
        raise SessionError(f"{path}: {table.shape[1]} values under {len(names)} names")
    return dict(zip(names, table.T, strict=True))


def read_states(folder: Path) -> States:
    """A session's robot states; none where it has no such file. SessionError for a broken one."""
    found = [_table(path) for _, path in layout.stamps_in(folder, "robot_state_", ".csv")]
    if not found:
        none, six = np.empty(0), np.empty((0, 6))
        return States(none, none, none, none, six, six)

    def column(name: str) -> Vector:
        parts = [t.get(name, np.full(len(t["origin_timestamp"]), np.nan)) for t in found]
        return np.concatenate(parts)

    received, origin, sent, force, *values = (column(name) for name in ROBOT_COLUMNS)
    return States(received, origin, sent, force, np.stack(values[:6], 1), np.stack(values[6:], 1))


def _npz(path: Path) -> tuple[Vector, Vector, Vector, NDArray[np.float32], NDArray[np.float32]]:
    names = ("timestamps", "send_timestamps", "recv_timestamps", "forces", ALINES)
    try:
        arrays = [array_in_npz(path, name) for name in names]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SessionError(f"{path}: not a file of samples ({error})") from None
    stamps, sent, received, forces, alines = arrays
    if stamps is None or forces is None or alines is None:
        raise SessionError(f"{path}: timestamps, forces or alines are missing")
    count = len(stamps)
    sent = stamps if sent is None else sent
    received = np.full(count, np.nan) if received is None else received
    alines = alines.reshape(count, -1) if alines.size else np.empty((count, 0), np.float32)
    for values in (sent, received, forces, alines):
        if len(values) != count or values.dtype.kind != "f":
            raise SessionError(f"{path}: arrays of different lengths or kinds")
    return (
        np.asarray(stamps, np.float64),
        np.asarray(sent, np.float64),
        np.asarray(received, np.float64),
        np.asarray(forces, np.float32),
        alines if alines.dtype == np.float32 else alines.astype(np.float32),
    )


def read_samples(folder: Path) -> Samples:
    """A session's force samples; none where it has no such file. SessionError for a broken one."""
    found = [_npz(path) for _, path in layout.stamps_in(folder, "sensor_data_", ".npz")]
    if not found:
        none, thin = np.empty(0), np.empty(0, np.float32)
        return Samples(none, none, none, thin, np.empty((0, 0), np.float32))
    stamps, sent, received, forces, alines = zip(*found, strict=True)
    joined = [np.concatenate(part) for part in (received, stamps, sent, forces)]
    # One file stays mapped; several (recording was stopped and started) are read.
    rows = alines[0] if len(alines) == 1 else np.concatenate(alines)
    return Samples(joined[0], joined[1], joined[2], joined[3].astype(np.float32), rows)
