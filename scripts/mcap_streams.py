"""The streams of a recorded session as messages: what an MCAP file of it holds, topic by topic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.FrameTransform_pb2 import FrameTransform
from foxglove_schemas_protobuf.JointState_pb2 import JointState
from foxglove_schemas_protobuf.JointStates_pb2 import JointStates
from foxglove_schemas_protobuf.Log_pb2 import Log
from foxglove_schemas_protobuf.PoseInFrame_pb2 import PoseInFrame
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from numpy.typing import NDArray

from common.session import FrameEntry, Session, SessionError
from scripts.mcap_schemas import ACTION, FORCE, UPDATE, mobile_xyz_quaternion

__all__ = ["BASE", "FLANGE", "Stream", "streams_of"]

BASE, FLANGE = "base", "flange"
_OPTIONAL = ("episode", "action_number", "vl_update_number", "vl_reuse", "sensor_samples")
_OPTIONAL_MS = ("lateness_ms", "feature_age_ms")
_MOST_COUNT = 1 << 63


@dataclass(frozen=True)
class Stream:
    """One topic.

    Attributes:
        topic: its name.
        kind: the protobuf class of its messages.
        logged_at: (N,) when each came, in the receiver's clock.
        captured_at: (N,) when each was captured, in the receiver's clock.
        message: makes message n, its timestamp aside.
        sequence: the sender's count of message n; the index where it does not count.
        about: shown with the topic.
    """

    topic: str
    kind: Any
    logged_at: NDArray[np.float64]
    captured_at: NDArray[np.float64]
    message: Callable[[int], Any]
    sequence: Callable[[int], int] = lambda index: index
    about: Mapping[str, str] = field(default_factory=dict)


def streams_of(session: Session) -> list[Stream]:
    """Every stream that the session holds; SessionError for what cannot be used."""
    found = [_pictures(view, session.frames(view)) for view in session.views]
    found += _robot(session)
    found += _sensor(session)
    found += _inference(session)
    return [stream for stream in found if len(stream.logged_at)]


def _where_known(times: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """`times`, and `other` where they are not known: older rigs noted no arrivals."""
    return np.where(np.isfinite(times), times, other)


def _pictures(view: str, entries: Sequence[FrameEntry]) -> Stream:
    def message(index: int) -> Any:
        return CompressedImage(frame_id=view, format="jpeg", data=entries[index].read())

    def sequence(index: int) -> int:
        seq = entries[index].seq
        return index if seq is None else seq

    captured = np.array([entry.captured_at for entry in entries])
    arrived = np.array([entry.arrived_at for entry in entries])
    cameras = ", ".join(sorted({entry.camera for entry in entries}))
    return Stream(
        f"/views/{view}",
        CompressedImage,
        _where_known(arrived, captured),
        captured,
        message,
        sequence,
        {"camera": cameras},
    )


def _robot(session: Session) -> list[Stream]:
    states = session.states
    times = (_where_known(states.received_at, states.sent_at), states.sampled_at)
    joints_rad, meters = np.radians(states.joints), states.pose[:, :3] / 1e3

    def joints(index: int) -> Any:
        angles = joints_rad[index].tolist()
        named = [JointState(name=f"joint_{n}", position=a) for n, a in enumerate(angles, 1)]
        return JointStates(joints=named)

    def fill(index: int, position: Any, rotation: Any) -> None:
        position.x, position.y, position.z = meters[index].tolist()
        turned = mobile_xyz_quaternion(states.pose[index, 3:])
        rotation.x, rotation.y, rotation.z, rotation.w = turned

    def pose(index: int) -> Any:
        made = PoseInFrame(frame_id=BASE)
        fill(index, made.pose.position, made.pose.orientation)
        return made

    def transform(index: int) -> Any:
        made = FrameTransform(parent_frame_id=BASE, child_frame_id=FLANGE)
        fill(index, made.translation, made.rotation)
        return made

    streams = [
        Stream("/robot/joints", JointStates, *times, joints, about={"unit": "rad"}),
        Stream("/robot/pose", PoseInFrame, *times, pose, about={"unit": "m"}),
        Stream("/tf", FrameTransform, *times, transform, about={"unit": "m"}),
    ]
    # A placeholder, 0, on most rigs.
    if states.forces.any():
        streams.append(
            Stream("/robot/force", FORCE, *times, lambda n: FORCE(force_n=states.forces[n]))
        )
    return streams


def _sensor(session: Session) -> list[Stream]:
    samples = session.samples
    logged = _where_known(samples.received_at, samples.sent_at)
    forces = Stream(
        "/sensor/force",
        FORCE,
        logged,
        samples.sampled_at,
        lambda n: FORCE(force_n=samples.forces[n]),
        about={"unit": "N"},
    )
    if not samples.alines.size:
        return [forces]
    datagrams = samples.datagrams()

    def scans(index: int) -> Any:
        rows = np.ascontiguousarray(samples.alines[datagrams[index]], "<f4")
        height, width = rows.shape
        return RawImage(
            frame_id="sensor",
            width=width,
            height=height,
            encoding="32FC1",
            step=rows.strides[0],
            data=rows.tobytes(),
        )

    firsts = np.array([rows.start for rows in datagrams], np.int64)
    about = {"rows": "A-scans of one datagram, oldest first", "columns": "depth"}
    return [
        forces,
        Stream(
            "/sensor/ascans",
            RawImage,
            logged[firsts],
            samples.sampled_at[firsts],
            scans,
            about=about,
        ),
    ]


def _number(entry: Mapping[str, Any], key: str) -> float | None:
    """A finite number under `key`, None where there is none."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _rows(entry: Mapping[str, Any], key: str, where: str) -> list[dict[str, list[float]]]:
    try:
        rows = np.asarray(entry.get(key) or np.empty((0, 0)), np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.ndim != 2:
        raise SessionError(f"{where}: {key} are not rows of numbers")
    return [{"values": row} for row in rows.tolist()]


def _action(entry: Mapping[str, Any], where: str) -> Any:
    rows = _rows(entry, "actions", where)
    values: dict[str, Any] = {"rows": rows, "first": rows[0]["values"] if rows else []}
    values |= {key: _rows(entry, key, where) for key in ("proposed", "delta")}
    counts = {key: _number(entry, key) for key in _OPTIONAL}
    values |= {k: int(v) for k, v in counts.items() if v is not None and 0 <= v < _MOST_COUNT}
    values |= {key: v for key in _OPTIONAL_MS if (v := _number(entry, key)) is not None}
    if (seconds := _number(entry, "inference_time")) is not None:
        values["inference_ms"] = 1e3 * seconds
    if (force := _number(entry, "force")) is not None:
        values["force_n"] = force
    cut = entry.get("limits_applied")
    values["limits_applied"] = [str(name) for name in cut] if isinstance(cut, list) else []
    values["task"] = str(entry.get("task") or "")
    return ACTION(**values)


def _inference(session: Session) -> list[Stream]:
    results = session.results
    out = np.array([float(entry["timestamp"]) for entry in results])
    due = np.array([_number(entry, "deadline") or float(entry["timestamp"]) for entry in results])

    def action(index: int) -> Any:
        return _action(results[index], f"{session.folder}: inference result {index}")

    # The slow passes are known by the actions that used them: one that served none is not.
    updates: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for entry in results:
        keys = ("vl_started_at", "vl_ready_at", "vl_update_number")
        found = tuple(_number(entry, key) for key in keys)
        if None not in found:
            updates.setdefault(found, entry)
    passes = sorted(updates.items(), key=lambda item: item[0][1])
    started, ready = (np.array([key[n] for key, _ in passes], np.float64) for n in (0, 1))

    def update(index: int) -> Any:
        (start, end, number), entry = passes[index]
        return UPDATE(
            number=max(int(number), 0),
            duration_ms=1e3 * (end - start),
            task=str(entry.get("task") or ""),
        )

    said = _said(results)
    at = np.array([moment for moment, _ in said], np.float64)
    return [
        Stream("/actions", ACTION, out, due, action),
        Stream("/vl_updates", UPDATE, ready, started, update),
        Stream(
            "/log", Log, at, at, lambda n: Log(level=Log.INFO, name="dualrate", message=said[n][1])
        ),
    ]


def _said(results: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """What changed, in words: the task, and which limits cut something."""
    found: list[tuple[float, str]] = []
    task, limits = "", ""
    for entry in results:
        now, cut = str(entry.get("task") or ""), entry.get("limits_applied")
        named = ", ".join(map(str, cut)) if isinstance(cut, list) else ""
        if now != task:
            found.append((float(entry["timestamp"]), f"task: {now}"))
        if named != limits:
            found.append((float(entry["timestamp"]), f"limits: {named or 'none any more'}"))
        task, limits = now, named
    return found
