"""A session as rows at a fixed rate; what decides which sample a row takes. Needs no LeRobot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.session import Session, SessionError, layout
from scripts.lerobot_export import LeRobotOptions, decode, export
from scripts.session_grid import GridOptions, runs_of
from tests.sessions import STAMP, START, Made, joints_at, make_older_session, make_session


def session(tmp_path: Path, **made: Any) -> Session:
    return Session(make_session(tmp_path, Made(**made)))


def results_path(made: Session) -> Path:
    return made.folder / layout.results_name(STAMP)


def change_results(made: Session, change: Any) -> Session:
    path = results_path(made)
    path.write_text(json.dumps([change(entry) for entry in json.loads(path.read_text())]))
    return Session(made.folder)


@pytest.mark.parametrize("fps", [0, 7, 30, 100])
def test_a_row_takes_the_newest_of_each_stream_and_nothing_later(tmp_path: Path, fps: int) -> None:
    made = session(tmp_path)
    (run,) = runs_of(made, GridOptions(fps=fps))
    fps = fps or 10
    assert run.fps == fps
    assert np.diff(run.moments) == pytest.approx(1 / fps, abs=1e-6)
    assert len(run) >= 1.5 * fps
    for view in made.views:
        times = np.array([entry.captured_at for entry in made.frames(view)])
        taken = np.array([entry.captured_at for entry in run.pictures[view]])
        newest = [times[times <= moment].max() for moment in run.moments]
        assert taken.tolist() == newest
    assert run.states is not None and run.samples is not None
    for times, chosen in (
        (made.states.sampled_at, run.states),
        (made.samples.sampled_at, run.samples),
    ):
        newest = [times[times <= moment].max() for moment in run.moments]
        assert times[chosen].tolist() == newest
    stamps = np.array([entry["timestamp"] for entry in made.results])
    for k, moment in enumerate(run.moments):
        in_force = made.results[int(np.flatnonzero(stamps <= moment).max())]
        assert run.actions[k] == pytest.approx(np.float32(in_force["actions"][0]))
    assert set(run.tasks) == {"touch the port"}


def test_without_actions_the_next_state_is_the_action(tmp_path: Path) -> None:
    made = session(tmp_path)
    results_path(made).unlink()
    made = Session(made.folder)
    (run,) = runs_of(made, GridOptions(fps=20))
    assert run.states is not None
    joints = made.states.joints[run.states]
    assert run.actions[:-1] == pytest.approx(np.float32(joints[1:]))
    later = run.moments + 1 / 20 - START
    assert run.actions == pytest.approx(np.array([joints_at(t) for t in later]), abs=0.06)
    assert runs_of(made, GridOptions())[0].fps == 10
    with pytest.raises(SessionError, match="no action was recorded"):
        runs_of(made, GridOptions(actions="executed"))


def test_a_gap_in_a_view_ends_the_run(tmp_path: Path) -> None:
    made = session(tmp_path, seconds=6.0)
    lost = [e for e in made.frames("View2") if 2.0 < e.captured_at - START < 3.5]
    path = made.folder / layout.frames_name(STAMP)
    names = {entry.file for entry in lost}
    kept = [line for line in path.read_text().splitlines() if line.split(",")[1] not in names]
    path.write_text("\n".join(kept) + "\n")
    for entry in lost:
        entry.path.unlink()
    runs = runs_of(Session(made.folder), GridOptions(max_age_s=0.2))
    assert len(runs) == 2
    assert runs[0].moments[-1] - START == pytest.approx(2.2, abs=0.15)
    assert runs[1].moments[0] - START == pytest.approx(3.55, abs=0.15)
    for run in runs:
        age = run.moments - [entry.captured_at for entry in run.pictures["View2"]]
        assert age.min() >= 0 and age.max() <= 0.2
    assert len(runs_of(Session(made.folder), GridOptions(max_age_s=2.0))) == 1
    (long,) = runs_of(Session(made.folder), GridOptions(max_age_s=0.2, shortest_s=2.3))
    assert long.moments[0] == runs[1].moments[0]


def test_while_no_action_was_in_force_there_are_no_rows(tmp_path: Path) -> None:
    made = session(tmp_path, seconds=6.0)

    def hold(entry: dict[str, Any]) -> dict[str, Any]:
        held = 2.0 < entry["timestamp"] - START < 4.0
        return {**entry, "hold": True} if held else entry

    runs = runs_of(change_results(made, hold), GridOptions())
    assert len(runs) == 2
    assert runs[0].moments[-1] - START < 2.0 + 0.3
    assert runs[1].moments[0] - START >= 4.0


@pytest.mark.parametrize(
    "actions", [None, "x", [], [[1.0] * 5], [[float("nan")] * 7], [1.0, 2.0], [["a"] * 7]]
)
def test_actions_that_are_none_are_left_out(tmp_path: Path, actions: object) -> None:
    made = change_results(session(tmp_path), lambda entry: {**entry, "actions": actions})
    assert runs_of(made, GridOptions())[0].actions.shape[1] == 6  # the next state's
    with pytest.raises(SessionError, match="no action was recorded"):
        runs_of(made, GridOptions(actions="executed"))


def test_each_row_has_the_task_that_its_action_was_for(tmp_path: Path) -> None:
    def change(entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "task": "later" if entry["action_number"] > 10 else "first"}

    made = change_results(session(tmp_path), change)
    (run,) = runs_of(made, GridOptions())
    assert run.tasks == sorted(run.tasks) and set(run.tasks) == {"first", "later"}
    assert set(runs_of(made, GridOptions(task="given"))[0].tasks) == {"given"}


def test_older_sessions_need_a_task(tmp_path: Path) -> None:
    made = Session(make_older_session(tmp_path, Made(behind_s=0.0)))
    with pytest.raises(SessionError, match="no task was recorded"):
        runs_of(made, GridOptions())
    assert len(runs_of(made, GridOptions(task="insert"))) == 1


def test_streams_of_clocks_that_differ_are_refused(tmp_path: Path) -> None:
    made = Session(make_older_session(tmp_path, Made(behind_s=5.0)))
    with pytest.raises(SessionError, match="do not overlap"):
        runs_of(made, GridOptions(task="insert"))


def test_sessions_without_pictures_or_overlap(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no pictures"):
        runs_of(session(tmp_path, views=()), GridOptions())
    with pytest.raises(SessionError, match="for 50 s were all of pictures of View1,"):
        runs_of(session(tmp_path / "short"), GridOptions(shortest_s=50))


def test_pictures_are_decoded_no_larger_than_needed_and_stay_the_same(tmp_path: Path) -> None:
    made = session(tmp_path, seconds=0.5, size=(1280, 720))
    entry = made.frames("View1")[3]
    full = decode(entry, None)
    assert full.shape == (720, 1280, 3)
    assert np.median(full, axis=(0, 1)) == pytest.approx([160, 90, 0], abs=3)  # red first
    for size in ((640, 360), (320, 180), (500, 280), (1280, 720), (160, 90)):
        small = decode(entry, size)
        assert small.shape == (size[1], size[0], 3)
        factor = 1280 / size[0]
        rows = (np.arange(size[1]) * factor).astype(int)
        columns = (np.arange(size[0]) * factor).astype(int)
        assert np.abs(small.astype(float) - full[rows][:, columns]).mean() < 6


@pytest.mark.parametrize("damage", [b"", b"no picture", "half", "huge"])
def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path, damage: object) -> None:
    made = session(tmp_path, seconds=0.5)
    entry = made.frames("View1")[0]
    data = entry.path.read_bytes()
    if damage == "half":
        damage = data[: len(data) // 2]
    if damage == "huge":
        at = data.index(b"\xff\xc0")
        damage = data[: at + 5] + b"\xff\xff\xff\xff" + data[at + 9 :]
    assert isinstance(damage, bytes)
    entry.path.write_bytes(damage)
    with pytest.raises(SessionError, match=entry.file):
        decode(entry, (64, 36))


def test_what_cannot_be_exported_is_said_before_anything_is_written(tmp_path: Path) -> None:
    made = session(tmp_path)
    out = tmp_path / "out"
    with pytest.raises(SessionError, match="no session"):
        export([], out)
    (made.folder / "sensor_data_20260101_000000.npz.part").touch()
    with pytest.raises(SessionError, match=r"run scripts/recover_session.py"):
        export(Session(made.folder), out)
    (made.folder / "sensor_data_20260101_000000.npz.part").unlink()
    wide = session(tmp_path / "b", views=("View1",))
    with pytest.raises(SessionError, match=r"unlike .* in observation.images.View2"):
        export([made, wide], out)
    with pytest.raises(SessionError, match=r"different rates \(\[5, 10\] Hz\)"):
        export([made, session(tmp_path / "c", action_hz=5.0)], out)
    assert not out.exists() and not out.with_name("out.part").exists()
    out.mkdir()
    with pytest.raises(SessionError, match="exists already"):
        export(made, out)


@pytest.mark.parametrize("options", [{"width": 5}, {"quality": 99}, {"fps": -1}, {"max_age_s": 0}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LeRobotOptions(**options)
