"""The soak's judgement: what it calls a leak, a recovery, a violation."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from scripts.command_log import CommandLog
from scripts.soak_faults import Fault, Happened, drawn
from scripts.soak_samples import Sample, growth, sampled
from scripts.soak_verdict import RobotVerdict, as_json, judged, lifetimes
from tests.support import Child

FPS, AGE_S = 30.0, 1.5
SUMMARY = {"moves": 900, "steps": 1000, "sessions": 2, "holds": {"no_action": 3}}


def samples(count: int = 100, mb_each: float = 0.0, files_each: float = 0.0) -> list[Sample]:
    return [
        Sample(2.0 * k, 7, 80 + mb_each * k + k % 3, 20 + int(files_each * k), 9)
        for k in range(count)
    ]


def test_what_stays_as_it_is_does_not_leak() -> None:
    found = growth(samples(), 20.0)
    assert found is not None and found.leaks == []
    assert found.first_mb == pytest.approx(81, abs=1)


@pytest.mark.parametrize(
    ("grows", "words"),
    [({"mb_each": 0.5}, "memory by"), ({"files_each": 0.2}, "open files by")],
)
def test_what_grows_leaks(grows: dict[str, float], words: str) -> None:
    found = growth(samples(**grows), 20.0)  # type: ignore[arg-type]
    assert found is not None and len(found.leaks) == 1 and words in found.leaks[0]


def test_warming_up_is_no_leak() -> None:
    warming = [replace(s, rss_mb=min(s.rss_mb, 40 + s.at)) for s in samples(mb_each=0.0)]
    found = growth(warming, 60.0)
    assert found is not None and found.leaks == []
    assert growth(samples(10), 0.0) is None


def test_a_restarted_server_is_judged_by_its_lives() -> None:
    first = samples(40)
    second = [replace(s, at=s.at + 100, pid=8, files=s.files + 50) for s in samples(40)]
    found = lifetimes({"server": first + second}, 10.0)
    assert list(found) == ["server", "server (2)"]
    assert all(grown.leaks == [] for grown in found.values())


def test_a_process_can_be_looked_at() -> None:
    mine = sampled(os.getpid(), 1.0)
    assert mine is not None and mine.rss_mb > 5 and mine.files > 2 and mine.threads >= 1
    assert sampled(2**22 + 1, 1.0) is None


def log_of(
    moving: list[tuple[float, float]], age_s: float = 0.3, end_s: float = 60.0
) -> CommandLog:
    """A robot that stands where it is told to stay, and is told so in these spans of seconds."""
    start = time.monotonic()
    at = [start + begin + k / FPS for begin, end in moving for k in range(int((end - begin) * FPS))]
    wall = time.time() - time.monotonic()
    rows = [[1.0, (when + wall - age_s) % 1000.0] for when in at] + [[1.0, 0.0]]
    is_move = [True] * len(at) + [False]
    targets = np.array(rows)
    return CommandLog(np.array([*at, start + end_s]), np.array(is_move), targets, targets)


def verdict(log: CommandLog, *spans: tuple[float, float]) -> RobotVerdict:
    start = float(log.at[-1]) - 60.0
    fault = Fault("cut all", None, 5.0, "grpc")
    happened = [Happened(fault, start + begin, start + end) for begin, end in spans]
    return judged("robot", log, SUMMARY, happened, age_s=AGE_S, recover_s=12.0, fps=FPS)


def test_a_good_run() -> None:
    found = verdict(log_of([(0, 11), (16, 31), (35, 59)]), (10.0, 15.0), (30.0, 34.0))
    assert found.broken == ()
    assert found.recoveries_s == pytest.approx((1.0, 1.0), abs=0.1)
    assert found.oldest_s == pytest.approx(0.3, abs=0.1)


def test_a_session_that_does_not_come_back() -> None:
    found = verdict(log_of([(0, 11)]), (10.0, 15.0))
    assert found.broken == (
        "no motion for inf s after cut all",
        "no motion in the last 33.0 s",
    )
    assert as_json(found)["recoveries_s"] == [None]
    late = verdict(log_of([(0, 11), (36, 59)]), (10.0, 15.0), (32.0, 35.0))
    assert any("no motion for 21.0 s" in line for line in late.broken)


def test_a_robot_that_moves_once_and_then_stands() -> None:
    stands = verdict(log_of([(0, 11), (16, 16.5), (39, 59)]), (10.0, 15.0), (38.0, 38.5))
    assert stands.broken == ("motion in 0% of the ticks after cut all",)
    assert stands.recoveries_s == pytest.approx((1.0, 0.5), abs=0.1)
    # It moves half of the time.
    halting = [(27.0 + k, 27.5 + k) for k in range(32)]
    halts = verdict(log_of([(0, 11), (16, 17), *halting]), (10.0, 15.0))
    (line,) = halts.broken
    assert line.startswith("motion in 4") or line.startswith("motion in 5")


def test_a_robot_that_stands_at_the_end() -> None:
    assert verdict(log_of([(0, 57)])).broken == ("no motion in the last 3.0 s",)
    moved_before = verdict(log_of([(0, 11), (16, 57)]), (10.0, 15.0))
    assert moved_before.broken == ("no motion in the last 3.0 s",)
    # One that was hit just before the end had no time to recover.
    assert verdict(log_of([(0, 52)]), (52.0, 59.0)).broken == ()
    assert verdict(log_of([(0, 49)]), (49.0, 50.0)).broken != ()


def test_a_tick_that_is_missed_now_and_then_is_no_stall() -> None:
    spans = [(k, k + 1 - 1.5 / FPS) for k in range(60)]
    assert verdict(log_of(spans), (10.0, 15.0), (27.1, 31.0)).broken == ()


def test_input_that_was_too_old() -> None:
    found = verdict(log_of([(0, 59)], age_s=2.0))
    assert len(found.broken) == 1 and "input of up to 2.00 s, at most 1.5" in found.broken[0]


def test_a_step_that_was_too_large() -> None:
    log = log_of([(0, 59)])
    log.targets[700, 0] += 5.0
    assert any("step of 5" in line for line in verdict(log).broken)


def test_a_robot_that_never_moved() -> None:
    assert verdict(log_of([])).broken == ("it never moved",)


def test_faults_follow_from_the_seed() -> None:
    def some(seed: int, may_kill: bool) -> list[Fault]:
        chance = Random(seed)
        return [drawn(chance, ["a", "b"], may_kill) for _ in range(200)]

    assert some(1, True) == some(1, True) != some(2, True)
    kinds = {fault.kind for fault in some(1, True)}
    assert len(kinds) == 10
    assert "server killed" not in {fault.kind for fault in some(1, False)}
    assert all((fault.robot is None) != fault.kind.endswith("one") for fault in some(1, True))
    assert all(0 < fault.seconds <= 8 and not math.isnan(fault.seconds) for fault in some(1, True))


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path, program: Callable[..., Child]) -> None:
    child = program(
        "scripts/soak_serving.py", "--minutes", "1.5", "--robots", "2", "--folder", str(tmp_path)
    )
    assert child.end(170) == 0, child.text
    told = json.loads((tmp_path / "soak.json").read_text())
    assert told["passed"] and len(told["robots"]) == 2 and len(told["faults"]) >= 2
    assert (tmp_path / "soak.png").exists()
