"""The policy that all architectures run: what a perfectly trained model of one motion would say.

It has seen one recorded trajectory. Shown joints and a time, it finds the recorded row that is most
like them and gives the rows that follow. As a chunk policy it does so in one slow prediction. As a
dual-rate policy its slow half gives the part of the trajectory that follows what it saw, and its
fast half finds the present place in that from the newest joints. NumPy only; knows no socket.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.wire import RobotState
from policies.base import ActionChunk, Features, PolicyError, PolicySpec
from scripts.comparison.trajectory import Trajectory
from serving.messages import MAX_ROWS, Instructions, Observation, ServingError
from serving.served import Predicted, Request, SessionMemory

__all__ = ["FAST_ROWS", "TIME", "FollowingFastHalf", "FollowingPolicy", "Segment", "state_names"]

TIME = "time_s"
"""Name of the state value behind the joints: seconds since the robot began to move."""
FAST_ROWS = 10
"""Rows that the fast half gives at each tick; the first is executed, the rest are a reserve."""
_ALIKE = 3.0
"""Two states that differ by this many units (RMS over the joints) are as far apart as two that are
one row apart in time. So time decides, unless the joints say clearly otherwise."""
_LOOK_ROWS = 25
"""Rows to either side of the observation's time that are looked at."""
_HEADER = struct.Struct("<4sIHH")
_MAGIC = b"seg1"


def state_names(trajectory: Trajectory) -> tuple[str, ...]:
    """What an observation's state holds: the joints, then the time."""
    return (*trajectory.names, TIME)


def _nearest(
    state: NDArray[np.float64], first: int, rows: NDArray[np.float64], rate_hz: float
) -> int:
    """The place among `rows`, of which the first is row `first`, that is most like the state."""
    at = float(state[-1]) * rate_hz - first
    middle = int(np.clip(np.rint(at), 0, len(rows) - 1))
    low = max(middle - _LOOK_ROWS, 0)
    near = rows[low : middle + _LOOK_ROWS + 1]
    apart = np.mean(((near - state[:-1]) / _ALIKE) ** 2, axis=1)
    apart += (low + np.arange(len(near)) - at) ** 2
    return low + int(np.argmin(apart))


@dataclass(frozen=True, slots=True)
class Segment:
    """Features: the part of the trajectory that follows what the slow half saw.

    Attributes:
        first: number of its first row in the trajectory.
        rows: (R, A) float32.
    """

    first: int
    rows: NDArray[np.float32]

    def pack(self) -> bytes:
        """As bytes, little-endian."""
        count, joints = self.rows.shape
        return _HEADER.pack(_MAGIC, self.first, count, joints) + self.rows.astype("<f4").tobytes()

    @classmethod
    def unpack(cls, data: bytes, joints: int) -> Segment:
        """What `pack` made; PolicyError for anything else."""
        if len(data) < _HEADER.size:
            raise PolicyError("these features are cut short")
        magic, first, count, columns = _HEADER.unpack_from(data)
        if magic != _MAGIC or columns != joints or not 1 <= count <= MAX_ROWS:
            raise PolicyError("these features are not of this policy")
        if len(data) != _HEADER.size + 4 * count * columns:
            raise PolicyError("these features have another length than they say")
        rows = np.frombuffer(data, "<f4", offset=_HEADER.size).reshape(count, columns)
        if not np.isfinite(rows).all():
            raise PolicyError("these features are not finite")
        return cls(first, rows.astype(np.float32))


class FollowingPolicy:
    """Follows the trajectory; a `serving.served.ServedPolicy` for chunks and for features.

    Args:
        trajectory: to follow.
        delay_s: how long a prediction takes.
        busy: spend that computing in Python, which keeps the process's other threads waiting for
            the interpreter; otherwise waiting, as for a device.
    """

    most_batched = 1

    def __init__(self, trajectory: Trajectory, delay_s: float = 0.0, busy: bool = False) -> None:
        self._trajectory, self._delay_s, self._busy = trajectory, delay_s, busy
        self._never = threading.Event()
        self.action_names = trajectory.names
        self.dt = trajectory.period_s
        self._identity = trajectory.identity

    def admit(self, instructions: Instructions) -> SessionMemory:
        """Begin a session; bad_policy for another robot's state."""
        wanted = state_names(self._trajectory)
        if instructions.state_names != wanted:
            raise ServingError(
                "bad_policy",
                f"this trajectory's state is {', '.join(wanted)}, not "
                f"{', '.join(instructions.state_names) or 'nothing'}",
            )
        return SessionMemory(instructions)

    def predict(self, requests: Sequence[Request]) -> Sequence[Predicted | Exception]:
        """A chunk, or features where they are asked for, after the delay."""
        self._spend()
        return [self._one(request.observation, request.memory) for request in requests]

    def _one(self, observation: Observation, memory: SessionMemory) -> Predicted | Exception:
        if observation.state.shape != (len(self._trajectory.names) + 1,):
            return ServingError("failed", "the observation's state has another length")
        first, rows = self._following(observation, memory.instructions.actions_per_chunk)
        if observation.wants == "features":
            return Predicted(features=Segment(first, rows).pack(), identity=self._identity)
        return Predicted(rows)

    def _following(self, seen: Observation, count: int) -> tuple[int, NDArray[np.float32]]:
        positions = self._trajectory.positions
        state = seen.state.astype(np.float64)
        first = _nearest(state, 0, positions, self._trajectory.rate_hz)
        # Where the recording has ended the robot stays.
        rows = np.clip(first + np.arange(count), 0, len(positions) - 1)
        return first, positions[rows].astype(np.float32)

    def _spend(self) -> None:
        if not self._busy:
            self._never.wait(self._delay_s)
            return
        until, value = time.monotonic() + self._delay_s, 1
        while time.monotonic() < until:
            for _ in range(1000):
                value = value * 48271 % 0x7FFFFFFF


class FollowingFastHalf:
    """The fast half: a `policies.base.ActingPolicy` on `Segment` features.

    The newest joints and the time come as the sensor's window, one sample of `state_names`.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        """Of the same trajectory as the slow half, which its identity says."""
        self._trajectory = trajectory
        self.spec = PolicySpec(
            name="follows a recorded trajectory",
            views=(),
            image_size=(0, 0),
            sensor_window=1,
            sensor_channels=len(trajectory.names) + 1,
            rows=FAST_ROWS,
            columns=trajectory.names,
            space="joint_position",
            dt=trajectory.period_s,
            task="",
            identity=trajectory.identity,
        )

    def act(
        self,
        features: Features,
        sensor: NDArray[np.float32] | None,
        robot: RobotState | None,
        previous: ActionChunk | None,
    ) -> ActionChunk:
        """Up to `FAST_ROWS` rows from the present place in the segment on.

        Raises:
            PolicyError: there is no state, or the segment ended before it.
        """
        if not isinstance(features, Segment) or sensor is None or not len(sensor):
            raise PolicyError("the fast half needs features and the newest state")
        state = sensor[-1].astype(np.float64)
        rate_hz = self._trajectory.rate_hz
        if state[-1] * rate_hz > features.first + len(features.rows) - 0.5:
            raise PolicyError("the part of the trajectory that the features hold is over")
        place = _nearest(state, features.first, features.rows.astype(np.float64), rate_hz)
        rows = features.rows[place : place + FAST_ROWS]
        return ActionChunk(rows, np.zeros_like(rows))

    def unpack(self, data: bytes) -> Segment:
        """The features that the slow half packed; PolicyError for anything else."""
        return Segment.unpack(data, len(self._trajectory.names))
