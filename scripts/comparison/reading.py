"""A recorded trajectory from a bag of ROS 1 or ROS 2, an MCAP, or a session of the receiver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.session import Session, SessionError
from scripts.comparison.trajectory import Series, Trajectory, TrajectoryError, on_a_grid
from serving.replies import in_one_line

__all__ = ["Angles", "read_trajectory"]

Angles = Literal["radians", "degrees"]

_JOINT_STATE = "sensor_msgs/msg/JointState"
_MOST_MESSAGES = 2_000_000
_MOST_NAMES = 256
_SESSION_JOINTS = tuple(f"joint_{n}" for n in range(1, 7))


def read_trajectory(
    path: Path,
    rate_hz: float,
    *,
    topic: str = "",
    joints: Sequence[str] = (),
    angles: Angles = "radians",
) -> Trajectory:
    """The motion in `path`, resampled to `rate_hz`.

    Args:
        path: a ROS 1 `.bag`, the folder of a ROS 2 bag, an `.mcap` or `.db3` by itself, or the
            folder of a recorded session.
        rate_hz: rows a second of the result.
        topic: with `sensor_msgs/JointState`; by default the first by name that ends in
            `joint_states`, else the first there is. Sessions have none.
        joints: which ones, and in which order; by default all, as they first come.
        angles: what a bag's positions are in. ROS says radians (REP 103).

    Raises:
        TrajectoryError: one line, for what cannot be read or used.
    """
    if not path.exists():
        raise TrajectoryError(f"{path}: no such file or folder")
    if path.is_dir() and not (path / "metadata.yaml").exists():
        if topic:
            raise TrajectoryError(
                f"{path}: no metadata.yaml, so no ROS 2 bag, and --topic is given"
            )
        return on_a_grid(_of_session(path), rate_hz, path.name, joints)
    series = _of_bag(path, topic)
    if angles == "radians":
        series = {name: (at, np.degrees(values)) for name, (at, values) in series.items()}
    return on_a_grid(series, rate_hz, path.name, joints)


def _of_session(path: Path) -> dict[str, Series]:
    try:
        session = Session(path)
        states = session.states
    except SessionError as error:
        raise TrajectoryError(
            f"{error}; a bag is a .bag, an .mcap, or a folder with metadata.yaml"
        ) from None
    if not len(states):
        raise TrajectoryError(f"{path}: the session holds no robot states")
    at = states.sampled_at - states.sampled_at[0]
    return {name: (at, states.joints[:, k]) for k, name in enumerate(_SESSION_JOINTS)}


@dataclass(slots=True)
class _Collected:
    """Samples of the joints of one topic.

    Messages may name their joints in any order, and name some only: an arm and a gripper may
    publish on one topic in turn.

    Attributes:
        stamps: joint → nanoseconds of the headers.
        logged: joint → nanoseconds at which the messages were recorded.
        values: joint → positions.
        messages: that were looked at.
        odd: messages that do not have one position for each name.
    """

    stamps: dict[str, list[int]] = field(default_factory=dict)
    logged: dict[str, list[int]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    messages: int = 0
    odd: int = 0

    def add(self, message: Any, logged_ns: int) -> None:
        """Take one message."""
        self.messages += 1
        names, positions = list(message.name), message.position
        if not len(positions):
            return  # velocities or efforts alone are allowed
        if len(names) != len(positions) or len(names) > _MOST_NAMES:
            self.odd += 1
            return
        stamp = int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)
        for name, value in zip(names, positions, strict=True):
            self.stamps.setdefault(str(name), []).append(stamp)
            self.logged.setdefault(str(name), []).append(logged_ns)
            self.values.setdefault(str(name), []).append(float(value))

    def series(self, where: str) -> dict[str, Series]:
        """Seconds since the first sample, and positions; by headers' stamps where all have some."""
        if not self.values:
            odd = f"; {self.odd} messages have another number of names" if self.odd else ""
            raise TrajectoryError(f"{where}: no positions in {self.messages} messages{odd}")
        stamped = all(min(stamps) > 0 for stamps in self.stamps.values())
        times = self.stamps if stamped else self.logged
        first = min(min(one) for one in times.values())
        return {
            # Differences first: nanoseconds since 1970 do not fit into a float.
            name: (np.array([t - first for t in times[name]]) / 1e9, np.array(values))
            for name, values in self.values.items()
        }


def _of_bag(path: Path, topic: str) -> dict[str, Series]:
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError:
        raise TrajectoryError(
            "reading bags needs rosbags, which is not installed: pip install '.[bags]'"
        ) from None
    collected = _Collected()
    try:
        # Bags of before 2023 do not hold their messages' definitions.
        default = get_typestore(Stores.ROS2_HUMBLE)
        with AnyReader([path], default_typestore=default) as reader:
            found = [c for c in reader.connections if c.msgtype == _JOINT_STATE]
            chosen = _choose(path, topic, [c.topic for c in found])
            connections = [c for c in found if c.topic == chosen]
            for connection, logged_ns, raw in reader.messages(connections):
                if collected.messages >= _MOST_MESSAGES:
                    raise TrajectoryError(f"{path}: over {_MOST_MESSAGES:,} messages on {chosen}")
                collected.add(reader.deserialize(raw, connection.msgtype), logged_ns)
    except (TrajectoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # a damaged file comes out of the library as almost anything
        raise TrajectoryError(f"{path}: cannot be read as a bag ({in_one_line(error)})") from None
    return collected.series(f"{path}, {chosen}")


def _choose(path: Path, wanted: str, topics: Sequence[str]) -> str:
    there = sorted(set(topics))
    if not there:
        raise TrajectoryError(f"{path}: no topic with sensor_msgs/JointState")
    if wanted:
        if wanted not in there:
            raise TrajectoryError(
                f"{path}: no JointState on {wanted}; there are {', '.join(there)}"
            )
        return wanted
    return next((topic for topic in there if topic.endswith("joint_states")), there[0])
