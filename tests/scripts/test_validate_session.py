"""`scripts/validate_session.py`: a good session is ok, and every fault is found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.session import Session, checks, layout
from common.session.checks import broken_pictures, check_session
from common.session.findings import SessionReport
from scripts.validate_session import main
from tests.sessions import STAMP, START, Made, make_older_session, make_session
from tests.support import Child

SMALL = Made(seconds=3.0, aline_length=8)


def rewrite_csv(path: Path, change: Callable[[int, list[str]], list[str] | None]) -> None:
    """Change (or, for None, leave out) each row of a CSV file."""
    head, *rows = path.read_text().splitlines()
    kept = [change(number, row.split(",")) for number, row in enumerate(rows)]
    path.write_text("\n".join([head, *(",".join(row) for row in kept if row is not None), ""]))


def rewrite_samples(folder: Path, **changed: Callable[[Any], Any]) -> None:
    path = folder / layout.sensor_name(STAMP)
    with np.load(path) as loaded:
        arrays = {name: np.array(loaded[name]) for name in loaded.files}
    for name, change in changed.items():
        arrays[name] = change(arrays[name])
    np.savez(path, **arrays)


def rewrite_note(folder: Path, **values: Any) -> None:
    path = folder / layout.session_name(STAMP)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def robot(folder: Path) -> Path:
    return folder / layout.robot_name(STAMP)


def index(folder: Path) -> Path:
    return folder / layout.frames_name(STAMP)


# --- the damages ---------------------------------------------------------------------------------


def pause(folder: Path) -> None:
    rewrite_csv(robot(folder), lambda k, row: None if 100 <= k < 150 else row)


def lose_samples(folder: Path) -> None:
    keep = np.r_[0:500, 600:1950]
    names = ("timestamps", "send_timestamps", "recv_timestamps", "forces", "alines")
    rewrite_samples(folder, **{name: lambda values: values[keep] for name in names})


def set_clock_back(folder: Path) -> None:
    def change(k: int, row: list[str]) -> list[str]:
        if k >= 150:
            row[1:3] = [repr(float(value) - 2.5) for value in row[1:3]]
        return row

    rewrite_csv(robot(folder), change)


def set_camera_clock_ahead(folder: Path) -> None:
    def change(k: int, row: list[str]) -> list[str]:
        if row[0] == "View1" and k >= 90:
            row[4:6] = [repr(float(value) + 1.0) for value in row[4:6]]
        return row

    rewrite_csv(index(folder), change)


def swap_datagrams(folder: Path) -> None:
    order = np.arange(1950)
    order[200:220] = np.r_[210:220, 200:210]
    names = ("timestamps", "send_timestamps", "forces", "alines")
    rewrite_samples(folder, **{name: lambda values: values[order] for name in names})


def empty_a_view(folder: Path) -> None:
    rewrite_csv(index(folder), lambda _, row: None if row[0] == "View2" else row)
    for path in (folder / "View2").glob("*.jpg"):
        path.unlink()


def name_a_view(folder: Path) -> None:
    rewrite_note(folder, views=["View1", "View2", "View3"])


def thin_a_view(folder: Path) -> None:
    for number, entry in enumerate(Session(folder).frames("View2")):
        if number >= 30:
            entry.path.unlink()
    counts = {"View2": 0}

    def change(_: int, row: list[str]) -> list[str] | None:
        counts["View2"] += row[0] == "View2"
        return None if row[0] == "View2" and counts["View2"] > 30 else row

    rewrite_csv(index(folder), change)


def tear_a_picture(folder: Path) -> None:
    path = Session(folder).frames("View2")[40].path
    path.write_bytes(path.read_bytes()[:-10])


def remove_a_picture(folder: Path) -> None:
    Session(folder).frames("View1")[40].path.unlink()


def skip_numbers(folder: Path) -> None:
    def change(_: int, row: list[str]) -> list[str]:
        if row[0] == "View1" and int(row[3]) > 50:
            row[3] = str(int(row[3]) + 4)
        return row

    rewrite_csv(index(folder), change)


def restart_numbers(folder: Path) -> None:
    def change(_: int, row: list[str]) -> list[str]:
        row[3] = str(int(row[3]) % 60)
        return row

    rewrite_csv(index(folder), change)


def spoil_a_state(folder: Path) -> None:
    def change(k: int, row: list[str]) -> list[str]:
        return [*row[:8], "nan", *row[9:]] if k == 77 else row

    rewrite_csv(robot(folder), change)


def spoiled(at: Any) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[at] = np.nan
        return values

    return change


def spoil_a_force(folder: Path) -> None:
    rewrite_samples(folder, forces=spoiled(7))


def spoil_an_aline(folder: Path) -> None:
    rewrite_samples(folder, alines=spoiled((1949, 3)))


def spoil_a_stamp(folder: Path) -> None:
    rewrite_samples(folder, timestamps=spoiled(10))


def leave_unfinished(folder: Path) -> None:
    (folder / (layout.results_name(STAMP) + layout.PART)).touch()


def tear_the_samples(folder: Path) -> None:
    path = folder / layout.sensor_name(STAMP)
    path.write_bytes(path.read_bytes()[:1000])


def part_the_streams(folder: Path) -> None:
    def later(values: Any) -> Any:
        return values + 60

    rewrite_samples(folder, timestamps=later, send_timestamps=later, recv_timestamps=later)


@pytest.mark.parametrize(
    ("damage", "stream", "says", "broken"),
    [
        (pause, "robot", "1 gaps over 3 periods, the longest 0.510 s", False),
        (lose_samples, "sensor", "1 gaps over 3 periods, the longest 0.155 s", False),
        (set_clock_back, "robot", "1 stamps go back, by up to 2.490 s", False),
        (set_clock_back, "robot", "clock jumps 1 times, by up to -2.500 s", False),
        (set_camera_clock_ahead, "View1", "clock jumps 1 times, by up to +1.000 s", False),
        (swap_datagrams, "sensor", "1 samples out of order", False),
        (empty_a_view, "View2", "no pictures", True),
        (name_a_view, "View3", "no pictures", True),
        (thin_a_view, "View2", "30 pictures where another view has 90", False),
        (tear_a_picture, "View2", "1 of 90 pictures broken", True),
        (remove_a_picture, "View1", "1 of 90 pictures broken", True),
        (skip_numbers, "View1", "4 pictures of cam0 never came (seq)", False),
        (restart_numbers, "View2", "counts from the start again, or twice, 1 times", False),
        (spoil_a_state, "robot", "1 states hold what is no number", True),
        (spoil_a_force, "sensor", "1 forces are no numbers", True),
        (spoil_an_aline, "sensor", "1 A-scans hold what is no number", True),
        (spoil_a_stamp, "sensor", "1 stamps are no numbers", True),
        (leave_unfinished, "session", "is unfinished: scripts/recover_session.py", True),
        (tear_the_samples, "sensor", "not a file of samples", True),
        (part_the_streams, "session", "no moment is covered by all streams", True),
        (lambda f: robot(f).unlink(), "robot", "no states", False),
        (lambda f: rewrite_note(f, dropped={"frames": 12}), "session", "dropped 12 frames", False),
        (lambda f: rewrite_note(f, failure="No space left"), "session", "No space left", False),
        (lambda f: rewrite_note(f, finished=False), "session", "did not finish it", False),
        (lambda f: rewrite_note(f, states=301), "robot", "301 were recorded, 300 are", True),
        (lambda f: rewrite_note(f, frames={"View1": 91}), "View1", "91 were recorded", True),
        (lambda f: index(f).write_text("x\n"), "pictures", "not an index", True),
    ],
)
def test_every_fault_is_found(
    tmp_path: Path, damage: Callable[[Path], None], stream: str, says: str, broken: bool
) -> None:
    folder = make_session(tmp_path, SMALL)
    damage(folder)
    report = check_session(folder)
    found = [f for f in report.findings if f.stream == stream and says in f.text]
    assert len(found) == 1, report.findings
    assert found[0].broken == broken and "\n" not in found[0].text
    if broken:
        assert report.verdict == "broken"
    else:
        assert report.verdict == "ok with remarks", report.findings


def test_a_good_session_is_ok(tmp_path: Path) -> None:
    report = check_session(make_session(tmp_path, SMALL))
    assert report.verdict == "ok" and report.findings == []
    streams = {stream.stream: stream for stream in report.streams}
    assert {name: s.count for name, s in streams.items()} == {
        "View1": 90,
        "View2": 90,
        "robot": 300,
        "sensor": 1950,
    }
    rates = {"View1": 30, "View2": 30, "robot": 100, "sensor": 650}
    assert {name: s.rate_hz for name, s in streams.items()} == pytest.approx(rates)
    assert report.seconds == pytest.approx(3.0, abs=0.05)
    assert report.covered_s == pytest.approx(2.95, abs=0.05)
    assert report.actions == 30 and report.pictures_checked == 180


def test_an_older_rigs_session_is_ok(tmp_path: Path) -> None:
    in_step = Made(seconds=3.0, aline_length=8, behind_s=0.0)
    report = check_session(make_older_session(tmp_path / "a", in_step))
    assert report.verdict == "ok", report.findings
    # Only the robot's arrivals are known there: the others may be in another clock.
    report = check_session(make_older_session(tmp_path / "b", SMALL))
    assert report.verdict == "ok with remarks"
    assert "clocks may differ" in report.findings[0].text


def test_a_stall_is_no_jump_of_the_clock(tmp_path: Path) -> None:
    folder = make_session(tmp_path, SMALL)
    stalled_until = START + 1.5

    def change(_: int, row: list[str]) -> list[str]:
        at = float(row[0])
        return [repr(max(at, stalled_until)), *row[1:]] if at > START + 0.8 else row

    rewrite_csv(robot(folder), change)
    assert check_session(folder).verdict == "ok"


def test_alines_are_looked_at_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_session(tmp_path, SMALL)
    for row in (3, 1000, 1949):
        rewrite_samples(folder, alines=spoiled((row, 7)))
    monkeypatch.setattr(checks, "_PIECE_BYTES", 10 * 4 * SMALL.aline_length)
    texts = [finding.text for finding in check_session(folder).findings]
    assert texts == ["3 A-scans hold what is no number"]
    texts = [finding.text for finding in check_session(folder, quick=True).findings]
    assert texts == ["2 A-scans hold what is no number"]  # those in pieces 0 and 100 of 195


def test_quick_looks_at_some(tmp_path: Path) -> None:
    made = Made(seconds=2.0, fps=1000.0, views=("View1",), size=(16, 16), aline_length=8)
    folder = make_session(tmp_path, made)
    report = check_session(folder, quick=True)
    assert report.pictures_checked == 200 and report.streams[0].count == 2000
    entries = Session(folder).all_frames
    for number in (0, 999, 1999):
        entries[number].path.write_bytes(b"no")
    assert len(broken_pictures(entries)) == 3


def test_what_is_no_session_is_broken(tmp_path: Path) -> None:
    report = check_session(tmp_path)
    assert report.verdict == "broken" and isinstance(report, SessionReport)
    assert report.seconds == report.covered_s == 0.0
    (tmp_path / layout.results_name(STAMP)).write_text('[{"timestamp": 1.0}]')
    assert "no pictures, states or samples" in str(check_session(tmp_path).findings)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["validate_session.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    return main()


def test_sessions_of_a_folder_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Made(seconds=1.0, aline_length=8)
    first = make_session(tmp_path / "all", small)
    second = make_session(
        tmp_path / "all", Made(seconds=1.0, aline_length=8, start=START + 60, views=("a", "b"))
    )
    assert run(monkeypatch, tmp_path / "all") == 0
    for entry in Session(first).frames("View1")[:2]:
        entry.path.write_bytes(b"")
    capsys.readouterr()
    out = tmp_path / "report.json"
    assert run(monkeypatch, tmp_path / "all", "--json", out) == 1
    said = capsys.readouterr().out
    assert said.count(" verdict ") == 1 and "2 of 30 pictures broken" in said
    reports = json.loads(out.read_text())
    assert [report["verdict"] for report in reports] == ["broken", "ok"]
    assert [Path(report["folder"]).name for report in reports] == [first.name, second.name]
    assert {s["stream"] for s in reports[1]["streams"]} == {"a", "b", "robot", "sensor"}


def test_it_runs_as_a_program_and_says_what_is_no_session(
    tmp_path: Path, program: Callable[..., Child]
) -> None:
    child = program("scripts/validate_session.py", str(tmp_path))
    assert child.end(30) == 2
    assert "no session in it" in child.text and "Traceback" not in child.text
