"""The sweep of chunk lengths and thresholds: figures on paper, in virtual time, through sockets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.chunking_advice import advise, missed_targets
from scripts.chunking_model import (
    Conditions,
    Outcome,
    Setting,
    answer_s,
    jerk_rms,
    on_ticks,
    reserve_s,
    span_s,
    speed_ratio,
    ticks_of,
)
from scripts.chunking_quick import simulate
from scripts.chunking_real import outcome_of
from scripts.command_log import CommandLog
from tests.support import Child

REFERENCE = Conditions(fps=30.0, inference_s=0.05)


def outcome(rows: int = 20, threshold: float = 0.5, **changes: float) -> Outcome:
    made = Outcome(Setting(rows, threshold), 0.0, 1000.0, 30.0, 100.0, 300.0, 60, 10.0)
    return replace(made, **changes)  # type: ignore[arg-type]


# On paper.


def test_the_reference_case() -> None:
    assert 1e3 * span_s(16, 30.0) == pytest.approx(533, abs=0.5)
    assert speed_ratio(16, 30.0, 0.05) == pytest.approx(10.7, abs=0.05)
    assert math.isinf(speed_ratio(16, 30.0, 0.0))


def test_answer_and_reserve() -> None:
    given = Conditions(fps=20.0, inference_s=0.1, delay_s=0.03)
    assert answer_s(given) == pytest.approx(0.03 + 0.1 + 0.03 + 0.05)
    assert reserve_s(Setting(20, 0.5), given) == pytest.approx(0.5 - 0.21)
    # 0.7 of 30 is 21 rows, though 0.7 * 30 is 20.999… in floating point.
    assert reserve_s(Setting(30, 0.7), given) == pytest.approx(21 / 20 - 0.21)


def test_jerk_of_known_motions() -> None:
    seconds = np.arange(300)[:, None] / 100
    # The third derivative of a t³ is 6 a; of anything up to a square it is nothing.
    assert jerk_rms(2.5 * seconds**3, 0.01) == pytest.approx(15.0, rel=1e-6)
    assert jerk_rms(3 * seconds**2 - seconds, 0.01) == pytest.approx(0.0, abs=1e-6)
    wave = np.sin(2 * math.pi * seconds)
    assert jerk_rms(wave, 0.01) == pytest.approx((2 * math.pi) ** 3 / math.sqrt(2), rel=0.01)
    assert jerk_rms(seconds[:3], 0.01) == 0.0


def test_a_pause_is_rows_of_standing_still() -> None:
    at = np.array([0.0, 0.012, 0.019, 0.05, 0.06])
    targets = np.arange(5.0)[:, None]
    assert on_ticks(at, targets, 0.01)[:, 0].tolist() == [0, 1, 2, 2, 2, 3, 4]
    assert on_ticks(at[:1], targets[:1], 0.01)[:, 0].tolist() == [0]
    assert len(on_ticks(at[:0], targets[:0], 0.01)) == 0


def test_a_late_command_is_no_pause() -> None:
    late = np.array([0.004, 0.01, 0.0262, 0.0301, 0.04, 0.07, 0.08])
    assert ticks_of(late, 0.01).tolist() == [0, 1, 2, 3, 4, 7, 8]
    # Later than half a period: into the next tick's time, which has a command of its own.
    later = np.array([0.0, 0.01, 0.0262, 0.0305, 0.04])
    assert ticks_of(later, 0.01).tolist() == [0, 1, 2, 3, 4]


SUMMARY = {
    "round_trip_ms": {"p50": 42.0}, "control_hz": 29.9, "missed_ticks": 0, "chunks": 5,
}  # fmt: skip


def told(*ticks: int, holds: tuple[int, ...] = ()) -> CommandLog:
    """Motions and holds at these ticks of 30 a second, from 10 s on."""
    each = sorted([(tick, True) for tick in ticks] + [(tick, False) for tick in holds])
    positions = np.zeros((len(each), 1))
    at = 10.0 + np.array([tick for tick, _ in each]) / 30
    return CommandLog(at, np.array([moves for _, moves in each]), positions, positions)


def found_of(log: CommandLog, ticks: float = 99.9, **counted: float) -> Outcome:
    """What comes of it when the client is told to stop after so many ticks."""
    return outcome_of(Setting(20, 0.5), 30.0, log, SUMMARY | counted, 10.0 + ticks / 30)


def test_what_a_record_and_a_summary_say() -> None:
    log = told(*range(60), *range(66, 100), holds=(-20, 60, 100))
    found = found_of(log)
    assert found.empty == pytest.approx(6 / 99.9)
    assert (found.jerk, found.answer_ms, found.rate_hz) == (0.0, 42.0, 29.9)
    assert found.seconds == pytest.approx(99.9 / 30)


def test_a_pause_without_a_hold_is_the_computers() -> None:
    assert found_of(told(*range(60), *range(66, 100), holds=(100,)), missed_ticks=6).empty == 0.0


def test_ticks_that_were_missed_elsewhere_excuse_no_empty_queue() -> None:
    # Before the first motion, or in a pause of its own: neither filled the queue.
    log = told(*range(40), *range(46, 60), *range(66, 100), holds=(-20, 60))
    for missed in (0, 6, 20):
        assert found_of(log, missed_ticks=missed).empty == pytest.approx(6 / 99.9)


def test_a_queue_that_stays_empty_counts_until_the_stop() -> None:
    log = told(*range(60), holds=(60, 101))
    assert found_of(log).empty == pytest.approx(40 / 99.9)
    assert found_of(told(0, holds=(1,))).empty == 1.0
    assert found_of(told(holds=(1,))).empty == 1.0


# Advice.


def test_the_one_that_runs_dry_is_not_recommended() -> None:
    quick = outcome(20, 0.3, empty=0.05, jerk=10.0, chunks=500)
    slow = outcome(50, 0.5, empty=0.0, jerk=900.0)
    advice = advise([quick, slow], REFERENCE)
    assert advice.best is slow
    assert "--actions_per_chunk 50 --chunk_size_threshold 0.5" in advice.words
    assert advice.warnings == ()


def test_of_two_that_keep_filled_the_product_of_reaction_and_jerk_decides() -> None:
    rough = outcome(30, 0.7, jerk=5000.0)
    smooth = outcome(30, 0.5, jerk=1000.0)
    assert advise([rough, smooth], REFERENCE).best is smooth
    late = outcome(100, 0.5, jerk=900.0, chunks=6)
    assert advise([late, smooth], REFERENCE).best is smooth


def test_with_losses_the_reserve_must_outlast_one() -> None:
    given = replace(REFERENCE, delay_s=0.04, jitter_s=0.01, loss=0.01)
    # 20 rows at 0.5 leave 333 ms, of which the answer takes 163: 170 ms are less than 220.
    short, long = outcome(20, 0.5, jerk=100.0), outcome(30, 0.5, jerk=800.0)
    assert advise([short, long], given).best is long
    assert advise([short, long], replace(given, loss=0.0)).best is short
    only = advise([short], given)
    assert only.best is short
    assert any("lost segment (200 ms)" in line for line in only.warnings)


def test_when_all_run_dry_the_least_is_named_and_what_to_do() -> None:
    given = replace(REFERENCE, inference_s=2.0)
    advice = advise([outcome(empty=0.6), outcome(30, empty=0.3)], given)
    assert advice.best is not None and advice.best.setting.actions_per_chunk == 30
    assert "Every setting ran dry" in advice.words and "quicker" in advice.words
    assert any("no setting can keep the robot moving" in line for line in advice.warnings)


def test_nothing_moved() -> None:
    advice = advise([outcome(empty=1.0, chunks=0)], REFERENCE)
    assert advice.best is None and "No setting moved" in advice.words


@pytest.mark.parametrize(
    ("given", "rate_hz", "words"),
    [
        (replace(REFERENCE, delay_s=0.05), 30.0, "one-way delay"),
        (replace(REFERENCE, inference_s=0.1), 30.0, "inference takes"),
        (REFERENCE, 29.3, "missed 30 Hz"),
        (REFERENCE, 30.7, "missed 30 Hz"),
    ],
)
def test_missed_targets_are_named(given: Conditions, rate_hz: float, words: str) -> None:
    lines = missed_targets([outcome(rate_hz=rate_hz)], given)
    assert len(lines) == 1 and words in lines[0]


def test_targets_just_met_are_not() -> None:
    given = Conditions(30.0, inference_s=0.099, delay_s=0.049)
    assert missed_targets([outcome(rate_hz=29.41), outcome(rate_hz=30.59)], given) == ()


# In virtual time, with the client's own control loop.


def test_the_reference_case_never_runs_dry() -> None:
    for threshold in (0.3, 0.5, 0.7):
        found = simulate(Setting(16, threshold), REFERENCE, 20.0)
        assert found.empty == 0.0
        # 50 ms is the answer, and it is looked for at the next tick.
        assert 49.9 <= found.answer_ms <= 50.1 + 1e3 / 30
        assert found.chunks > 60


def test_a_chunk_that_is_shorter_than_its_answer_runs_dry() -> None:
    given = Conditions(30.0, inference_s=0.4, delay_s=0.1)
    # 10 rows of 33 ms last 0.33 s, an answer takes 0.6.
    found = simulate(Setting(10, 0.5), given, 30.0)
    assert 0.3 < found.empty < 0.7
    # Twice the rows are enough for the threshold's half to last longer than the answer.
    assert simulate(Setting(60, 0.7), given, 30.0).empty == 0.0


def test_losses_empty_a_short_queue_and_not_a_long_one() -> None:
    given = Conditions(30.0, 0.05, 0.04, 0.01, loss=0.02)
    short, long = (simulate(Setting(rows, 0.3), given, 60.0) for rows in (16, 100))
    assert short.empty > 0.005
    assert long.empty == 0.0
    none = simulate(Setting(16, 0.5), replace(given, loss=0.0), 60.0)
    assert none.empty == 0.0


def test_longer_chunks_are_smoother_and_later() -> None:
    found = [simulate(Setting(rows, 0.5), REFERENCE, 60.0) for rows in (20, 50, 100)]
    assert found[0].jerk > found[1].jerk > found[2].jerk
    assert found[0].reaction_ms < found[1].reaction_ms < found[2].reaction_ms
    assert found[0].age_ms < found[2].age_ms


def test_the_same_seed_gives_the_same_figures() -> None:
    given = Conditions(30.0, 0.05, 0.02, 0.02, loss=0.02)
    one, same = (simulate(Setting(20, 0.3), given, 20.0, seed=4) for _ in range(2))
    other = simulate(Setting(20, 0.3), given, 20.0, seed=5)
    assert one == same and one != other


# The program.


def test_quick_prints_writes_and_draws(tmp_path: Path, program: Callable[..., Child]) -> None:
    child = program(
        "scripts/tune_chunking.py",
        *("--quick", "--inference-ms", "50", "--delay-ms", "60", "--loss", "0.01"),
        *("--actions-per-chunk", "20", "50", "--chunk-size-threshold", "0.5"),
        *("--plot", str(tmp_path / "plot.png"), "--json", str(tmp_path / "figures.json")),
    )
    assert child.end(120) == 0, child.text
    assert "use this" in child.text and "one-way delay is 60 ms" in child.text
    written = json.loads((tmp_path / "figures.json").read_text())
    assert [row["actions_per_chunk"] for row in written["settings"]] == [20, 50]
    assert written["settings"][1]["span_s"] == pytest.approx(50 / 30)
    assert written["settings"][1]["speed_ratio"] == pytest.approx(33.3, abs=0.1)
    assert written["recommended"] == {"actions_per_chunk": 50, "chunk_size_threshold": 0.5}
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("transport", ["grpc", "zmq"])
def test_through_sockets(transport: str, tmp_path: Path, program: Callable[..., Child]) -> None:
    child = program(
        "scripts/tune_chunking.py",
        *("--transport", transport, "--inference-ms", "40", "--delay-ms", "30", "--seconds", "2"),
        *("--actions-per-chunk", "4", "40", "--chunk-size-threshold", "0.5"),
        *("--plot", str(tmp_path / "plot.png"), "--json", str(tmp_path / "figures.json")),
    )
    assert child.end(150) == 0, child.text
    written = json.loads((tmp_path / "figures.json").read_text())
    short, long = written["settings"]
    # 4 rows last 133 ms, an answer takes 100 and what it takes to look: half of it in reserve is
    # too little, and half of 40 rows is plenty.
    assert short["empty"] > 0.1 > long["empty"]
    assert min(short["answer_ms"], long["answer_ms"]) >= 100
    assert written["recommended"] == {"actions_per_chunk": 40, "chunk_size_threshold": 0.5}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--fps", "0"),
        ("--loss", "1"),
        ("--delay-ms", "-1"),
        ("--actions-per-chunk", "1"),
        ("--chunk-size-threshold", "1.5"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    arguments: tuple[str, ...], program: Callable[..., Child]
) -> None:
    child = program("scripts/tune_chunking.py", "--quick", *arguments)
    assert child.end() == 2
    assert len(child.text.splitlines()) == 1 and "Traceback" not in child.text
