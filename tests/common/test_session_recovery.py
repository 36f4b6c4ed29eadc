"""What a killed receiver leaves becomes a session with its normal files; nothing is thrown away."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.session import Session, SessionError, layout
from common.session.frames import FrameFiles
from common.session.recovery import recover
from common.session.rows import SampleFile, StateFile
from common.wire import CameraFrame, RobotState, SampleBatch
from tests.sessions import STAMP, START, Made, make_older_session, make_session, picture

ROWS = np.random.default_rng(5).random((40, 9), np.float32)


def left_behind(folder: Path) -> Path:
    """A session as SIGKILL leaves it: nothing closed, nothing finished."""
    files, states = FrameFiles(folder, STAMP), StateFile(folder, STAMP)
    samples = SampleFile(folder, STAMP, 9)
    for k in range(4):
        at = START + k
        files.add("View1", CameraFrame("cam", at, picture(0, k, (32, 18)), k, at), at, at)
        states.add(RobotState(at, at, 0.0, (1.0 * k,) * 6, (2.0,) * 6), at)
        stamps, part = np.full(10, at), ROWS[10 * k : 10 * k + 10]
        samples.add(SampleBatch(stamps, stamps, part[:, 0].copy(), part), at)
    note = {"format": 1, "task": "t", "finished": False}
    (folder / layout.session_name(STAMP)).write_text(json.dumps(note))
    (folder / layout.results_name(STAMP)).write_text(
        '[\n{"timestamp": 1.0},\n{"timestamp": 2.0}\n]'
    )
    # What is open is copied as it is on disk.
    copy = folder.with_name("killed")
    shutil.copytree(folder, copy)
    samples.abandon()
    files.close()
    states.close()
    return copy


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    (tmp_path / "living").mkdir()
    return left_behind(tmp_path / "living")


def assert_whole(folder: Path, frames: int = 4, states: int = 4, samples: int = 40) -> None:
    session = Session(folder)
    assert session.unfinished == []
    assert [f.read() for f in session.frames("View1")] == [
        picture(0, k, (32, 18)) for k in range(frames)
    ]
    assert len(session.states) == states and len(session.samples) == samples
    assert (session.samples.alines == ROWS[:samples]).all()
    assert (session.samples.forces == ROWS[:samples, 0]).all()
    assert zipfile.ZipFile(folder / layout.sensor_name(STAMP)).testzip() is None
    with np.load(folder / layout.sensor_name(STAMP), allow_pickle=False) as arrays:
        assert arrays["alines"].shape == (samples, 9)
        assert arrays["recv_timestamps"][0] == START


def test_a_killed_recording_becomes_the_normal_files(killed: Path) -> None:
    assert [path.name for path in Session(killed).unfinished] == [
        f"sensor_data_{STAMP}.npz.part",
        f"sensor_data_{STAMP}.rows.part",
    ]
    done = recover(killed)
    assert any("finished, 40 samples" in line for line in done)
    assert_whole(killed)
    assert Session(killed).notes[0] == {
        "format": 1, "task": "t", "finished": True, "recovered": True,
    }  # fmt: skip
    assert recover(killed) == []  # there is nothing left to do


def test_torn_ends_of_every_file(killed: Path) -> None:
    part = killed / f"sensor_data_{STAMP}.npz.part"
    part.write_bytes(part.read_bytes()[:-7])  # the last A-scan is not whole
    rows = killed / f"sensor_data_{STAMP}.rows.part"
    rows.write_bytes(rows.read_bytes() + b"half a row")
    for name in (layout.robot_name(STAMP), layout.frames_name(STAMP)):
        path = killed / name
        path.write_bytes(path.read_bytes()[:-4])
    results = killed / layout.results_name(STAMP)
    results.write_text('[\n{"timestamp": 1.0},\n{"timestamp": 2.0},\n{"timest')
    half = killed / "View1" / f"cam_{START + 9:.3f}.jpg"
    half.write_bytes(picture(0, 9, (32, 18))[:-50])
    done = "\n".join(recover(killed))
    assert_whole(killed, states=3, samples=39)
    assert "1 half-written pictures set aside" in done and "1 pictures that it did not" in done
    assert half.with_name(half.name + ".broken").exists()
    assert done.count("a torn last line taken off") == 2
    for name, rows in ((layout.robot_name(STAMP), 3), (layout.frames_name(STAMP), 4)):
        text = (killed / name).read_text()
        assert text.endswith("\n") and len(text.splitlines()) == 1 + rows
        assert len({line.count(",") for line in text.splitlines()}) == 1
    assert [entry["timestamp"] for entry in Session(killed).results] == [1.0, 2.0]
    assert recover(killed) == []


def test_a_kill_during_the_recovery_changes_nothing(killed: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(what: str, part: float) -> None:
        raise Killed

    with pytest.raises(Killed):
        recover(killed, kill)
    recover(killed)
    assert_whole(killed)


def test_a_kill_between_the_last_two_steps(killed: Path, tmp_path: Path) -> None:
    rows = killed / f"sensor_data_{STAMP}.rows.part"
    shutil.copy(rows, tmp_path / "rows")
    recover(killed)
    shutil.copy(tmp_path / "rows", rows)
    assert recover(killed)
    assert_whole(killed)
    assert not rows.exists()


def test_a_file_without_a_whole_sample_is_set_aside(tmp_path: Path) -> None:
    folder = make_session(tmp_path, Made(seconds=0.2))
    later = layout.stamp_of(START + 5)
    SampleFile(folder, later, 9).abandon()
    recover(folder)
    assert (folder / f"sensor_data_{later}.npz.broken").exists()
    assert Session(folder).unfinished == [] and len(Session(folder).samples) == 130


def test_a_finished_session_and_an_older_rigs_are_left_as_they_are(tmp_path: Path) -> None:
    for make in (make_session, make_older_session):
        folder = make(tmp_path / make.__name__, Made(seconds=0.2))
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert recover(folder) == []
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_what_cannot_be_mended_is_one_line(killed: Path) -> None:
    index = killed / layout.frames_name(STAMP)
    index.write_bytes(b"not,an,index\n" + index.read_bytes())
    with pytest.raises(SessionError, match="not an index") as caught:
        recover(killed)
    assert "\n" not in str(caught.value)
