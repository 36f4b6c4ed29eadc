"""The picture of a run, drawn from what its programs left."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.report import draw_report
from senders.drivers import DriverError
from sim.model import build_model
from sim.rendering import RigRenderer
from tests.scripts.written_run import BEGAN_AT, without_seed, write_score, write_trace

VIEWS = np.s_[124:300]  # rows of the picture that show the rig


def write_run(folder: Path, seeds: tuple[int, int]) -> Path:
    write_trace(folder / "rig.csv", seeds)
    write_score(folder / "score.jsonl")
    results = folder / "async_inference_1"
    results.mkdir()
    actions = [
        {
            "deadline": BEGAN_AT + 0.5 + k / 10,
            "lateness_ms": 0.1 * (k + 1),
            "vl_update_number": 1 + k // 4,
            "vl_started_at": BEGAN_AT + 0.4 * (k // 4),
            "vl_ready_at": BEGAN_AT + 0.4 * (k // 4) + 0.3,
        }
        for k in range(20)
    ]
    (results / "inference_results_0.json").write_text(json.dumps(actions))
    summary = {
        "results": [str(results)],
        "policy": "written",
        "device": "cpu",
        "duration_s": 2.0,
        "actions": 20,
        "action_hz": 10.0,
        "deadline_misses": 0,
        "action_lateness_ms_p50": 1.0,
        "action_lateness_ms_p99": 2.0,
        "vl_updates": 5,
        "vl_ms_mean": 300.0,
        "vl_hz": 2.5,
        "feature_age_ms_p50": 500.0,
        "frames": {"View1": 60},
        "sensor_samples": 1300,
        "sensor_lost": 0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def drawn(folder: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(draw_report(folder)))
    assert picture is not None and picture.shape == (1080, 1920, 3)
    return np.asarray(picture, np.uint8)


def test_it_shows_the_port_where_the_trace_says_it_was(tmp_path: Path) -> None:
    try:
        RigRenderer(build_model(), 32, 32).close()
    except DriverError as error:
        pytest.skip(str(error))
    first = drawn(write_run(tmp_path / "a", (0, 7)))
    other = drawn(write_run(tmp_path / "b", (0, 8)))
    below = np.s_[VIEWS.stop + 40 :]
    assert (first[below] == other[below]).all()
    assert (first[VIEWS] != other[VIEWS]).mean() > 0.01


def test_a_run_of_an_older_rig_is_drawn_without_its_views(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", (0, 1))
    without_seed(folder / "rig.csv")
    assert drawn(folder).std() > 20
