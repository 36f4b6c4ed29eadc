"""Recording inside a running receiver: complete, switchable, and never in the loops' way."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import wire
from common.clock import now
from common.session import Session, find_sessions, layout
from common.session.frames import FrameFiles
from common.wire import CameraFrame
from receiver.episodes import Episodes
from receiver.folders import SessionFolders
from receiver.inputs import StoredFrame
from receiver.lanes import Lane
from receiver.options import Recording
from receiver.recorder import Recorder
from tests.receiver.rig import Rig
from tests.support import wait_until

MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(folder: Path = tmp_path, **options: object) -> Rig:
        rigs.append(Rig(folder, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
        assert rig.run.failure is None


def written(rig: Rig) -> int:
    return rig.run.recorder.status.written_bytes


def record_for_a_while(rig: Rig, size: int = 30_000) -> None:
    before = written(rig)
    wait_until(lambda: written(rig) > before + size, "something recorded")


def test_everything_that_came_in_is_in_the_files(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(save_data=True)
    rig.wait_for_motion()
    record_for_a_while(rig)
    rig.close()
    (folder,) = find_sessions(tmp_path)
    session, run = Session(folder), rig.run
    # Recording begins with the first robot state: what came before belongs to no episode.
    frames, states = session.frames("View1"), session.states
    assert run.cameras.views["View1"].meter.total >= len(frames) > 10
    assert len(states) == run.robot.meter.total
    assert run.sensor.meter.total >= len(session.samples) > 100
    jpegs = {frame.read() for frame in frames}
    assert jpegs == {bytes(run.cameras.views["View1"].newest.get().frame.jpeg)}  # type: ignore[union-attr]
    stamps = [frame.timestamp for frame in frames]
    assert stamps == sorted(stamps) and len(set(stamps)) == len(stamps)
    assert states.pose[0].tolist() == [190.0] * 6
    assert (session.samples.alines == 0).all() and session.samples.alines.shape[1] == 3
    assert abs(session.samples.forces - 0.1).max() < 1e-6
    assert session.unfinished == []
    (note,) = session.notes
    assert note["finished"] is True and note["dropped"] == {} and note["failure"] == ""
    assert note["frames"] == {"View1": len(frames)} and note["samples"] == len(session.samples)
    assert note["task"] == "the policy's own" and note["cameras"] == {"View1": "View1"}
    assert session.results and layout.stamp_of(note["started_at"]) in folder.name
    (segment,) = run.recorder.summary()["segments"]
    assert segment["states"] == len(states) and segment["folder"] == str(folder)


def test_without_the_option_only_the_results_are_kept(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig()
    rig.wait_for_motion()
    wait_until(lambda: list(tmp_path.glob("*/inference_results_*.json")), "results")
    rig.close()
    (folder,) = find_sessions(tmp_path)
    assert [path.name.split("_20")[0] for path in folder.iterdir()] == ["inference_results"]
    assert written(rig) == 0


def test_recording_is_switched_on_and_off_while_running(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig()
    rig.wait_for_motion()
    for _ in range(2):
        rig.run.recorder.start()
        record_for_a_while(rig)
        rig.run.recorder.stop()
        # The files are finished though the receiver goes on.
        wait_until(
            lambda: find_sessions(tmp_path) and not Session(find_sessions(tmp_path)[0]).unfinished,
            "finished",
        )
        wait_until(
            lambda: all(n["finished"] for n in Session(find_sessions(tmp_path)[0]).notes), "noted"
        )
        size = written(rig)
        rig.wait_for_action(lambda a: not a.hold, "actions without recording")
        assert written(rig) == size
    (folder,) = find_sessions(tmp_path)
    session = Session(folder)
    assert len(session.notes) == 2
    # Two sets of files in one folder are one session with a gap.
    assert len(session.samples) == sum(note["samples"] for note in session.notes)
    assert len(session.states) == sum(note["states"] for note in session.notes)
    assert len(session.frames("View1")) == sum(n["frames"]["View1"] for n in session.notes)


def test_each_episode_is_recorded_into_its_own_folder(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(save_data=True)
    rig.wait_for_motion()
    record_for_a_while(rig)
    rig.feeding.discard("robot")
    rig.robot_socket.send_multipart(wire.encode_episode_end())
    rig.wait_for_action(lambda a: a.hold, "the end of the episode")
    wait_until(lambda: Session(find_sessions(tmp_path)[0]).notes[0]["finished"], "files finished")
    between = written(rig)
    rig.feeding.add("robot")
    wait_until(lambda: written(rig) > between + 30_000, "the second episode")
    rig.close()
    first, second = (Session(folder) for folder in find_sessions(tmp_path))
    assert [s.notes[0]["episode"] for s in (first, second)] == [1, 2]
    assert first.states.received_at[-1] < second.states.received_at[0]
    assert second.frames("View1")[0].arrived_at >= second.notes[0]["started_at"]


def test_what_waits_to_be_read_is_recorded_if_it_came_while_recording(tmp_path: Path) -> None:
    waiting: list[tuple[str, float]] = []

    def catch_up() -> None:
        while waiting:
            view, at = waiting.pop(0)
            recorder.frame(view, StoredFrame(CameraFrame(view, at, b"a picture"), at, at))

    episodes = Episodes()
    recorder = Recorder(SessionFolders(tmp_path), episodes, Recording(), 3, lambda: {}, catch_up)
    stop = threading.Event()
    writer = threading.Thread(target=recorder.write_frames, args=(stop,))
    writer.start()
    try:
        episodes.begin_if_none(now())
        waiting.append(("before", now()))
        recorder.start()
        assert not waiting
        waiting.append(("late", now() - 1.0))  # on its way for a while: came before, too
        waiting.append(("during", now()))
        recorder.stop()
        assert not waiting
        waiting.append(("after", now()))
        catch_up()
    finally:
        stop.set()
        writer.join()
    (folder,) = find_sessions(tmp_path)
    session = Session(folder)
    assert [len(session.frames("during")), session.notes[0]["frames"]] == [1, {"during": 1}]


def test_a_runtime_reads_what_waits_before_episodes_and_recording_change(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, asked = make_rig(), set()

    def noting(name: str, catch_up: Callable[[], None]) -> Callable[[], None]:
        def noted() -> None:
            asked.add((name, sys._getframe(1).f_code.co_name))
            catch_up()

        return noted

    rig.wait_for_motion()
    for name in ("cameras", "robot", "sensor"):
        stream = getattr(rig.run, name)
        monkeypatch.setattr(stream, "catch_up", noting(name, stream.catch_up))
    rig.robot_socket.send_multipart(wire.encode_episode_end())
    before = {("cameras", "_read_beside"), ("sensor", "_read_beside")}
    wait_until(lambda: before <= asked, "what came beside the robot's states to be read")
    for switch in (rig.run.recorder.start, rig.run.recorder.stop):
        asked.clear()
        switch()
        assert {(name, "_catch_up") for name in ("cameras", "robot", "sensor")} <= asked


def assert_recording_ended_and_nothing_else(rig: Rig, says: str) -> None:
    wait_until(lambda: rig.run.recorder.status.failure, "the end of recording")
    assert says in rig.run.recorder.status.failure
    assert not rig.run.recorder.status.on
    wait_until(lambda: any("[RECORD] stopped" in line for line in rig.console.recent), "the line")
    before = rig.run.actions.total
    wait_until(lambda: rig.run.actions.total > before + 20, "actions")
    assert sum("[RECORD] stopped" in line for line in rig.console.recent) == 1
    assert rig.run.failure is None


def test_a_folder_that_goes_away_ends_the_recording_only(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(save_data=True)
    rig.wait_for_motion()
    record_for_a_while(rig)
    # Renamed: that takes one moment, while to remove the files of a folder races with the recorder.
    find_sessions(tmp_path)[0].rename(tmp_path / "gone")
    assert_recording_ended_and_nothing_else(rig, "No such file")
    # It can be started again, into a new folder.
    rig.run.recorder.start()
    assert rig.run.recorder.status.failure == ""


def test_an_error_nobody_thought_of_ends_the_recording_only(
    make_rig: MakeRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError("of all things")

    rig = make_rig(save_data=True)
    rig.wait_for_motion()
    record_for_a_while(rig)
    with monkeypatch.context() as patched:
        patched.setattr(FrameFiles, "add", fail)
        assert_recording_ended_and_nothing_else(rig, "ZeroDivisionError: of all things")
    rig.run.recorder.start()  # and both threads still write
    rows = rig.run.recorder._rows[0].written_bytes
    frames = rig.run.recorder._pictures.written_bytes
    wait_until(lambda: rig.run.recorder._rows[0].written_bytes > rows, "states again")
    wait_until(lambda: rig.run.recorder._pictures.written_bytes > frames, "frames again")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_recording_only(make_rig: MakeRig, small_disk: Path) -> None:
    rig = make_rig(small_disk, save_data=True, recording=Recording(keep_free_mb=0))
    rig.wait_for_motion()
    record_for_a_while(rig)
    filler = small_disk / "filler"
    with pytest.raises(OSError) as full, filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert full.value.errno == errno.ENOSPC
    assert_recording_ended_and_nothing_else(rig, "No space left")
    filler.unlink()
    rig.close()
    from common.session.recovery import recover

    (folder,) = find_sessions(small_disk)
    recover(folder)
    session = Session(folder)
    assert session.unfinished == [] and len(session.samples) > 0 and session.views == ("View1",)
    for frame in session.frames("View1"):
        assert frame.read().endswith(b"\xff\xd9")


def test_recording_ends_before_the_disk_is_full(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(save_data=True, recording=Recording(keep_free_mb=1e9))
    assert_recording_ended_and_nothing_else(rig, "left on the disk")
    wait_until(lambda: Session(find_sessions(tmp_path)[0]).notes[0]["finished"], "files finished")
    session = Session(find_sessions(tmp_path)[0])
    assert session.unfinished == [] and len(session.samples) > 0
    assert "left on the disk" in session.notes[0]["failure"]


def test_a_disk_that_hangs_costs_recorded_frames_and_nothing_else(
    make_rig: MakeRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, was = threading.Event(), FrameFiles.add

    def hang(*arguments: object) -> int:
        hanging.wait(30)
        return was(*arguments)  # type: ignore[arg-type]

    rig = make_rig(save_data=True)
    rig.wait_for_motion()
    record_for_a_while(rig)
    monkeypatch.setattr(FrameFiles, "add", hang)
    lane = rig.run.recorder._frames
    lane._most = 40_000
    wait_until(lambda: lane.dropped > 20, "dropped frames")
    assert lane.waiting_bytes <= 40_000
    before, states = rig.run.actions.total, rig.run.recorder._rows[0].written_bytes
    wait_until(lambda: rig.run.actions.total > before + 25, "actions go on")
    assert rig.run.recorder._rows[0].written_bytes > states  # and so do the other files
    hanging.set()
    wait_until(lambda: any("disk is too slow" in line for line in rig.console.recent), "the line")
    rig.close()
    session = Session(find_sessions(tmp_path)[0])
    assert session.notes[0]["dropped"] == {"frames": lane.dropped}
    assert len(session.frames("View1")) == session.notes[0]["frames"]["View1"]


def test_a_lane_is_bounded_in_bytes_and_keeps_the_order() -> None:
    lane: Lane[int] = Lane("test", 100)
    assert [lane.put(n, 30) for n in range(5)] == [True, True, True, False, False]
    assert lane.dropped == 2 and lane.waiting_bytes == 90
    assert [lane.take(), lane.take()] == [0, 1]
    assert lane.put(5, 60)
    assert [lane.take(), lane.take(), lane.take()] == [2, 5, None]
    assert lane.waiting_bytes == 0


def test_the_note_is_whole_json_at_every_moment(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(save_data=True)
    rig.wait_for_motion()
    record_for_a_while(rig, 2000)
    (path,) = find_sessions(tmp_path)[0].glob("session_*.json")
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert json.loads(path.read_text())["format"] == 1
