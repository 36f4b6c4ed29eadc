"""Sessions made for tests: with the recorder's own files, and as older rigs wrote them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.session import layout
from common.session.frames import FrameFiles
from common.session.rows import SampleFile, StateFile
from common.wire import CameraFrame, RobotState, SampleBatch

START = 1_760_000_000.0
STAMP = layout.stamp_of(START)


@dataclass(frozen=True)
class Made:
    """What a made session holds: the sender's clock is `behind_s` behind the receiver's."""

    seconds: float = 2.0
    views: tuple[str, ...] = ("View1", "View2")
    size: tuple[int, int] = (64, 36)
    fps: float = 30.0
    robot_hz: float = 100.0
    sensor_hz: float = 650.0
    batch: int = 10
    aline_length: int = 1025
    action_hz: float = 10.0
    behind_s: float = 5.0
    delay_s: float = 0.002
    start: float = START
    task: str = "touch the port"


def picture(view: int, number: int, size: tuple[int, int]) -> bytes:
    """A JPEG that differs from every other: a bright bar that moves over a flat colour."""
    width, height = size
    image = np.full((height, width, 3), (40 * view % 256, 90, 160), np.uint8)
    x = (7 * number) % width
    image[:, x : x + max(width // 8, 1)] = 255
    image[: max(height // 6, 1), :, 0] = number % 256
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    return bytes(data.tobytes())


def make_session(parent: Path, made: Made | None = None) -> Path:
    """A finished session under `parent`; its folder."""
    made = made or Made()
    stamp = layout.stamp_of(made.start)
    folder = parent / layout.folder_name(stamp)
    folder.mkdir(parents=True)
    _frames(folder, stamp, made)
    _states(folder, stamp, made)
    _samples(folder, stamp, made)
    results = [_result(made, k) for k in range(int(made.seconds * made.action_hz))]
    (folder / layout.results_name(stamp)).write_text(json.dumps(results))
    note = {"format": 1, "task": made.task, "finished": True, "sensor_hz": made.sensor_hz}
    (folder / layout.session_name(stamp)).write_text(json.dumps(note))
    return folder


def _frames(folder: Path, stamp: str, made: Made) -> None:
    files = FrameFiles(folder, stamp)
    for k in range(int(made.seconds * made.fps)):
        for number, view in enumerate(made.views):
            at = made.start + k / made.fps + 0.001 * number
            theirs = at - made.behind_s
            jpeg = picture(number, k, made.size)
            frame = CameraFrame(f"cam{number}", theirs, jpeg, k, theirs + 0.005)
            files.add(view, frame, at, at + 0.005 + made.delay_s)
    files.close()


def joints_at(seconds: float) -> tuple[float, ...]:
    """Six joint angles that move smoothly, degrees."""
    return tuple(10.0 * n + 5.0 * np.sin(seconds + n) for n in range(6))


def _states(folder: Path, stamp: str, made: Made) -> None:
    file = StateFile(folder, stamp)
    for k in range(int(made.seconds * made.robot_hz)):
        at = made.start + k / made.robot_hz
        theirs = at - made.behind_s
        joints = np.float32(joints_at(at - made.start)).tolist()
        pose = np.float32([190.0, 0.1 * k, 308.0, 0.0, 90.0, 0.0]).tolist()
        state = RobotState(theirs, theirs + 0.0002, 0.0, tuple(joints), tuple(pose))
        file.add(state, at + 0.0002 + made.delay_s)
    file.close()


def _samples(folder: Path, stamp: str, made: Made) -> None:
    file = SampleFile(folder, stamp, made.aline_length)
    rng = np.random.default_rng(0)
    for k in range(int(made.seconds * made.sensor_hz / made.batch)):
        index = k * made.batch + np.arange(made.batch)
        at = made.start + index / made.sensor_hz
        sent = np.full(made.batch, at[-1] + 0.001 - made.behind_s)
        forces = np.float32(0.5 + 0.3 * np.sin(at - made.start))
        alines = rng.random((made.batch, made.aline_length), np.float32)
        batch = SampleBatch(at - made.behind_s, sent, forces, alines)
        file.add(batch, float(sent[0]) + made.behind_s + made.delay_s)
    file.finish()


def _result(made: Made, k: int) -> dict[str, Any]:
    at = made.start + (k + 1) / made.action_hz
    actions = np.tile((*joints_at(at - made.start), 0.5), (8, 1))
    update = 1 + k // 4
    started = made.start + (update - 1) * 4 / made.action_hz
    return {
        "timestamp": at + 0.012,
        "actions": actions.tolist(),
        "delta": np.zeros((8, 7)).tolist(),
        "inference_time": 0.01 + 0.001 * (k % 3),
        "vl_update_number": update,
        "robot_state": {
            "joints": list(joints_at(at - made.start)),
            "pose": [190.0, 0.0, 308.0, 0.0, 90.0, 0.0],
            "timestamp": at - made.behind_s,
        },
        "episode": 1,
        "action_number": k + 1,
        "deadline": at,
        "lateness_ms": 0.1 * (k % 5),
        "vl_started_at": started,
        "vl_ready_at": started + 0.2,
        "vl_reuse": k % 4 + 1,
        "feature_age_ms": 200.0 + 100.0 * (k % 4),
        "sensor_samples": 65,
        "force": 0.5,
        "proposed": actions.tolist(),
        "limits_applied": [],
        "task": made.task,
    }


def make_older_session(parent: Path, made: Made | None = None) -> Path:
    """The same as older rigs write it: no index, no arrival times, six keys a result."""
    made = made or Made()
    folder = make_session(parent, made)
    stamp = layout.stamp_of(made.start)
    (folder / layout.frames_name(stamp)).unlink()
    (folder / layout.session_name(stamp)).unlink()
    path = folder / layout.sensor_name(stamp)
    with np.load(path) as arrays:
        kept = {n: arrays[n] for n in ("timestamps", "send_timestamps", "forces", "alines")}
    np.savez_compressed(path, **kept)
    results = folder / layout.results_name(stamp)
    six = ("timestamp", "actions", "delta", "inference_time", "vl_update_number", "robot_state")
    entries = [{key: entry[key] for key in six} for entry in json.loads(results.read_text())]
    results.write_text(json.dumps(entries))
    return folder
