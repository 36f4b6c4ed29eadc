"""Comparing recordings: equal is equal, and every difference is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from common.session import Session, layout
from scripts.compare_sessions import compare, timing_ms
from tests.sessions import STAMP, START, Made, make_session
from tests.support import Child

MADE = Made(seconds=1.0, aline_length=8)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return make_session(tmp_path / "first", MADE)


def test_a_session_played_later_is_the_same(first: Path, tmp_path: Path) -> None:
    second = make_session(tmp_path / "second", Made(seconds=1.0, aline_length=8, start=START + 77))
    streams = compare(Session(first), Session(second))
    assert [s.name for s in streams] == ["View1", "View2", "robot", "sensor"]
    assert all(s.equal for s in streams)
    assert timing_ms(streams).max() < 0.01
    tool = Child("scripts/compare_sessions.py", str(first), str(second))
    assert tool.end() == 0 and tool.lines[-1][1] == "the same"


@pytest.mark.parametrize("stream", ["View2", "robot", "sensor"])
def test_one_changed_item_is_found(first: Path, tmp_path: Path, stream: str) -> None:
    second = tmp_path / "second"
    shutil.copytree(first, second)
    if stream == "View2":
        path = Session(second).frames("View2")[5].path
        path.write_bytes(path.read_bytes() + b"\0")
    elif stream == "robot":
        path = second / layout.robot_name(STAMP)
        lines = path.read_text().splitlines(keepends=True)
        lines[6], lines[7] = lines[7], lines[6]
        path.write_text("".join(lines))
    else:
        path = second / layout.sensor_name(STAMP)
        with np.load(path) as arrays:
            kept = dict(arrays)
        kept["alines"][5, 3] += 1
        np.savez(path, **kept)
    streams = compare(Session(first), Session(second))
    assert [s.name for s in streams if not s.equal] == [stream]
    assert next(s for s in streams if s.name == stream).same < 650 - 4
    assert Child("scripts/compare_sessions.py", str(first), str(second)).end() == 1


def test_items_missing_at_the_beginning_are_said_and_the_rest_is_compared(
    first: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    shutil.copytree(first, second)
    path = second / layout.robot_name(STAMP)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[4:]))
    robot = next(s for s in compare(Session(first), Session(second)) if s.name == "robot")
    assert (robot.first, robot.second, robot.same) == (100, 97, 97)
    assert not robot.equal
