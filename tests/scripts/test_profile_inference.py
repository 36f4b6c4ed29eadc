"""The profiler: a real server and control loop over chunk and buffer sizes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.comparison.profiling import Profile, ProfileError, with_rows
from tests.support import Child

PROGRAM = "scripts/profile_inference.py"


def test_it_profiles_a_served_policy(program: Callable[..., Child], tmp_path: Path) -> None:
    child = program(
        PROGRAM, "--policy-type", "builtin", "--policy", "sway?rows=8&inference_s=0.05",
        "--cameras", "front", "--width", "64", "--height", "48", "--sensor-channels", "0",
        "--chunk-sizes", "4", "20", "--buffer-sizes", "2", "4", "8", "10",
        "--predictions", "4", "--out", str(tmp_path),
    )  # fmt: skip
    assert child.end(170) == 0, child.text
    with (tmp_path / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    # It gives 8 rows at most, and a queue of 8 has no place for a buffer of 10.
    sizes = [(int(row["chunk"]), int(row["rows"]), int(row["buffer"])) for row in rows]
    assert sizes == [(4, 4, 2), (4, 4, 4), (20, 8, 2), (20, 8, 4), (20, 8, 8)]
    for row in rows:
        assert int(row["predictions"]) >= 4
        assert 50.0 <= float(row["inference_p50_ms"]) <= float(row["inference_p95_ms"])
        assert float(row["inference_p50_ms"]) <= float(row["answer_p50_ms"])
        assert 0.0 <= float(row["empty_share"]) < 1.0
    assert cv2.imread(str(tmp_path / "profile.png")) is not None


def test_a_policy_that_is_not_there_gives_one_line(
    program: Callable[..., Child], tmp_path: Path
) -> None:
    child = program(PROGRAM, "--policy", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert child.end(170) == 1
    assert "there is no" in child.text and "Traceback" not in child.text


def test_a_policy_with_other_rows_gives_so_many(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from policies.qwen_vla import load_fast_half

    with_rows(tiny_checkpoint, 13, tmp_path / "longer")
    longer, plain = load_fast_half(tmp_path / "longer"), load_fast_half(tiny_checkpoint)
    spec = longer.spec
    window = np.zeros((spec.sensor_window, spec.sensor_channels), np.float32)
    assert len(longer.act(longer.blank(), window, None, None).actions) == spec.rows == 13
    assert plain.spec.rows != 13
    with pytest.raises(ProfileError, match="none"):
        with_rows(tmp_path / "none", 5, tmp_path / "other")


def test_percentiles_are_in_milliseconds() -> None:
    times = np.array([0.01, 0.02, 0.03])
    profile = Profile(5, 5, 5, times, 2 * times, 30.0, 0.0)
    assert profile.inference_ms(50) == pytest.approx(20.0)
    assert profile.answer_ms(50) == pytest.approx(40.0)
