"""`make demo` as a user runs it: five real processes, then a summary and a picture."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from common import endpoints
from scripts.demo import _goals
from tests.support import ROOT, free_ports, is_free, wait_until

USED = (
    endpoints.CAMERA,
    endpoints.ROBOT,
    endpoints.ACTION,
    endpoints.SENSOR,
    endpoints.TIME,
    endpoints.RIG_STATE,
    endpoints.RIG_COMMAND,
)


def free_offset() -> int:
    """A number that, added to every default port, gives one that is free."""
    for port in free_ports(50):
        offset = port - endpoints.CAMERA.port
        if all(is_free(e.port + offset) for e in USED):
            return offset
    raise AssertionError("no room for a run's ports")


def demo(folder: Path, checkpoint: Path, *extra: str) -> subprocess.Popen[str]:
    given = ["--runs-dir", str(folder / "runs"), "--checkpoint", str(checkpoint), "--plain"]
    return subprocess.Popen(
        [sys.executable, "scripts/demo.py", *given, "--port-offset", str(free_offset()), *extra],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a Ctrl+C then reaches what a terminal's would, and not pytest
    )


@pytest.fixture(scope="module")
def rig_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo is to make its policy, as on a machine where nothing is there yet."""
    return tmp_path_factory.mktemp("demo") / "tiny"


def test_the_whole_pipeline_moves_the_arm(tmp_path: Path, rig_checkpoint: Path) -> None:
    process = demo(tmp_path, rig_checkpoint, "--duration", "6")
    output, _ = process.communicate(timeout=170)
    assert process.returncode == 0, output
    run = tmp_path / "runs" / "latest"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["actions"] >= 30
    assert summary["action_hz"] == pytest.approx(10.0, rel=0.3)
    assert summary["vl_updates"] > 2
    assert set(summary["frames"]) == {f"View{n}" for n in range(1, 6)}
    assert min(summary["frames_hz"].values()) > 1
    assert summary["robot_hz"] == pytest.approx(100, rel=0.4)
    assert summary["sensor_hz"] == pytest.approx(650, rel=0.3)
    assert summary["malformed"] == {}
    with (run / "rig.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    joints = np.array([[float(row[f"j{n}"]) for n in range(1, 7)] for row in rows])
    assert np.ptp(joints, axis=0).max() > 0.3, "the arm stood still"
    # The policy's actions hover about the rig's home; so must the arm.
    assert np.abs(joints - joints[0]).max() < 10
    picture = cv2.imread(str(run / "report.png"))
    assert picture.shape == (1080, 1920, 3)
    assert picture.std() > 20
    assert "deadlines missed" in output


def test_a_second_one_is_told_that_its_ports_are_in_use_and_ctrl_c_ends_the_first_cleanly(
    tmp_path: Path, rig_checkpoint: Path
) -> None:
    first = demo(tmp_path / "a", rig_checkpoint, "--duration", "300")
    latest = tmp_path / "a" / "runs" / "latest"
    wait_until(lambda: list(latest.glob("async_inference_*")), "the first results", 120)
    children = psutil.Process(first.pid).children(recursive=True)
    assert len(children) == 6  # the receiver's slow half is one of them

    offset = first.args[first.args.index("--port-offset") + 1]  # type: ignore[index,union-attr]
    second = demo(tmp_path / "b", rig_checkpoint, "--port-offset", str(offset))
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 1
    assert "in use" in output
    assert "Traceback" not in output

    assert all(child.is_running() for child in children)
    os.killpg(first.pid, signal.SIGINT)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 0, output
    assert not [child for child in children if child.is_running()]
    assert json.loads((latest / "summary.json").read_text())["actions"] > 0


def test_holds_between_episodes_are_ticks_and_others_are_not() -> None:
    summary = {
        "action_hz_wanted": 10.0, "duration_s": 125.0, "actions": 1205,
        "frames_hz": {"View1": 30.0},
        "holds": {"no features yet": 44, "episode ended": 1, "sensor stale": 3}, "malformed": {},
        "action_lateness_ms_p50": 0.1, "action_lateness_ms_p99": 2.0, "deadline_misses": 0,
        "action_ms_p50": 4.0, "action_ms_p99": 8.0, "vl_hz": 2.4, "vl_ms_mean": 30.0,
        "feature_age_ms_p50": 300.0, "feature_age_ms_p99": 500.0, "robot_hz": 100.0,
        "sensor_hz": 650.0, "sensor_lost": 0, "rss_mb_end": 300.0, "peak_rss_mb": 300.0,
    }  # fmt: skip
    rows = {name: (figure, met) for name, figure, _, met in _goals(summary, [])}
    assert rows["actions, holds between episodes"] == ("10.00 Hz", True)
    assert rows["holds within episodes"] == ("3", False)
    assert rows["episodes that succeeded"] == ("0 of 0", True)
