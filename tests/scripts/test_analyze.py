"""The timing of sessions, results and logs: the figures, what is left out, and the picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.session import SessionError
from receiver import lines
from scripts.analyze_figures import figures_of
from scripts.analyze_inputs import read_run
from tests.sessions import START, Made, make_older_session, make_session
from tests.support import Child


def figures(path: Path) -> dict[str, Any]:
    return figures_of(read_run(path))


def results_of(folder: Path) -> Path:
    (path,) = folder.glob("inference_results_*.json")
    return path


def test_a_session(tmp_path: Path) -> None:
    found = figures(make_session(tmp_path, Made(seconds=4.0)))
    assert found["source"] == "session"
    updates, actions, streams = found["vl_updates"], found["actions"], found["streams"]
    assert (updates["count"], updates["rate_hz"]) == (10, 2.5)
    assert updates["ms"] == {"mean": 200.0, "p50": 200.0, "p99": 200.0, "max": 200.0}
    assert (actions["count"], actions["rate_hz"]) == (40, 10.0)
    assert actions["inference_ms"]["p50"] == 11.0
    assert actions["lateness_ms"]["max"] == pytest.approx(0.4)
    assert actions["feature_age_ms"]["mean"] == 350.0
    assert actions["ticks_without_action"] == 0
    assert actions["actions_per_update"] == {"4": 9}
    assert actions["window_samples"]["min"] == 65.0
    assert list(streams) == ["View1", "View2", "robot", "sensor"]
    assert streams["View1"]["rate_hz"] == pytest.approx(30.0, abs=0.01)
    assert (streams["View1"]["gaps"], streams["View1"]["lost"]) == (0, 0)
    assert streams["View1"]["delay_ms"]["p50"] == pytest.approx(7.0, abs=0.01)
    assert streams["robot"]["rate_hz"] == pytest.approx(100.0, abs=0.01)
    assert streams["sensor"]["rate_hz"] == pytest.approx(650.0, abs=0.1)
    assert streams["sensor"]["lost"] == 0
    # A session's files say nothing of holds and misses.
    assert "holds" not in found and "deadline_misses" not in found


def test_gaps_and_losses_are_found(tmp_path: Path) -> None:
    folder = make_session(tmp_path, Made(seconds=4.0))
    (index,) = folder.glob("frames_*.csv")
    rows = index.read_text().splitlines(keepends=True)
    # View1 loses its pictures 20 to 29; their files go too, or they would be found by name.
    kept = [rows[0]]
    for row in rows[1:]:
        view, file, _, seq = row.split(",")[:4]
        if view == "View1" and 20 <= int(seq) < 30:
            (folder / view / file).unlink()
        else:
            kept.append(row)
    index.write_text("".join(kept))
    results = results_of(folder)
    entries = json.loads(results.read_text())
    results.write_text(json.dumps(entries[:10] + entries[13:]))
    found = figures(folder)
    view = found["streams"]["View1"]
    assert (view["count"], view["gaps"], view["lost"]) == (110, 1, 10)
    assert view["interval_ms"]["max"] == pytest.approx(1e3 * 11 / 30, abs=0.01)
    assert found["streams"]["View2"]["gaps"] == 0
    assert found["actions"]["ticks_without_action"] == 3


def test_results_alone_say_the_same_of_the_loops(tmp_path: Path) -> None:
    folder = make_session(tmp_path, Made(seconds=2.0))
    whole, alone = figures(folder), figures(results_of(folder))
    assert alone["source"] == "inference results" and "streams" not in alone
    assert alone["actions"] == whole["actions"] and alone["vl_updates"] == whole["vl_updates"]


def test_an_older_rigs_results_leave_out_what_they_do_not_hold(tmp_path: Path) -> None:
    found = figures(results_of(make_older_session(tmp_path, Made(seconds=4.0))))
    assert found["vl_updates"] == {"count": 10, "rate_hz": 2.5}
    actions = found["actions"]
    assert (actions["count"], actions["rate_hz"]) == (40, 10.0)
    assert actions["actions_per_update"] == {"4": 9}
    assert actions["inference_ms"]["max"] == 12.0
    assert not {"lateness_ms", "feature_age_ms", "window_samples"} & set(actions)


def test_an_older_rigs_session(tmp_path: Path) -> None:
    streams = figures(make_older_session(tmp_path, Made(seconds=2.0)))["streams"]
    assert streams["View1"]["count"] == 60
    assert "delay_ms" not in streams["View1"] and "lost" not in streams["View1"]
    assert streams["sensor"]["rate_hz"] == pytest.approx(650.0, abs=0.1)


def status(at: str, updates: int, actions: int, frames: int) -> list[str]:
    said = lines.status(
        updates=updates,
        vl_mean_s=0.2,
        actions=actions,
        action_mean_s=0.02,
        frames={"View1": frames, "View2": frames},
        samples=65,
        window=65,
        joints=(1.0,) * 6,
        pose=(1.0,) * 6,
    )
    return [f"--- Status ({at}) ---", *said[1:]]


def log(path: Path) -> Path:
    """A log as the receiver's own functions write it, across midnight."""
    said = [
        "=== dualrate receiver ===",
        lines.waiting(False, 0, 5, 0, 65, False),
        *status("23:59:56", 0, 0, 100),
        *status("23:59:58", 2, 5, 160),
    ]
    for k in range(40):
        if k % 4 == 0:
            said.append(lines.vl_update(k // 4 + 1, 0.2 + 0.1 * (k == 36)))
        row = (0.123, -0.045, 0.089)
        said.append(lines.action(k + 1, k % 4 + 1, 4, row, 0.0243, 65 - (k == 20), 65))
    said += ["WARNING: " + lines.hold("View1 silent"), "[HOLD] over, going on: View1 silent is no"]
    said += ["WARNING: " + lines.hold("View1 silent"), "WARNING: " + lines.hold("robot silent")]
    said += ["WARNING: [MISS] deadlines missed: 3 in all", *status("00:00:02", 12, 45, 280)]
    path.write_text("\n".join(said) + "\n")
    return path


def test_a_log(tmp_path: Path) -> None:
    found = figures(log(tmp_path / "run.log"))
    assert found["vl_updates"]["count"] == 10
    assert found["vl_updates"]["rate_hz"] == pytest.approx(2.5)
    assert (found["vl_updates"]["ms"]["p50"], found["vl_updates"]["ms"]["max"]) == (200.0, 300.0)
    actions = found["actions"]
    assert (actions["count"], actions["rate_hz"]) == (40, 10.0)
    assert actions["inference_ms"]["p50"] == 24.3
    assert (actions["window_samples"]["min"], actions["window_full"]) == (64.0, 65)
    assert actions["actions_per_update"] == {"4": 9} and actions["vl_reuse"] == 4
    assert found["holds"] == {"View1 silent": 2, "robot silent": 1}
    assert found["deadline_misses"] == 3
    assert found["streams"]["View2"] == {"count": 280, "rate_hz": 30.0}
    assert "ticks_without_action" not in actions


def test_lines_in_the_middle_of_others_are_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.txt"
    said = ["[VL Update #5] Completed in 385ms", "\x00\xff{ noise", "[VL Update #6] Compl"]
    path.write_bytes(b"\n".join(b"Oct 09 host main[7]: " + s.encode("latin-1") for s in said))
    assert figures(path) == {
        "source": "log",
        "name": "journal.txt",
        "vl_updates": {"count": 1, "ms": {"mean": 385.0, "p50": 385.0, "p99": 385.0, "max": 385.0}},
        "holds": {},
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", "{}", "not a list"),
        ("x.json", "[1", "not JSON"),
        ("x.json", "[]", "no actions"),
        ("x.log", "nothing of ours\n", "no actions and no updates"),
        ("x.json", '[{"actions": []}]', "no timestamp"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SessionError, match=said):
        read_run(tmp_path / name)


def test_a_folder_of_two_sessions_asks_for_one(tmp_path: Path) -> None:
    for later in (0.0, 60.0):
        make_session(tmp_path, Made(seconds=0.2, aline_length=4, start=START + later))
    with pytest.raises(SessionError, match="2 sessions in it, name one"):
        read_run(tmp_path)


@pytest.mark.parametrize("kind", ["session", "results", "older", "log"])
def test_the_program_prints_draws_and_writes(
    tmp_path: Path, program: Callable[..., Child], kind: str
) -> None:
    pytest.importorskip("matplotlib")
    made = Made(seconds=3.0, aline_length=4)
    paths: dict[str, Callable[[], Path]] = {
        "session": lambda: make_session(tmp_path, made),
        "results": lambda: results_of(make_session(tmp_path, made)),
        "older": lambda: make_older_session(tmp_path, made),
        "log": lambda: log(tmp_path / "run.log"),
    }
    path = paths[kind]()
    out = tmp_path / "figures.json"
    child = program("scripts/analyze_session.py", str(path), "--json", str(out))
    assert child.end() == 0, child.text
    assert "VL updates" in child.text and "actions, inference ms" in child.text
    assert json.loads(out.read_text()) == figures(path)
    picture = (
        path / "analysis.png" if path.is_dir() else path.with_name(f"{path.stem}_analysis.png")
    )
    image = cv2.imread(str(picture))
    assert image is not None and image.shape == (1080, 1920, 3)
    # Ink in every panel's row: it is not a blank page.
    assert all(np.std(part) > 5 for part in np.array_split(image, 3))


def test_the_program_says_in_one_line_what_is_wrong(
    tmp_path: Path, program: Callable[..., Child]
) -> None:
    child = program("scripts/analyze_session.py", str(tmp_path / "none.json"))
    assert child.end() == 2 and "\n" not in child.text and "No such file" in child.text
    child = program(
        "scripts/analyze_session.py", str(log(tmp_path / "run.log")), "--plot", "/nowhere/x.png"
    )
    assert child.end() == 1 and "/nowhere/x.png" in child.text
