"""Make the example bag: a minute of the simulated rig's arm, as a ROS 2 bag of joint states.

    python scripts/make_example_bag.py --out assets/example_bag

The arm is the rig's own, with its physics, in virtual time: wide moves of all six joints, two
approaches with an insertion into the eye's port, searching about it, and fast moves between.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray

from common import cli
from sim.layout import HOME_DEG, TIP_FROM_FLANGE_MM, RigConfig, tip_transform
from sim.rig import InsertionRig

__all__ = ["BagOptions", "drive", "main", "write_bag"]

RATE_HZ = 50
NAMES = tuple(f"joint_{n}" for n in range(1, 7))
TOPIC = "/joint_states"
START_NS = 1_767_225_600_000_000_000
"""Stamp of the first message: 2026-01-01, 00:00 UTC. The same bag comes out each time."""
_SPEED_SHARE = 0.5
_FAR_MM = 45.0
_DEPTH_MM = 4.0
_FADE_S = 1.5


@dataclass(frozen=True)
class BagOptions:
    """Make the example bag."""

    out: Path = Path("assets/example_bag")
    """Folder of the bag; must not be there, unless --overwrite."""
    seed: int = 7
    """Where the port is."""
    overwrite: bool = False
    """Replace what is there."""


class _Pilot:
    """Leads the arm along smooth ways and notes its joints, 50 times a second."""

    def __init__(self, seed: int) -> None:
        self._rig = InsertionRig(RigConfig(joint_speed_share=_SPEED_SHARE), seed)
        self._substeps = round(self._rig.config.physics_hz / RATE_HZ)
        self._euler = self._rig.pose[3:].copy()
        self._along = tip_transform(HOME_DEG)[0]
        self._port = self._rig.layout.eye_mm + self._rig.layout.port_mm
        self.rows: list[NDArray[np.float64]] = [self._rig.joints_deg.copy()]

    def joints(self, seconds: float, *by_deg: float) -> None:
        """Move every joint to home plus `by_deg`, smoothly from rest to rest."""
        self._go(seconds, np.array(HOME_DEG) + np.array(by_deg))

    def back(self, seconds: float, row: int) -> None:
        """Move every joint to where it was at a row."""
        self._go(seconds, self.rows[row])

    def _go(self, seconds: float, end: NDArray[np.float64]) -> None:
        start = self.rows[-1].copy()
        for share in _eased(seconds):
            self._rig.command_joints(start + share * (end - start))
            self._step()

    def tip(self, seconds: float, depth_mm: float, aside_mm: tuple[float, float] = (0, 0)) -> None:
        """Bring the tip to `depth_mm` past the port (negative: before it), beside its axis."""
        across = np.cross([0.0, 0.0, 1.0], self._along)
        across /= np.linalg.norm(across)
        third = np.cross(self._along, across)
        goal = self._port + depth_mm * self._rig.layout.axis
        goal = goal + aside_mm[0] * across + aside_mm[1] * third
        start, end = self._rig.pose[:3].copy(), goal - TIP_FROM_FLANGE_MM * self._along
        for share in _eased(seconds):
            self._rig.command_pose(np.concatenate([start + share * (end - start), self._euler]))
            self._step()

    def stir(self, seconds: float, *sizes_deg: float) -> None:
        """Swing every joint about where it is, each at a pace of its own."""
        middle = self.rows[-1].copy()
        rates = 0.20 + 0.05 * np.arange(6)
        for k in range(round(seconds * RATE_HZ)):
            at = (k + 1) / RATE_HZ
            # In and out gently: the swings begin and end at rest.
            x = min(at, seconds - at, _FADE_S) / _FADE_S
            swing = x * x * (3.0 - 2.0 * x) * np.sin(2 * math.pi * rates * at)
            self._rig.command_joints(middle + np.array(sizes_deg) * swing)
            self._step()

    def wait(self, seconds: float) -> None:
        """Stay."""
        self._rig.hold()
        for _ in range(round(seconds * RATE_HZ)):
            self._step()

    def _step(self) -> None:
        self._rig.step(self._substeps)
        self.rows.append(self._rig.joints_deg.copy())


def _eased(seconds: float) -> Iterator[float]:
    """Shares of a way from 0 to 1 with the least jerk (Flash and Hogan, 1985)."""
    ticks = round(seconds * RATE_HZ)
    for k in range(1, ticks + 1):
        x = k / ticks
        yield x**3 * (10.0 - 15.0 * x + 6.0 * x * x)


def drive(seed: int) -> NDArray[np.float64]:
    """Joint angles (N, 6) in degrees, 50 a second."""
    pilot = _Pilot(seed)
    pilot.wait(0.5)
    pilot.tip(2.5, -_FAR_MM)
    far = len(pilot.rows) - 1  # the needle well before the port, and along its axis
    pilot.joints(3.0, -35.0, -25.0, 10.0, 25.0, -20.0, 30.0)
    pilot.stir(9.5, 20.0, 10.0, 12.0, 25.0, 18.0, 30.0)
    pilot.joints(3.5, 30.0, -30.0, 20.0, -30.0, 15.0, -40.0)
    pilot.back(3.0, far)
    for aside in ((3.0, -2.0), (-2.5, 2.5)):
        pilot.tip(1.8, -20.0, aside)
        pilot.tip(1.2, -6.0, (aside[0] / 2, aside[1] / 2))
        pilot.tip(1.2, -3.0)
        pilot.tip(1.8, _DEPTH_MM)
        pilot.wait(0.8)
        pilot.tip(0.8, _DEPTH_MM - 2.0)
        pilot.tip(0.8, _DEPTH_MM)
        pilot.tip(1.6, -_FAR_MM)
        pilot.joints(2.0, 20.0, -20.0, 10.0, 25.0, -15.0, 30.0)
        pilot.back(2.0, far)
    pilot.joints(1.5, -15.0, -20.0, 10.0, -20.0, -10.0, -30.0)
    pilot.stir(4.5, 12.0, 8.0, 10.0, 20.0, 15.0, 25.0)
    pilot.back(2.0, far)
    return np.array(pilot.rows)


def write_bag(path: Path, joints_deg: NDArray[np.float64]) -> None:
    """Write (N, 6) degrees as a ROS 2 bag (MCAP storage) of JointState messages, in radians."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_HUMBLE)
    state, header = types.types["sensor_msgs/msg/JointState"], types.types["std_msgs/msg/Header"]
    stamp = types.types["builtin_interfaces/msg/Time"]
    positions = np.radians(joints_deg)
    speeds = np.gradient(positions, 1.0 / RATE_HZ, axis=0)
    nothing = np.empty(0)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection(TOPIC, state.__msgtype__, typestore=types)
        for k in range(len(positions)):
            at = START_NS + k * 1_000_000_000 // RATE_HZ
            now = stamp(sec=at // 1_000_000_000, nanosec=at % 1_000_000_000)
            message = state(
                header=header(stamp=now, frame_id="base"),
                name=list(NAMES),
                position=positions[k],
                velocity=speeds[k],
                effort=nothing,
            )
            writer.write(topic, at, types.serialize_cdr(message, state.__msgtype__))


def main() -> int:
    """Drive, and write; the exit code."""
    options = cli.parse(BagOptions)
    try:
        import rosbags  # noqa: F401
    except ModuleNotFoundError:
        cli.fail("writing bags needs rosbags, which is not installed: pip install '.[bags]'")
    if options.out.exists() and not options.overwrite:
        cli.fail(f"{options.out} exists already; --overwrite replaces it")
    joints_deg = drive(options.seed)
    try:
        if options.out.exists():
            shutil.rmtree(options.out)
        write_bag(options.out, joints_deg)
    except OSError as error:
        cli.fail(f"{options.out}: {error.strerror}", 1)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {len(joints_deg) / RATE_HZ:.1f} s, {size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
