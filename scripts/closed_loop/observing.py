"""What the receiver's fast loop knows at one instant of the virtual rig's time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.wire import CameraFrame
from receiver.inputs import StoredFrame, StoredState
from receiver.observation import Observation
from scripts.closed_loop.rig import VirtualRig

__all__ = ["observe"]


def observe(rig: VirtualRig, views: Sequence[str], samples: int) -> Observation:
    """The newest of every stream, as the receiver's own observer would have it.

    The frames are empty: the guard looks at their times, and only the slow loop at the pictures.
    """
    at, captured_at = rig.time_s, rig.sight().captured_at
    frames = {
        view: StoredFrame(CameraFrame(view, captured_at, b""), captured_at, captured_at)
        for view in views
    }
    newest = rig.sensor.newest
    sensor: NDArray[np.float32] = rig.sensor.window(newest, samples)
    # A datagram leaves when its last sample is there.
    sensor_at = rig.sensor.taken_at(newest) if newest >= 0 else None
    robot = rig.robot()
    return Observation(
        at=at,
        frames=frames,
        sensor=sensor,
        sensor_at=sensor_at,
        sensor_age_s=float("inf") if sensor_at is None else at - sensor_at,
        force_peak_n=rig.sensor.force_peak_n(samples),
        robot=StoredState(robot, robot.origin_timestamp, robot.send_timestamp),
    )
