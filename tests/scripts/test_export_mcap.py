"""Sessions exported to MCAP, read back with the mcap library's own reader, and opened by Rerun."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap", reason="pip install '.[export]'")
pytest.importorskip("foxglove_schemas_protobuf", reason="pip install '.[export]'")

from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from common.kinematics import euler_xyz_deg, flange_transform
from common.session import Session, SessionError, layout
from common.session.frames import FrameFiles
from common.wire import CameraFrame
from scripts.mcap_export import export
from scripts.mcap_schemas import mobile_xyz_quaternion
from tests.sessions import START, Made, make_older_session, make_session
from tests.support import Child

Messages = dict[str, list[tuple[Any, Any]]]


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def read(path: Path) -> tuple[Messages, list[int]]:
    """Every topic's messages with their records, and all log times in the order of the file."""
    found: Messages = defaultdict(list)
    times = []
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        for _, channel, record, message in reader.iter_decoded_messages(log_time_order=False):
            found[channel.topic].append((record, message))
            times.append(record.log_time)
    return found, times


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Path]:
    folder = tmp_path_factory.mktemp("mcap")
    session = Session(make_session(folder, Made(seconds=1.5)))
    return session, export([session], folder / "session.mcap", compression="zstd")


def test_every_picture_comes_back_byte_for_byte(exported: tuple[Session, Path]) -> None:
    session, path = exported
    found, _ = read(path)
    assert session.views == ("View1", "View2")
    for view in session.views:
        entries, messages = session.frames(view), found[f"/views/{view}"]
        assert len(entries) == len(messages) == 45
        for entry, (record, message) in zip(entries, messages, strict=True):
            assert message.data == entry.read()
            assert (message.format, message.frame_id) == ("jpeg", view)
            assert record.log_time == ns(entry.arrived_at)
            assert record.publish_time == ns(entry.captured_at)
            assert message.timestamp.ToNanoseconds() == ns(entry.captured_at)
            assert record.sequence == entry.seq


def test_every_state_comes_back(exported: tuple[Session, Path]) -> None:
    session, path = exported
    found, _ = read(path)
    states, topics = session.states, ("/robot/joints", "/robot/pose", "/tf")
    assert [len(found[topic]) for topic in topics] == [len(states)] * 3 == [150] * 3
    assert "/robot/force" not in found
    for k in range(len(states)):
        (record, joints), (_, pose), (_, transform) = (found[topic][k] for topic in topics)
        assert record.log_time == ns(states.received_at[k])
        assert record.publish_time == ns(states.sampled_at[k])
        assert [joint.name for joint in joints.joints] == [f"joint_{n}" for n in range(1, 7)]
        angles = [joint.position for joint in joints.joints]
        np.testing.assert_allclose(np.degrees(angles), states.joints[k], rtol=1e-12)
        assert (pose.frame_id, transform.child_frame_id) == ("base", "flange")
        for place, turn in (
            (pose.pose.position, pose.pose.orientation),
            (transform.translation, transform.rotation),
        ):
            found_mm = 1e3 * np.array([place.x, place.y, place.z])
            np.testing.assert_allclose(found_mm, states.pose[k, :3], rtol=1e-12)
            # β = 90°: half a right angle about y.
            np.testing.assert_allclose(
                [turn.x, turn.y, turn.z, turn.w], [0, 0.5**0.5, 0, 0.5**0.5], atol=1e-12
            )


def test_every_sample_and_scan_comes_back(exported: tuple[Session, Path]) -> None:
    session, path = exported
    found, _ = read(path)
    samples, forces, scans = session.samples, found["/sensor/force"], found["/sensor/ascans"]
    assert len(forces) == len(samples) == 970
    np.testing.assert_array_equal([m.force_n for _, m in forces], samples.forces)
    assert [r.log_time for r, _ in forces] == [ns(t) for t in samples.received_at]
    assert [r.publish_time for r, _ in forces] == [ns(t) for t in samples.sampled_at]
    assert len(scans) == len(samples.datagrams()) == 97
    for rows, (record, message) in zip(samples.datagrams(), scans, strict=True):
        assert (message.encoding, message.width, message.height) == ("32FC1", 1025, 10)
        assert message.step == 4 * 1025
        image = np.frombuffer(message.data, "<f4").reshape(message.height, message.width)
        np.testing.assert_array_equal(image, samples.alines[rows])
        assert record.log_time == ns(samples.received_at[rows.start])


