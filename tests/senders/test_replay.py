"""Drivers that play recorded sessions: the same bytes and values, in order, when they are due."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.program import OptionError, ProgramError
from common.session import Session, layout
from senders import cameras, registry, replaying, robots, sensors
from senders.cameras.replay import open_replay_cameras
from senders.drivers import (
    DriverError,
    Recorded,
    RecordedRobot,
    RecordingOver,
    RobotReading,
)
from senders.replaying import BETWEEN_ROUNDS_S, Timeline, moments_sent, played_span
from senders.robots import replay as robot_module
from senders.robots.replay import ReplayRobot
from senders.sensors.replay import ReplayForceSensor
from tests.sessions import STAMP, Made, make_older_session, make_session, picture

SMALL = Made(seconds=1.0, aline_length=16)
UNIX = 1_800_000_000.0


class Clock:
    """A clock that only waiting moves on; also the event that is waited for."""

    def __init__(self) -> None:
        self.moment = 5000.0
        self.stopped = False

    def monotonic(self) -> float:
        return self.moment

    def wall(self) -> float:
        return UNIX + self.moment - 5000.0

    def wait(self, seconds: float) -> bool:
        assert seconds > 0
        self.moment += seconds
        return self.stopped

    def is_set(self) -> bool:
        return self.stopped

    def set(self) -> None:
        self.stopped = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(replaying, "monotonic", made.monotonic)
    monkeypatch.setattr(replaying, "wall", made.wall)
    monkeypatch.setattr(robot_module, "monotonic", made.monotonic)
    return made


AHEAD_S = 0.02


def played(
    robot: ReplayRobot, clock: Clock, most: int = 10_000
) -> list[tuple[float, RobotReading]]:
    """When each state came, and it."""
    found = []
    robot.open()
    for tick in robot.ticks(clock):  # type: ignore[arg-type]
        assert tick.index == len(found) and tick.skipped == 0
        # The first is due before the recording begins, which may be in the past.
        late = clock.moment - tick.deadline
        assert late == pytest.approx(0, abs=1e-9) or (tick.index == 0 and late < AHEAD_S + 1e-9)
        found.append((clock.moment, robot.read()))
        if len(found) == most:
            clock.stopped = True
    return found


@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
def test_states_come_when_they_were_sent_and_as_they_were(
    tmp_path: Path, clock: Clock, speed: float
) -> None:
    folder = make_session(tmp_path, SMALL)
    session = Session(folder)
    states, (begin, end) = session.states, played_span(session)
    found = played(ReplayRobot(str(folder), speed=speed, start_at=UNIX + 2.0), clock)
    assert len(found) == len(states) == 100
    came = np.array([moment for moment, _ in found])
    due = 5002.0 + (states.sent_at - begin) / speed
    assert np.abs(came - due)[1:].max() < 1e-5
    # An episode begins with the first state: it comes before all else that was recorded.
    assert came[0] == pytest.approx(5002.0 - AHEAD_S)
    stamps = np.array([reading.sampled_at for _, reading in found])
    assert np.abs(stamps - (UNIX + 2.0 + (states.sampled_at - begin) / speed)).max() < 1e-5
    for row, (_, reading) in enumerate(found):
        assert (reading.joints_deg == states.joints[row]).all()
        assert (reading.pose == states.pose[row]).all()
        assert reading.joints_deg.dtype == np.float64
        assert reading.force_n == states.forces[row] and reading.episode == 0
    # It is over with the session, not with its last state.
    assert clock.moment == pytest.approx(5002.0 + (end - begin + BETWEEN_ROUNDS_S) / speed)


def test_what_comes_late_comes_at_once_and_nothing_is_lost(tmp_path: Path, clock: Clock) -> None:
    folder = make_session(tmp_path, SMALL)
    robot = ReplayRobot(str(folder))
    robot.open()
    ticks = robot.ticks(clock)  # type: ignore[arg-type]
    first = next(ticks)
    assert first.deadline == pytest.approx(clock.moment - AHEAD_S)
    clock.moment += 0.5
    began, seen = clock.moment, 1
    for tick in ticks:
        seen += 1
        if tick.lateness_s < 0.005:
            break
    assert seen == pytest.approx(52, abs=2) and clock.moment - began < 0.03
    assert seen + len(list(ticks)) == 100


def test_in_a_loop_every_round_is_an_episode(tmp_path: Path, clock: Clock) -> None:
    folder = make_session(tmp_path, SMALL)
    begin, end = played_span(Session(folder))
    found = played(ReplayRobot(str(folder), speed=2.0, loop=True), clock, most=250)
    assert [reading.episode for _, reading in found] == [0] * 100 + [1] * 100 + [2] * 50
    round_s = (end - begin + BETWEEN_ROUNDS_S) / 2.0
    for row in (1, 7, 99):
        (first, one), (second, other) = found[row], found[100 + row]
        assert second - first == pytest.approx(round_s, abs=1e-6)
        assert other.sampled_at - one.sampled_at == pytest.approx(round_s, abs=1e-6)
        assert (one.joints_deg == other.joints_deg).all()


def test_a_robot_of_a_recording_is_not_moved(tmp_path: Path) -> None:
    robot = ReplayRobot(str(make_session(tmp_path, SMALL)))
    assert isinstance(robot, RecordedRobot) and isinstance(robot, Recorded)
    robot.open()
    with pytest.raises(DriverError, match="no state"):
        robot.read()
    for move in (robot.move_joints, robot.move_pose):
        with pytest.raises(DriverError, match="cannot be moved"):
            move(np.zeros(6))
    robot.hold()
    robot.close()
    robot.close()


def test_broken_states_are_left_out(tmp_path: Path, clock: Clock) -> None:
    folder = make_session(tmp_path, SMALL)
    path = folder / layout.robot_name(STAMP)
    lines = path.read_text().splitlines()
    for number, column, value in ((5, 7, "nan"), (6, 1, "inf"), (7, 9, "1e9")):
        values = lines[number].split(",")
        values[column] = value
        lines[number] = ",".join(values)
    path.write_text("\n".join([*lines, ""]))
    found = played(ReplayRobot(str(folder)), clock)
    joints = Session(folder).states.joints
    kept = [row for row in range(100) if row not in (4, 5, 6)]
    assert [tuple(reading.joints_deg) for _, reading in found] == [tuple(joints[k]) for k in kept]


@pytest.mark.parametrize("speed", [1.0, 3.0])
def test_datagrams_come_when_they_were_sent(tmp_path: Path, clock: Clock, speed: float) -> None:
    folder = make_session(tmp_path, SMALL)
    session = Session(folder)
    samples, begin = session.samples, played_span(session)[0]
    sensor = ReplayForceSensor(str(folder), speed=speed, start_at=UNIX + 1.0)
    assert isinstance(sensor, Recorded)
    with pytest.raises(DriverError, match="not open"):
        sensor.read(0.1)
    sensor.open()
    sensor._closed = clock  # type: ignore[assignment]
    assert sensor.read(0.25) is None and clock.moment == 5000.25
    for rows in samples.datagrams():
        while (block := sensor.read(0.05)) is None:
            pass
        due = 5001.0 + (samples.sent_at[rows][-1] - begin) / speed
        assert clock.moment == pytest.approx(due, abs=1e-5)
        at = UNIX + 1.0 + (samples.sampled_at[rows] - begin) / speed
        assert np.abs(block.timestamps - at).max() < 1e-5
        assert (block.forces == samples.forces[rows]).all()
        assert (block.alines == samples.alines[rows]).all()
        assert type(block.alines) is np.ndarray  # nothing that is read when it is sent
    with pytest.raises(RecordingOver):
        while sensor.read(0.05) is None:
            pass
    with pytest.raises(RecordingOver):
        sensor.read(0.05)
    sensor.close()


def test_a_sensor_in_a_loop_goes_on(tmp_path: Path, clock: Clock) -> None:
    folder = make_session(tmp_path, Made(seconds=0.2, aline_length=16))
    begin, end = played_span(Session(folder))
    sensor = ReplayForceSensor(str(folder), loop=True)
    sensor.open()
    sensor._closed = clock  # type: ignore[assignment]
    stamps = []
    while len(stamps) < 40:
        if (block := sensor.read(1.0)) is not None:
            stamps.append(block.timestamps[0])
    round_s = end - begin + BETWEEN_ROUNDS_S
    assert stamps[13] - stamps[0] == pytest.approx(round_s, abs=1e-6)
    assert stamps[39] - stamps[0] == pytest.approx(3 * round_s, abs=1e-6)


def read_out(camera: Any, most: int = 10_000) -> list[tuple[float, Any]]:
    """When (monotonic) each picture of a camera came, and it; until it is over."""
    found: list[tuple[float, Any]] = []
    try:
        while len(found) < most:
            if (frame := camera.read(0.5)) is not None:
                found.append((time.monotonic(), frame))
    except RecordingOver:
        pass
    return found


@pytest.fixture
def opened() -> Iterator[Callable[..., list[Any]]]:
    """`opened(session, …)`: its cameras, open, and closed with the test."""
    made: list[Any] = []

    def begin(folder: Path, **options: Any) -> list[Any]:
        made.extend(open_replay_cameras(str(folder), **options))
        for camera in made:
            camera.open()
        return made

    yield begin
    for camera in made:
        camera.close()


def test_pictures_are_the_very_bytes_and_never_early(
    tmp_path: Path, opened: Callable[..., list[Any]]
) -> None:
    folder = make_session(tmp_path, SMALL)
    session = Session(folder)
    begin = played_span(session)[0]
    began_at, unix = time.monotonic(), time.time()
    found = opened(folder, speed=2.0, start_at=unix + 0.3)
    assert [camera.name for camera in found] == ["cam0", "cam1"]
    assert all(isinstance(camera, Recorded) for camera in found)
    came: dict[str, list[tuple[float, Any]]] = {}
    threads = [
        threading.Thread(target=lambda c=camera: came.update({c.name: read_out(c)}))
        for camera in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number, view in enumerate(session.views):
        entries, frames = session.frames(view), came[f"cam{number}"]
        assert [f.jpeg for _, f in frames] == [picture(number, k, SMALL.size) for k in range(30)]
        stamps = np.array([frame.captured_at for _, frame in frames])
        captured = np.array([entry.captured_at for entry in entries])
        assert np.abs(stamps - (unix + 0.3 + (captured - begin) / 2)).max() < 1e-5
        sent = np.array([entry.sent_at for entry in entries])
        late = np.array([moment for moment, _ in frames]) - began_at - 0.3 - (sent - begin) / 2
        assert late.min() > -0.005 and np.median(late) < 0.5
    ended = time.monotonic() - began_at
    assert ended > 0.3 + (played_span(session)[1] - begin) / 2


def test_broken_and_missing_pictures_are_left_out_and_counted(
    tmp_path: Path, opened: Callable[..., list[Any]]
) -> None:
    folder = make_session(tmp_path, Made(seconds=1.0, views=("View1",), aline_length=4))
    entries = Session(folder).frames("View1")
    entries[3].path.unlink()
    entries[4].path.write_bytes(entries[4].read()[:-20])
    entries[29].path.write_bytes(b"")
    camera = opened(folder, speed=100.0)[0]
    kept = [k for k in range(30) if k not in (3, 4, 29)]
    frames = [frame.jpeg for _, frame in read_out(camera)]
    assert frames == [picture(0, k, (64, 36)) for k in kept]
    assert camera.skipped == 3
    with pytest.raises(RecordingOver, match="3 pictures left out"):
        camera.read(0.1)


def test_a_camera_without_any_whole_picture_is_over_even_in_a_loop(
    tmp_path: Path, opened: Callable[..., list[Any]]
) -> None:
    folder = make_session(tmp_path, Made(seconds=0.2, views=("View1",), aline_length=4))
    for entry in Session(folder).all_frames:
        entry.path.unlink()
    camera = opened(folder, speed=100.0, loop=True)[0]
    assert read_out(camera) == []


def test_a_camera_that_is_opened_again_goes_on_where_it_was(
    tmp_path: Path, opened: Callable[..., list[Any]]
) -> None:
    folder = make_session(tmp_path, Made(seconds=1.0, views=("View1",), aline_length=4))
    camera = opened(folder, speed=100.0)[0]
    first = read_out(camera, 12)
    camera.close()
    camera.close()
    camera.open()
    frames = [frame.jpeg for _, frame in [*first, *read_out(camera)]]
    assert frames == [picture(0, k, (64, 36)) for k in range(30)]


def test_a_camera_in_a_loop_starts_again(tmp_path: Path, opened: Callable[..., list[Any]]) -> None:
    folder = make_session(tmp_path, Made(seconds=0.5, views=("View1",), aline_length=4))
    frames = read_out(opened(folder, speed=100.0, loop=True)[0], 40)
    assert [f.jpeg for _, f in frames] == [picture(0, k % 15, (64, 36)) for k in range(40)]


def test_only_a_few_pictures_are_read_ahead(
    tmp_path: Path, opened: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    folder = make_session(tmp_path, Made(seconds=1.0, views=("View1",), aline_length=4))
    reads: list[str] = []
    import senders.cameras.replay as module

    original = module.FrameEntry.read

    def read(entry: Any) -> bytes:
        reads.append(entry.file)
        return original(entry)

    monkeypatch.setattr(module.FrameEntry, "read", read)
    camera = opened(folder, start_at=time.time() + 60)[0]
    until(lambda: len(reads) == 9, "the pictures that are read ahead")  # 8, and 1 in hand
    assert camera.read(0.3) is None
    until(lambda: len(reads) == 10, "one more, for the one that waits for its time")
    assert camera.read(0.3) is None and len(reads) == 10


def test_sessions_of_older_rigs_are_played_too(
    tmp_path: Path, clock: Clock, opened: Callable[..., list[Any]]
) -> None:
    folder = make_older_session(tmp_path, SMALL)
    session = Session(folder)
    found = played(ReplayRobot(str(folder), speed=10.0), clock)
    assert len(found) == 100
    gaps = np.diff([moment for moment, _ in found])
    assert np.abs(gaps[1:] - 0.001).max() < 1e-5
    sensor = ReplayForceSensor(str(folder), speed=10.0)
    sensor.open()
    sensor._closed = clock  # type: ignore[assignment]
    forces = []
    with pytest.raises(RecordingOver):
        while True:
            if (block := sensor.read(1.0)) is not None:
                forces.append(block.forces)
    assert (np.concatenate(forces) == session.samples.forces).all()


def test_pictures_of_older_rigs_are_played_too(
    tmp_path: Path, opened: Callable[..., list[Any]]
) -> None:
    folder = make_older_session(tmp_path, SMALL)
    frames = read_out(opened(folder, speed=100.0)[0])
    assert [frame.jpeg for _, frame in frames] == [picture(0, k, SMALL.size) for k in range(30)]


# --- what cannot be played -----------------------------------------------------------------------

TABLES = {"robot": robots.DRIVERS, "cameras": cameras.DRIVERS, "sensor": sensors.DRIVERS}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "session=PATH"),
        (["session=/nowhere/at/all"], "no such folder"),
        (["session={empty}"], "no session in it"),
        (["session={results}"], "recorded in it"),
        (["session={good}", "speed=0"], "speed must be"),
        (["session={good}", "speed=nan"], "speed must be"),
        (["session={good}", "start_at=1000"], "start_at is"),
        (["session={good}", "start_at=1e12"], "start_at is"),
        (["session={unfinished}"], r"recover_session\.py"),
        (["session={apart}"], "hours apart"),
    ],
)
def test_what_cannot_be_played_is_one_line(
    tmp_path: Path, kind: str, options: list[str], says: str
) -> None:
    small = Made(seconds=0.2, aline_length=4)
    places = {name: tmp_path / name for name in ("empty", "results")}
    for place in places.values():
        place.mkdir()
    (places["results"] / layout.results_name(STAMP)).write_text('[{"timestamp": 1.0}]')
    for name in ("good", "unfinished", "apart"):
        places[name] = make_session(tmp_path / name, small)
    (places["unfinished"] / (layout.sensor_name(STAMP) + layout.PART)).touch()
    (places["apart"] / layout.results_name(STAMP)).write_text('[{"timestamp": 1.0}]')
    given = [option.format(**places) for option in options]
    with pytest.raises((OptionError, ProgramError), match=says) as caught:
        registry.make(TABLES[kind], "replay", {}, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [("robot", "robot_state_*"), ("cameras", "*/*.jpg"), ("sensor", "sensor_data_*")],
)
def test_a_session_without_a_stream_plays_the_others(
    tmp_path: Path, kind: str, pattern: str
) -> None:
    folder = make_session(tmp_path, Made(seconds=0.2, aline_length=4))
    for path in folder.glob(pattern):
        path.unlink()
    for path in folder.glob("frames_*.csv") if kind == "cameras" else ():
        path.unlink()
    for name, table in TABLES.items():
        if name == kind:
            with pytest.raises(ProgramError, match="recorded in it"):
                registry.make(table, "replay", {}, [f"session={folder}"])
        else:
            registry.make(table, "replay", {}, [f"session={folder}"])


def test_a_recording_is_only_played_when_asked_for() -> None:
    for table in TABLES.values():
        assert not table["replay"].real


# --- the timeline --------------------------------------------------------------------------------


def test_programs_with_one_start_share_the_timeline(clock: Clock) -> None:
    first = Timeline(100.0, 160.0, speed=2.0, start_at=UNIX + 5)
    first.start()
    clock.moment += 3.0
    second = Timeline(100.0, 160.0, speed=2.0, start_at=UNIX + 5)
    second.start()
    first.start()  # changes nothing
    assert first.deadline(130.0) == second.deadline(130.0) == 5005.0 + 15.0
    assert first.stamp(130.0) == second.stamp(130.0) == UNIX + 20.0


def test_the_moment_of_sending_bears_broken_stamps() -> None:
    nan = np.nan
    sent = [1.0, 2.0, 900.0, -50.0, nan, nan, 6.5, 6.2]
    stamped = [0.9, 1.9, 3.0, 4.0, 5.0, nan, 6.4, 6.1]
    arrived = [1.1, 2.1, 3.1, 4.1, 5.1, 6.0, nan, nan]
    found = moments_sent(sent, stamped, arrived)
    # Never earlier than the one before: the order is that in which they came.
    assert found.tolist() == [1.0, 2.0, 3.1, 4.1, 5.0, 6.0, 6.5, 6.5]
    assert np.isnan(moments_sent([nan], [nan], [nan])).all()
