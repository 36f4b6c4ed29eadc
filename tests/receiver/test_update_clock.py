"""When the slow loop starts: in virtual time, against rules that a reader can check by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from common.clock import Ticker
from receiver.update_clock import UpdateClock, best_start

PERIOD_S = 0.1
Start = Callable[[float, float], float]


def clock(reuse: int) -> UpdateClock:
    return UpdateClock(Ticker(1 / PERIOD_S, 0.0), reuse)


def ages(start_next: Start, durations: list[float]) -> np.ndarray:
    """Age of the features at every deadline; `start_next` gets a pass's duration and its end."""
    start, tick = 0.0, 0
    current: float | None = None
    found = []
    for duration in durations:
        ready = start + duration
        while tick * PERIOD_S < ready:
            if current is not None:
                found.append(tick * PERIOD_S - current)
            tick += 1
        current, start = start, max(start_next(duration, ready), ready)
    return np.array(found[len(found) // 10 :])


def chosen(reuse: int) -> Start:
    ours = clock(reuse)

    def start_next(duration: float, ready: float) -> float:
        ours.finished(duration, ready)
        return ours.start_at()

    return start_next


def simple(reuse: int) -> Start:
    """Start when the uses are over: at the deadline of the last."""
    return lambda _, ready: (math.ceil(ready / PERIOD_S) + reuse - 1) * PERIOD_S


def spread(nominal_s: float, count: int = 1500) -> list[float]:
    rng = np.random.default_rng(3)
    durations = nominal_s * np.exp(rng.normal(0.0, 0.04, count))
    durations[rng.random(count) < 0.02] *= 1.5
    return [float(d) for d in durations]


def test_the_first_pass_starts_at_once() -> None:
    assert clock(4).start_at() == 0.0


def test_a_steady_pass_is_ready_just_before_its_first_use() -> None:
    ours = clock(4)
    for _ in range(5):
        ours.finished(0.060, 0.990)  # first used at 1.0, so the next is due at 1.4
    assert 1.33 < ours.start_at() < 1.34
    assert ours.start_at() + 0.060 <= 1.4


@pytest.mark.parametrize("reuse", [1, 2, 4, 8])
@pytest.mark.parametrize("nominal_s", [0.05, 0.1, 0.381, 0.8])
def test_features_are_not_older_than_by_the_simple_rule(reuse: int, nominal_s: float) -> None:
    durations = spread(nominal_s)
    ours, theirs = ages(chosen(reuse), durations), ages(simple(reuse), durations)
    assert ours.mean() <= 1.02 * theirs.mean()
    if reuse > 1:
        assert ours.mean() < 0.97 * theirs.mean()


@pytest.mark.parametrize("reuse", [2, 4, 8])
def test_a_pass_serves_about_as_often_as_asked_for(reuse: int) -> None:
    durations = spread(0.06)
    served = len(ages(chosen(reuse), durations)) / (0.9 * len(durations))
    assert reuse - 0.1 < served < reuse + 0.3


def test_passes_longer_than_their_uses_follow_each_other_without_a_long_pause() -> None:
    ours = clock(1)
    for _ in range(10):
        ours.finished(0.8, 10.05)
    assert ours.start_at() < 10.05 + PERIOD_S


def test_one_very_long_pass_does_not_age_all_that_follow() -> None:
    """As it would by mean and deviation: 2 σ of these alone are 190 ms."""
    ours = clock(4)
    for duration in [0.06] * 15 + [0.46] + [0.06] * 5:
        ours.finished(duration, 0.99)
    assert ours.start_at() > 1.4 - 0.070


def test_a_pass_that_became_slower_is_followed() -> None:
    ours = clock(4)
    for _ in range(40):
        ours.finished(0.05, 0.99)
    for _ in range(12):
        ours.finished(0.09, 0.99)
    assert ours.start_at() + 0.09 <= 1.4


def test_newer_pictures_count_at_each_of_the_uses() -> None:
    # Due at 1.4 s. A start at 1.338 lets a pass of 140 ms, one of four, be late by a use of old
    # features; one at 1.258 makes the pictures 80 ms older at all four uses of every pass.
    durations = np.array([0.06, 0.06, 0.06, 0.14])
    assert best_start(durations, 0.14, 0.99, 4, PERIOD_S) == pytest.approx(1.338)


def test_waiting_that_brings_no_newer_picture_is_left_out() -> None:
    ours = clock(4)
    for _ in range(5):
        ours.finished(0.06, 0.99)
    start = ours.start_at()
    assert ours.start_at(next_picture_at=start + 0.001) == 0.0
    assert ours.start_at(next_picture_at=start - 0.001) == start


@pytest.mark.parametrize("ready_s", [0.0, 0.0999, 0.1, 12345.678])
@pytest.mark.parametrize("duration_s", [0.0, 1e-6, 0.1, 30.0])
def test_a_start_is_never_before_the_last_pass_ended(ready_s: float, duration_s: float) -> None:
    durations = np.array([duration_s, 2 * duration_s])
    start = best_start(durations, duration_s, ready_s, 4, PERIOD_S)
    assert ready_s <= start <= ready_s + 8 * PERIOD_S
