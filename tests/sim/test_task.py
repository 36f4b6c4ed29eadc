"""What counts as success, and how a rig that runs by itself keeps its score."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from sim.rig import Reading
from sim.scoring import Score
from sim.task import DISTANCE_MM, Judge, Verdict


def reading(
    time_s: float,
    *,
    error_mm: float = 0.0,
    lateral_mm: float = 0.2,
    depth_mm: float = 6.0,
    force_n: float = 0.0,
) -> Reading:
    return Reading(time_s, DISTANCE_MM + error_mm, lateral_mm, depth_mm, force_n, 0.0, np.zeros(3))


def judged(
    span_s: float, start_s: float = 0.0, judge: Judge | None = None, **kind: float
) -> Verdict:
    judge = judge or Judge()
    verdict = judge.verdict(0.0)
    for step in range(round(span_s * 100) + 1):
        verdict = judge.see(reading(start_s + step / 100, **kind))
    return verdict


def test_three_seconds_are_a_success_and_a_little_less_is_not() -> None:
    assert judged(3.0).success
    short = judged(2.9)
    assert not short.success
    assert short.reason == "not held"
    assert math.isnan(short.rms_mm)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({"error_mm": 0.51}, "distance"),
        ({"error_mm": -0.51}, "distance"),
        ({"lateral_mm": 1.5}, "never inside"),
        ({"depth_mm": -0.1}, "never inside"),
        ({"force_n": 3.0}, "force"),
        ({"force_n": -3.0}, "force"),
    ],
)
def test_what_is_no_success(kind: dict[str, float], reason: str) -> None:
    verdict = judged(4.0, **kind)
    assert not verdict.success
    assert verdict.reason == reason


def test_the_error_is_judged_over_the_best_three_seconds() -> None:
    judge = Judge()
    judged(2.0, judge=judge, error_mm=3.0)
    assert not judged(2.5, 2.01, judge, error_mm=0.3).success
    late = judged(1.0, 4.52, judge, error_mm=0.3)
    assert late.success
    assert late.rms_mm == pytest.approx(0.3, abs=1e-6)
    # A success stays one, whatever comes after, but for too much force.
    after = judged(3.0, 5.53, judge, error_mm=2.0)
    assert after.success
    assert after.done_s == late.done_s
    assert judge.see(reading(9.0, force_n=3.5)).reason == "force"


def test_leaving_the_port_begins_the_three_seconds_anew() -> None:
    judge = Judge()
    judged(2.5, judge=judge)
    judge.see(reading(2.51, lateral_mm=1.6))
    assert not judged(2.5, 2.52, judge).success


def test_the_score_of_a_rig(tmp_path: Path) -> None:
    score = Score(limit_s=5.0, linger_s=1.0, path=tmp_path / "score.jsonl")
    assert score.see(reading(100.0), 0, 7) is None  # nobody has moved the arm yet
    score.begin()
    score.moved(0.0)
    ended = None
    for step in range(1000):
        ended = score.see(reading(step / 100), 0, 7)
        if ended:
            break
    assert ended is not None
    assert ended.verdict.success
    assert ended.took_s == pytest.approx(3.0, abs=0.02)
    assert step / 100 == pytest.approx(4.0, abs=0.02)
    score.begin()
    score.moved(1.0)
    assert score.see(reading(5.9, lateral_mm=9.0), 1, 8) is None
    late = score.see(reading(6.01, lateral_mm=9.0), 1, 8)
    assert late is not None
    assert "failed (never inside)" in late.line()
    score.close()
    entries = [json.loads(line) for line in (tmp_path / "score.jsonl").read_text().splitlines()]
    assert [entry["success"] for entry in entries] == [True, False]
    assert entries[1]["rms_mm"] is None
    assert (score.episodes, score.successes) == (2, 1)
