"""Bags of every kind for tests, written with the rosbags library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

START_NS = 1_760_000_000_000_000_000
KINDS = ("ros1", "sqlite3", "mcap", "plain mcap", "plain db3")


@dataclass(frozen=True)
class Said:
    """One JointState: seconds of its stamp (None: no stamp), names, radians, topic."""

    at: float | None
    names: Sequence[str]
    positions: Sequence[float]
    topic: str = "/joint_states"
    logged_late_s: float = 0.0


def write(kind: str, folder: Path, said: Sequence[Said], others: Sequence[str] = ()) -> Path:
    """A bag of these messages, and one String on each of the topics `others`; its path."""
    ros1 = kind == "ros1"
    types = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
    state = types.types["sensor_msgs/msg/JointState"]
    header, stamp = types.types["std_msgs/msg/Header"], types.types["builtin_interfaces/msg/Time"]
    text = types.types["std_msgs/msg/String"]
    serialize = types.serialize_ros1 if ros1 else types.serialize_cdr
    path = folder / ("bag.bag" if ros1 else "bag")
    plugin = StoragePlugin.SQLITE3 if kind in ("sqlite3", "plain db3") else StoragePlugin.MCAP
    writer = Writer1(path) if ros1 else Writer2(path, version=9, storage_plugin=plugin)
    with writer:
        topics = {}
        for topic in dict.fromkeys(one.topic for one in said):
            topics[topic] = writer.add_connection(topic, state.__msgtype__, typestore=types)
        for other in others:
            spoken = writer.add_connection(other, text.__msgtype__, typestore=types)
            writer.write(spoken, START_NS, serialize(text(data="hello"), text.__msgtype__))
        for k, one in enumerate(said):
            ns = 0 if one.at is None else START_NS + round(one.at * 1e9)
            logged = (ns or START_NS + k * 20_000_000) + round(one.logged_late_s * 1e9)
            now = stamp(sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)
            about = {"seq": k} if ros1 else {}
            message = state(
                header=header(stamp=now, frame_id="base", **about),
                name=list(one.names),
                position=np.array(one.positions, np.float64),
                velocity=np.empty(0),
                effort=np.empty(0),
            )
            writer.write(topics[one.topic], logged, serialize(message, state.__msgtype__))
    if kind.startswith("plain"):
        return path / f"bag.{kind.removeprefix('plain ')}"
    return path
