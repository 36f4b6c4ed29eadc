"""A policy that knows where the port is: to try the harness out, and to see what latency costs it.

Its slow half reads the layout off the rig instead of off pictures. Its fast half does what a
trained one has to: it finds the surface in the A-scans and the tip from the joints. It expects the
surface to go on as it moves now, and for a short while only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.wire import RobotState
from policies.base import ActionChunk, Features, PolicyError, PolicySpec
from sim.ascan import RANGE_MM, SAMPLES
from sim.expert import joints_for_tip
from sim.layout import HOME_DEG, Layout, TissueKind, tip_transform
from sim.rig import InsertionRig
from sim.task import DISTANCE_MM, TASK

__all__ = ["OraclePolicy", "surface_mm"]

Vector = NDArray[np.float64]

_ROWS, _DT_S = 16, 0.1
_LATERAL_MM_S, _DEPTH_MM_S = 6.0, 10.0
_TURN_DEG_S, _STRAIGHT_RAD = 12.0, 2e-3
_ALIGNED_MM = 0.4
_WAIT_DEPTH_MM = -2.0
_INSIDE_MM = -0.5
# A swing's speed has an end; irregular tissue is for moments twice as fast as a swing ever is.
_HASTE: Mapping[TissueKind, float] = {"regular": 1.0, "irregular": 2.0}
_FORESEEN_S = 0.2
# From the middle of the newest scans to the chunk's arrival, and the arm's own lag.
_LAG_S = 0.035
_STILL_MM = 1e-4
# Speckle has a mean of 1 and a deviation of half of that: over this many scans it is even enough.
_SCANS, _DEPTHS = 12, 3
_WINDOW, _SENSOR_HZ = 65, 650.0
_SPAN_S = (_WINDOW - _SCANS) / _SENSOR_HZ
_SURFACE = 0.3  # between the noise floor and the surface's peak


def surface_mm(scans: NDArray[np.float32]) -> float:
    """How far the surface is in A-scans (n, 1025) of about one instant; NaN where none shows."""
    profile = np.convolve(scans.mean(axis=0), np.full(_DEPTHS, 1.0 / _DEPTHS), "same")
    above = np.flatnonzero(profile > _SURFACE)
    if not len(above):
        return math.nan
    first = int(above[0])
    # The peak is at the surface itself, a few samples behind where the flank is met.
    peak = first + int(np.argmax(profile[first : first + 8]))
    return peak * RANGE_MM / (SAMPLES - 1)


class OraclePolicy:
    """Approaches, aligns, inserts and follows; joint positions, a row each 0.1 s."""

    def __init__(self, rig: InsertionRig) -> None:
        """Read the layouts of this rig's episodes."""
        self._rig = rig
        self._acted: tuple[float, float] | None = None  # when, and how deep the tip was then
        self.spec = PolicySpec(
            name="oracle",
            views=("View4",),
            image_size=(320, 180),
            sensor_window=_WINDOW,
            sensor_channels=1 + SAMPLES,
            rows=_ROWS,
            columns=("J1", "J2", "J3", "J4", "J5", "J6", "gripper"),
            space="joint_position",
            dt=_DT_S,
            task=TASK,
            identity="oracle",
        )

    def encode(self, images: Mapping[str, NDArray[np.uint8]], task: str) -> Features:
        """The layout; the pictures are not looked at."""
        return self._rig.layout

    def pack(self, features: Features) -> bytes:
        """Not for another process: PolicyError."""
        raise PolicyError("the oracle's features stay where they are")

    def unpack(self, data: bytes) -> Features:
        """Not from another process: PolicyError."""
        raise PolicyError("the oracle's features stay where they are")

    def act(
        self,
        features: Features,
        sensor: NDArray[np.float32] | None,
        robot: RobotState | None,
        previous: ActionChunk | None,
    ) -> ActionChunk:
        """Rows from where the robot is, by the layout and the surface that the A-scans show."""
        if robot is None:
            raise PolicyError("the oracle must know the robot's joints")
        layout: Layout = features
        port = layout.eye_mm + layout.port_mm
        joints = np.array(robot.joints)
        needle, tip = tip_transform(joints)
        along = tip - port
        depth = float(along @ layout.axis)
        aside = along - depth * layout.axis
        surface = self._surface(sensor, depth, self._moved_mm(robot, depth, previous), layout)
        self._acted = (robot.origin_timestamp, depth)
        rows = np.zeros((_ROWS, 7), np.float32)
        gone = tip
        reach = _HASTE[self._rig.config.tissue] * _DEPTH_MM_S * _DT_S
        for index in range(_ROWS):
            off_mm = float(np.linalg.norm(aside))
            free = off_mm < _ALIGNED_MM or depth > _INSIDE_MM
            wanted = _WAIT_DEPTH_MM
            if free and surface is not None:
                wanted = surface.at((index + 1) * _DT_S) - DISTANCE_MM
            depth += float(np.clip(wanted - depth, -reach, reach))
            aside = aside * (1.0 - min(_LATERAL_MM_S * _DT_S / max(off_mm, 1e-9), 1.0))
            goal = port + depth * layout.axis + aside
            turned = _turned(needle, layout.axis, math.radians(_TURN_DEG_S * _DT_S))
            if np.abs(goal - gone).max() > _STILL_MM or (turned != needle).any():
                joints, gone, needle = joints_for_tip(goal, turned, joints), goal, turned
            rows[index, :6] = joints
        return ActionChunk(rows, rows - np.array([*HOME_DEG, 0.0], np.float32))

    def _moved_mm(self, robot: RobotState, depth: float, previous: ActionChunk | None) -> float:
        """How much deeper the tip has come during the window: what it was told, where known."""
        acted = self._acted
        if previous is None or acted is None:
            return 0.0
        elapsed_s = robot.origin_timestamp - acted[0]
        if not 0.0 < elapsed_s <= _ROWS * _DT_S:
            return 0.0
        if elapsed_s < 1.5 * _DT_S:
            return (depth - acted[1]) / elapsed_s * _SPAN_S
        index = min(max(round(elapsed_s / _DT_S) - 1, 1), _ROWS - 1)
        layout = self._rig.layout
        before, after = (
            float(tip_transform(previous.actions[k, :6].astype(float))[1] @ layout.axis)
            for k in (index - 1, index)
        )
        return (after - before) / _DT_S * _SPAN_S

    def _surface(
        self, sensor: NDArray[np.float32] | None, depth: float, moved_mm: float, layout: Layout
    ) -> _Surface | None:
        """The surface as the A-scans show it; None where they do not."""
        if sensor is None or len(sensor) < _WINDOW:
            return None
        scans = sensor[:, 1:]
        new, old = surface_mm(scans[-_SCANS:]), surface_mm(scans[:_SCANS])
        if not math.isfinite(new):
            return None
        config = self._rig.config
        omega = 2.0 * math.pi * config.tissue_hz
        off = depth + new - config.tissue_depth_mm
        speed = (new - old + moved_mm) / _SPAN_S if math.isfinite(old) else 0.0
        # That is of the window's middle; it changes as a swing's does.
        speed -= omega * omega * off * 0.5 * _SPAN_S
        most = _HASTE[config.tissue] * (omega * config.tissue_amplitude_mm)
        speed = min(max(speed, -most), most)
        return _Surface(config.tissue_depth_mm, off, speed, omega)


@dataclass(frozen=True, slots=True)
class _Surface:
    """A surface that swings: its middle and how far it is off it (mm), mm/s, radians a second."""

    middle: float
    off: float
    speed: float
    omega: float

    def at(self, ahead_s: float) -> float:
        """Its depth in the port, so long after now; after a while it is thought to stand still."""
        angle = self.omega * (min(ahead_s, _FORESEEN_S) + _LAG_S)
        swing = self.off * math.cos(angle)
        if self.omega > 0:
            swing += self.speed / self.omega * math.sin(angle)
        return self.middle + swing


def _turned(direction: Vector, towards: Vector, most_rad: float) -> Vector:
    """A unit vector turned towards another by at most so much; itself once it is nearly there."""
    angle = math.acos(min(max(float(direction @ towards), -1.0), 1.0))
    if angle < _STRAIGHT_RAD:
        return direction
    turned = direction + min(most_rad / angle, 1.0) * (towards - direction)
    return np.asarray(turned / np.linalg.norm(turned))