def test_every_action_comes_back(exported: tuple[Session, Path]) -> None:
    session, path = exported
    found, _ = read(path)
    assert len(found["/actions"]) == len(session.results) == 15
    for entry, (record, message) in zip(session.results, found["/actions"], strict=True):
        assert record.log_time == ns(entry["timestamp"])
        assert record.publish_time == ns(entry["deadline"])
        for key, rows in (("actions", message.rows), ("delta", message.delta)):
            np.testing.assert_array_equal([list(row.values) for row in rows], entry[key])
        assert list(message.first) == entry["actions"][0]
        assert message.inference_ms == 1e3 * entry["inference_time"]
        named = ("lateness_ms", "feature_age_ms", "vl_reuse", "action_number", "sensor_samples")
        assert all(getattr(message, key) == entry[key] for key in named)
        assert (message.force_n, message.task) == (entry["force"], entry["task"])
    updates = [(m.number, round(m.duration_ms, 3)) for _, m in found["/vl_updates"]]
    assert updates == [(1, 200.0), (2, 200.0), (3, 200.0), (4, 200.0)]
    assert [m.message for _, m in found["/log"]] == ["task: touch the port"]


def test_messages_are_in_time_order_over_all_topics(exported: tuple[Session, Path]) -> None:
    session, path = exported
    found, times = read(path)
    assert times == sorted(times)
    assert len(times) == sum(map(len, found.values())) > 1500
    with path.open("rb") as file:
        reader = make_reader(file)
        (about,) = list(reader.iter_metadata())
        summary = reader.get_summary()
    assert about.metadata["task"] == session.task and about.metadata["sensor_hz"] == "650.0"
    assert summary is not None and summary.statistics is not None
    assert summary.statistics.message_count == len(times)


