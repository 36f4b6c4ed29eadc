"""A session's files: what is written reads back, exactly, also as older rigs wrote it."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.session import Session, SessionError, find_sessions, layout, newest_at
from common.session.npz import GrowingNpz, array_in_npz, crc32_joined, resumed
from common.session.rows import StateFile
from common.wire import RobotState
from tests.sessions import STAMP, START, Made, make_older_session, make_session, picture


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_checksum_of_joined_pieces(first: bytes, second: bytes) -> None:
    joined = crc32_joined(zlib.crc32(first), zlib.crc32(second), len(second))
    assert joined == zlib.crc32(first + second)


def grown(path: Path, rows: np.ndarray, pieces: int) -> GrowingNpz:
    npz = GrowingNpz(path, "alines", rows.shape[1])
    for piece in np.array_split(rows, pieces):
        npz.append(piece)
    return npz


@pytest.mark.parametrize("count", [0, 1, 57])
def test_a_growing_file_is_a_plain_npz_in_the_end(tmp_path: Path, count: int) -> None:
    rows = np.random.default_rng(1).random((count, 9), np.float32)
    path = tmp_path / "a.npz"
    grown(path, rows, 5).finish({"timestamps": np.arange(count, dtype=np.float64)})
    assert zipfile.ZipFile(path).testzip() is None  # every checksum fits
    with np.load(path, allow_pickle=False) as arrays:
        assert (arrays["alines"] == rows).all() and arrays["alines"].shape == (count, 9)
        assert (arrays["timestamps"] == np.arange(count)).all()
    mapped = array_in_npz(path, "alines")
    assert mapped is not None and (mapped == rows).all()
    assert isinstance(mapped, np.memmap) == (count > 0)
    assert array_in_npz(path, "forces") is None


@pytest.mark.parametrize("torn", [0, 1, 35, 36, 37])
def test_a_file_that_was_cut_off_is_finished_in_place(tmp_path: Path, torn: int) -> None:
    rows = np.random.default_rng(2).random((57, 9), np.float32)
    path = tmp_path / "a.npz"
    grown(path, rows, 4).abandon()
    inode = path.stat().st_ino
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - torn)
    npz, work = resumed(path, "alines", 9, 1000)
    assert list(work)[-1] == npz.rows == 57 - -(-torn // 36)
    npz.finish({})
    assert path.stat().st_ino == inode
    assert zipfile.ZipFile(path).testzip() is None
    assert (np.load(path)["alines"] == rows[: npz.rows]).all()


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, alines=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match=r"plain|pickle"):
        array_in_npz(path, "alines")


def test_a_session_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = Made()
    session = Session(make_session(tmp_path, made))
    assert session.views == ("View1", "View2")
    frames = session.frames("View2")
    assert len(frames) == 60
    assert frames[7].read() == picture(1, 7, made.size)
    assert frames[7].captured_at == START + 7 / 30 + 0.001
    assert frames[7].timestamp == frames[7].captured_at - 5.0
    assert frames[7].sent_at == pytest.approx(frames[7].captured_at + 0.005, abs=1e-6)
    assert frames[7].seq == 7 and frames[7].camera == "cam1"
    assert frames[7].path.name == f"cam1_{frames[7].timestamp:.3f}.jpg"
    states, samples = session.states, session.samples
    assert len(states) == 200 and len(samples) == 1300
    assert states.joints.shape == states.pose.shape == (200, 6)
    # What is known of the sender's clock holds the least delay, 2 ms here.
    assert np.abs(states.sampled_at - START - np.arange(200) / 100 - 0.002).max() < 1e-6
    assert np.abs(samples.sampled_at - START - np.arange(1300) / 650 - 0.002).max() < 1e-6
    assert samples.alines.shape == (1300, 1025)
    assert [len(samples.forces[rows]) for rows in samples.datagrams()] == [10] * 130
    assert len(session.results) == 20 and session.task == made.task
    begin, end = session.span
    assert begin == pytest.approx(START, abs=0.01) and end == pytest.approx(START + 2, abs=0.1)
    assert session.unfinished == []


def test_a_session_of_an_older_rig(tmp_path: Path) -> None:
    session = Session(make_older_session(tmp_path))
    frames = session.frames("View1")
    assert len(frames) == 60 and frames[3].camera == "cam0"
    assert frames[3].captured_at == pytest.approx(START - 5 + 0.1, abs=1e-3)
    assert np.isnan(frames[3].arrived_at)
    assert [frame.captured_at for frame in frames] == sorted(f.captured_at for f in frames)
    samples = session.samples
    assert np.isnan(samples.received_at).all()
    assert (samples.sampled_at == samples.timestamps).all()
    assert [len(samples.forces[rows]) for rows in samples.datagrams()] == [10] * 130
    assert session.notes == [] and session.task == "" and len(session.results) == 20


def test_values_of_a_state_read_back_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0, 100, (50, 13)).astype(np.float32)
    stamps = START + rng.random((50, 3))
    file = StateFile(tmp_path, STAMP)
    for row, (origin, sent, arrived) in zip(values.tolist(), stamps.tolist(), strict=True):
        file.add(RobotState(origin, sent, row[0], tuple(row[1:7]), tuple(row[7:])), arrived)
    file.close()
    states = Session(tmp_path).states
    assert (states.joints.astype(np.float32) == values[:, 1:7]).all()
    assert (states.pose.astype(np.float32) == values[:, 7:]).all()
    assert (states.timestamps == stamps[:, 0]).all()
    assert (states.received_at == stamps[:, 2]).all()


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    for name in (layout.robot_name(STAMP), layout.frames_name(STAMP)):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-9])
    session = Session(folder)
    assert len(session.states) == 199
    assert len(session.all_frames) == 120  # the picture itself is there: its name tells its time


def test_two_pictures_of_one_millisecond_both_stay(tmp_path: Path) -> None:
    folder = make_session(tmp_path, Made(seconds=1.0, fps=5000.0, views=("View1",), size=(16, 16)))
    frames = Session(folder).frames("View1")
    assert len({frame.file for frame in frames}) == len(frames) == 5000
    assert [frame.seq for frame in frames] == list(range(5000))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("robot_state_{}.csv", b"a,b\n1,2\n", "no column"),
        ("robot_state_{}.csv", b"x", "no column"),
        ("sensor_data_{}.npz", b"PK\x03\x04 not really", "not a file of samples"),
        ("inference_results_{}.json", b"[{", "not JSON"),
        ("inference_results_{}.json", b'{"a": 1}', "not a list"),
        ("inference_results_{}.json", b'[{"timestamp": "noon"}]', "no timestamp"),
        ("frames_{}.csv", b"a,b\n1,2\n", "not an index"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name.format(STAMP)).write_bytes(content)
    session = Session(tmp_path)
    with pytest.raises(SessionError, match=says) as caught:
        _ = (session.all_frames, session.states, session.samples, session.results)
    assert "\n" not in str(caught.value)


def test_an_index_cannot_lead_out_of_the_session(tmp_path: Path) -> None:
    folder = make_session(tmp_path)
    index = folder / layout.frames_name(STAMP)
    lines = index.read_text().splitlines()
    for line in (lines[1].replace("View1", "..", 1), lines[1].replace("cam0_", "../cam0_", 1)):
        index.write_text("\n".join([lines[0], line, ""]))
        with pytest.raises(SessionError):
            _ = Session(folder).all_frames


def test_finding_sessions(tmp_path: Path) -> None:
    first = make_session(tmp_path, Made(seconds=0.2))
    second = make_session(tmp_path, Made(seconds=0.2, start=START + 60))
    (tmp_path / "async_inference_empty").mkdir()
    assert find_sessions(tmp_path) == [first, second]
    assert find_sessions(first) == [first]
    with pytest.raises(SessionError, match="no such folder"):
        find_sessions(tmp_path / "nowhere")
    with pytest.raises(SessionError, match="no session in it"):
        Session(tmp_path / "async_inference_empty")


def test_the_newest_at_or_before_a_moment() -> None:
    assert newest_at([1.0, 2.0, 3.0], [0.5, 1.0, 2.9, 9.0]).tolist() == [-1, 0, 1, 2]


def test_notes_must_be_maps(tmp_path: Path) -> None:
    folder = make_session(tmp_path, Made(seconds=0.2))
    (folder / layout.session_name(STAMP)).write_text(json.dumps([1]))
    with pytest.raises(SessionError, match="no map"):
        _ = Session(folder).notes
