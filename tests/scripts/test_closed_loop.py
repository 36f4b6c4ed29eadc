"""The study's arithmetic: scores, intervals, rows, names; nothing here needs a rig."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.closed_loop.episode import EpisodeResult
from scripts.closed_loop.estimates import bootstrap, points, wilson
from scripts.closed_loop.methods import USUAL, MethodError, method
from scripts.closed_loop.results import ResultsError, ResultsFile, read_results
from scripts.closed_loop.score import Score, ScoreOptions
from scripts.closed_loop.table import markdown
from scripts.closed_loop.trace_reader import TraceError, TraceReader
from sim.rig import Reading
from sim.task import DISTANCE_MM
from sim.trace import COLUMNS, Trace

ROW = EpisodeResult(
    method="dual-4",
    latency_ms=381.0,
    seed=7,
    success=True,
    reason="",
    done_s=4.5,
    end_s=7.5,
    rms_mm=0.21,
    best_rms_mm=0.19,
    lateral_mm=0.3,
    force_n=0.02,
    encoded=19,
    acted=74,
    held=0.05,
    age_ms=534.2,
)


def reading(
    at: float, error: float = 0.0, depth: float = 5.0, lateral: float = 0.1, force: float = 0.0
) -> Reading:
    return Reading(at, DISTANCE_MM + error, lateral, depth, force, 0.0, np.zeros(3))


def fed(score: Score, until_s: float, **values: float) -> Score:
    start = round(100 * score.time_s) + 1
    for k in range(start, round(100 * until_s) + 1):
        score.see(reading(k / 100, **values))
    return score


def test_a_success_goes_on_for_its_tail_and_is_measured_there() -> None:
    score = fed(Score(), 1.0, depth=-2.0)
    fed(score, 1.5, error=4.0)  # on the way in
    fed(score, 5.5, error=0.2)
    assert not score.over
    done_s = score.outcome().done_s
    assert 4.0 < done_s < 4.6
    fed(score, done_s + 2.9, error=0.4)
    assert not score.over
    fed(score, done_s + 3.1, error=0.4)
    outcome = score.outcome()
    assert score.over and outcome.success and outcome.reason == ""
    # The last 3 s, not the best 3 s, and nothing of the way in.
    assert 0.3 < outcome.rms_mm < 0.41
    assert outcome.best_rms_mm < 0.21


def test_force_ends_an_episode_even_after_its_success() -> None:
    score = fed(Score(), 4.0)
    assert score.outcome().success and not score.over
    fed(score, 4.5, force=3.2)
    outcome = score.outcome()
    assert score.over and not outcome.success and outcome.reason == "force"


def test_the_limit_ends_it_and_says_why() -> None:
    score = fed(Score(ScoreOptions(limit_s=6.0)), 6.0, error=1.0)
    outcome = score.outcome()
    assert score.over and outcome.reason == "distance" and not outcome.success
    assert outcome.rms_mm == pytest.approx(1.0)
    assert math.isnan(outcome.done_s)


def test_a_tip_that_left_the_port_has_no_error_to_measure() -> None:
    score = fed(Score(ScoreOptions(limit_s=6.0)), 5.0, error=1.0)
    fed(score, 5.1, depth=-1.0)
    fed(score, 6.0, error=1.0)
    assert math.isnan(score.outcome().rms_mm)
    with pytest.raises(ValueError, match="without a reading"):
        Score().outcome()


@pytest.mark.parametrize(
    ("successes", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, score without correction.
    [(81, 0.2553, 0.3662), (0, 0.0, 0.1611)],
)
def test_the_interval_of_a_share(successes: int, low: float, high: float) -> None:
    estimate = wilson(successes, 263 if successes else 20)
    assert estimate.low == pytest.approx(low, abs=1e-4)
    assert estimate.high == pytest.approx(high, abs=1e-4)


def test_the_interval_of_a_mean_is_about_that_of_a_normal_one() -> None:
    values = np.random.default_rng(3).normal(1.0, 0.5, 400)
    estimate = bootstrap(values, np.mean)
    assert estimate == bootstrap(values, np.mean)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.15)
    assert estimate.value - estimate.low == pytest.approx(half, rel=0.15)
    assert math.isnan(bootstrap([], np.median).value)


def test_points_count_what_was_measured_and_what_failed() -> None:
    bad = replace(ROW, seed=8, success=False, reason="never inside", rms_mm=math.nan)
    (point,) = points([ROW, bad, replace(ROW, seed=9)])
    assert (point.episodes, point.successes, point.measured) == (3, 2, 2)
    assert point.reasons == {"never inside": 1}
    table = markdown([point])
    assert "| dual-rate, reuse 4 | 381 | 3 | 67 (21 to 94) | 0.21 (0.21 to 0.21)" in table
    assert "never inside: 1" in table


def test_a_point_without_any_error_has_a_dash() -> None:
    (point,) = points([replace(ROW, success=False, reason="force", rms_mm=math.nan)])
    assert "| – | – | 0 |" in markdown([point])


def test_rows_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    path, settings = tmp_path / "study" / "episodes.csv", {"policy": "a", "act_ms": 5.0}
    first = ResultsFile(path, settings)
    failed = replace(ROW, seed=8, success=False, reason="never inside", rms_mm=math.nan)
    first.add(ROW)
    first.add(failed)
    first.close()
    # The machine went down within a line.
    with path.open("a") as file:
        file.write("dual-4,381,9,1")
    again = ResultsFile(path, settings)
    assert again.done == {("dual-4", 381.0, 7), ("dual-4", 381.0, 8)}
    again.add(replace(ROW, seed=9))
    again.close()
    rows = read_results(path)
    assert rows[0] == ROW and rows[2].seed == 9 and len(rows) == 3
    assert math.isnan(rows[1].rms_mm) and rows[1].reason == "never inside"


def test_rows_of_another_study_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "episodes.csv"
    ResultsFile(path, {"policy": "a", "act_ms": 5.0}).close()
    with pytest.raises(ResultsError, match=r"another study \(policy\)"):
        ResultsFile(path, {"policy": "b", "act_ms": 5.0})


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "not results"), ("a,b\n1,2\n", "not results"), ("HEAD\n1,2\n", "line 2: 2 values")],
)
def test_what_is_no_result_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "episodes.csv"
    ResultsFile(path, {}).close()
    head = path.read_text().strip()
    path.write_text(text.replace("HEAD", head))
    with pytest.raises(ResultsError, match=said):
        read_results(path)


def test_methods_have_names() -> None:
    assert [method(name).family for name in USUAL] == ["sync"] + ["async"] * 4 + ["dual"] * 4
    assert method("sync-4").label == "synchronous, 4 rows"
    assert method("async-average@0.9").label == "async, average, at 0.9"
    assert method("rtc").label == "real-time chunking"
    assert method("rtc-4").label == "real-time chunking, 4 rows apart"
    assert method("rtc-4").family == "rtc"


@pytest.mark.parametrize(
    "name",
    (
        *(
            "",
            "rtc-",
            "rtc-0",
            "rtcs",
            "dual",
            "dual-0",
            "dual-x",
            "dual-99999",
            "sync-",
            "sync-0",
            "async",
        ),
        *("async-best", "async-average@2", "async-average@", "async-average@nan"),
    ),
)
def test_methods_that_there_are_not(name: str) -> None:
    with pytest.raises(MethodError):
        method(name)


def test_the_rigs_record_is_read_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "rig.csv"
    trace, reader = Trace(path), TraceReader(path)
    joints = np.arange(6.0)
    for k in range(300):
        given = replace(reading(0.0, error=0.5), tip_mm=np.array([1.0, 2.0, 3.0]))
        trace.add(1000.0 + k / 100, joints, given, k // 150, 7 + k // 150)
    trace.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    rows = list(reader.new())
    path.write_bytes(whole)
    rows += list(reader.new())
    assert [episode for episode, _ in rows].count(1) == 150
    times = [row.time_s for episode, row in rows if episode == 1]
    assert times[0] == 0.0 and times[-1] == pytest.approx(1.49, abs=1e-6)
    assert rows[0][1].distance_mm == DISTANCE_MM + 0.5
    assert rows[0][1].tip_mm.tolist() == [1.0, 2.0, 3.0]
    assert list(reader.new()) == []


def test_the_columns_of_a_record_are_known_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rig.csv"
    # Older rigs had no seed; another may have more, in another order.
    names = [*reversed([name for name in COLUMNS if name != "seed"]), "mood"]
    values = dict.fromkeys(names, 0.5) | {"episode": 3, "tip_y": 2.0, "depth_mm": -1.0}
    path.write_text(f"{','.join(names)}\n{','.join(str(values[name]) for name in names)}\n")
    ((episode, given),) = TraceReader(path).new()
    assert episode == 3
    assert given.tip_mm.tolist() == [0.5, 2.0, 0.5] and given.depth_mm == -1.0


ROW_OF_ONES = ",".join("1" for _ in COLUMNS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello\n", "not a record"),
        (",".join(COLUMNS) + "\n1,2\n", "broken line"),
        (f"{','.join(COLUMNS)}\n{ROW_OF_ONES}\n{ROW_OF_ONES.replace('1', 'inf')}\n", "broken line"),
        (",".join(COLUMNS).replace("depth_mm", "deep") + "\n", "no column depth_mm"),
    ],
)
def test_what_is_no_record_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rig.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=said):
        list(TraceReader(path).new())