def test_rerun_shows_pictures_poses_scans_and_text(
    exported: tuple[Session, Path], tmp_path: Path
) -> None:
    pytest.importorskip("rerun", reason="pip install '.[rerun]'")
    rrd = tmp_path / "session.rrd"
    rerun = Path(sys.executable).with_name("rerun")
    subprocess.run([rerun, "mcap", "convert", exported[1], "-o", rrd], check=True, timeout=60)
    said = subprocess.run(
        [rerun, "rrd", "print", "-v", rrd], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    for component in (
        "/views/View1@EncodedImage:blob",
        "/sensor/ascans@Image:buffer",
        "/robot/pose@InstancePoses3D:quaternions",
        "/tf@Transform3D:translation",
        "/log@TextLog:text",
        # Plotted by picking a field of the message.
        "/robot/joints@foxglove.JointStates:message",
        "/sensor/force@dualrate.Force:message",
        "/actions@dualrate.ActionChunk:message",
    ):
        assert component in said, component


def test_the_layout_for_rerun(
    exported: tuple[Session, Path], tmp_path: Path, program: Callable[..., Child]
) -> None:
    pytest.importorskip("rerun", reason="pip install '.[rerun]'")
    from rerun.chunk import RrdReader

    out = tmp_path / "session.rrd"
    arguments = ["scripts/mcap_in_rerun.py", str(exported[1]), "--out", str(out)]
    child = program(*arguments)
    assert child.end() == 0, child.text
    rows: dict[str, int] = defaultdict(int)
    for chunk in RrdReader(out).stream():
        rows[chunk.entity_path] += chunk.num_rows * (not chunk.is_static)
    assert rows["/views/View1"] == 45 and rows["/tf"] == 150 and rows["/sensor/force"] == 970
    assert "/flange" in rows and len(RrdReader(out).blueprints()) == 1
    again = program(*arguments)
    assert again.end() == 2 and "exists" in again.text and "\n" not in again.text
    (tmp_path / "no.mcap").write_bytes(b"no such thing at all")
    for name, said in (("no.mcap", "no MCAP file"), ("none.mcap", "No such file")):
        failed = program("scripts/mcap_in_rerun.py", str(tmp_path / name), "--out", f"{out}2")
        assert failed.end() == 2 and said in failed.text and "\n" not in failed.text, failed.text
    assert [path.name for path in tmp_path.glob("*rrd*")] == ["session.rrd"]


def test_an_older_rigs_session(tmp_path: Path) -> None:
    session = Session(make_older_session(tmp_path, Made(seconds=0.5)))
    found, times = read(export([session], tmp_path / "old.mcap"))
    assert times == sorted(times)
    for entry, (record, message) in zip(
        session.frames("View1"), found["/views/View1"], strict=True
    ):
        assert message.data == entry.read()
        # No arrival was noted: the capture time stands for it.
        assert record.log_time == record.publish_time == ns(entry.captured_at)
    assert len(found["/robot/joints"]) == len(session.states) == 50
    np.testing.assert_array_equal(
        [m.force_n for _, m in found["/sensor/force"]], session.samples.forces
    )
    assert len(found["/actions"]) == 5
    message = found["/actions"][0][1]
    assert message.inference_ms == 10.0
    absent = ("lateness_ms", "feature_age_ms", "vl_reuse", "force_n", "episode")
    assert not any(message.HasField(key) for key in absent)
    assert "/vl_updates" not in found


def test_euler_angles_become_the_rotation_they_mean() -> None:
    rng = np.random.default_rng(3)
    for joints in rng.uniform(-80, 80, (200, 6)):
        rotation, _ = flange_transform(joints)
        x, y, z, w = mobile_xyz_quaternion(euler_xyz_deg(rotation))
        assert x * x + y * y + z * z + w * w == pytest.approx(1.0)
        turned = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        np.testing.assert_allclose(turned, rotation, atol=1e-6)


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    folder = tmp_path / layout.folder_name("20260101_120000")
    folder.mkdir()
    files = FrameFiles(folder, "20260101_120000")
    for k in range(60):
        jpeg = bytes([k]) * (1 << 20)
        at = START + k / 30
        files.add("View1", CameraFrame("cam", at, jpeg, k), at, at)
    files.close()
    tracemalloc.start()
    try:
        export([Session(folder)], tmp_path / "big.mcap")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "big.mcap").stat().st_size > 60 << 20
    assert peak < 30 << 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timestamp": 1e300}, "UNIX seconds"),
        ({"actions": [[1, 2], [3]]}, "actions are not rows"),
        ({"actions": "rm"}, "actions are not rows"),
        ({"delta": [1.0]}, "delta are not rows"),
    ],
)
def test_broken_results_are_refused_and_nothing_is_left(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = make_session(tmp_path, Made(seconds=0.3, aline_length=8))
    (results,) = folder.glob("inference_results_*.json")
    entries = json.loads(results.read_text())
    entries[1] |= change
    results.write_text(json.dumps(entries))
    with pytest.raises(SessionError, match=said):
        export([Session(folder)], tmp_path / "x.mcap")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def small(parent: Path, later_s: float = 0.0) -> Path:
    made = Made(seconds=0.3, aline_length=8, start=START + later_s)
    return make_session(parent, made)


def test_the_program_writes_a_file_and_does_not_overwrite(
    tmp_path: Path, program: Callable[..., Child]
) -> None:
    folder, out = small(tmp_path), tmp_path / "out" / "one.mcap"
    arguments = ["scripts/export_session.py", str(folder), "--format", "mcap", "--out", str(out)]
    first = program(*arguments)
    assert first.end() == 0, first.text
    said = first.text.replace("\n", "")  # a long path is broken at the width of a terminal
    assert "one.mcap" in said and "MB/s" in said
    before = out.read_bytes()
    second = program(*arguments)
    assert second.end() == 2
    assert second.text.count("\n") == 0 and "exists; --overwrite replaces it" in second.text
    assert program(*arguments, "--overwrite").end() == 0
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["one.mcap"]


def test_the_program_writes_several_sessions_into_a_folder(
    tmp_path: Path, program: Callable[..., Child]
) -> None:
    folders = [small(tmp_path / "runs", later) for later in (0.0, 60.0)]
    out = tmp_path / "out"
    child = program(
        "scripts/export_session.py", str(tmp_path / "runs"), "--format", "mcap", "--out", str(out)
    )
    assert child.end() == 0, child.text
    assert sorted(p.name for p in out.iterdir()) == sorted(f"{f.name}.mcap" for f in folders)
    assert len(read(out / f"{folders[0].name}.mcap")[0]["/robot/joints"]) == 30


def test_the_program_says_in_one_line_what_is_wrong(
    tmp_path: Path, program: Callable[..., Child]
) -> None:
    folder = small(tmp_path)
    (folder / "sensor_data_20260101_120000.npz.part").touch()
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "empty", "no session in"),
        (folder, "recover_session.py"),
    ):
        child = program(
            "scripts/export_session.py", str(path), "--format", "mcap", "--out", "/nowhere/x"
        )
        assert child.end() == 2
        assert said in child.text and "\n" not in child.text, child.text


@pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is not None, reason="says nothing where lerobot is there"
)
def test_without_lerobot_one_line_says_what_to_install(
    tmp_path: Path, program: Callable[..., Child]
) -> None:
    made = Made(seconds=2.0, aline_length=8, size=(128, 72))
    arguments = [str(make_session(tmp_path, made)), "--format", "lerobot"]
    child = program("scripts/export_session.py", *arguments, "--out", str(tmp_path / "set"))
    assert child.end() == 2
    assert "Python 3.12" in child.text and ".[lerobot]" in child.text and "\n" not in child.text
    assert not (tmp_path / "set").exists()


def test_only_a_dataset_is_replaced(tmp_path: Path, program: Callable[..., Child]) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    arguments = [str(small(tmp_path)), "--format", "lerobot", "--out", str(precious)]
    child = program("scripts/export_session.py", *arguments, "--overwrite")
    assert child.end() == 2
    assert "no LeRobot dataset" in child.text
    assert (precious / "thesis.txt").exists()
