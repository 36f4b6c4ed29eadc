"""Resampling on straight lines, and the low-pass filter against scipy's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, sosfilt, sosfilt_zi

from serving.smoothing import LowPass, resampled


def test_resampling_to_a_faster_rate_draws_straight_lines() -> None:
    actions = np.array([[0.0, 0.0], [3.0, -6.0], [9.0, -6.0]])
    got = resampled(actions, 0.1, 0.1 / 3)
    assert got[:, 0] == pytest.approx([0, 1, 2, 3, 5, 7, 9])
    assert got[:, 1] == pytest.approx([0, -2, -4, -6, -6, -6, -6])


def test_resampling_to_a_slower_rate_ends_with_what_there_is() -> None:
    actions = np.arange(10.0)[:, None]
    got = resampled(actions, 1 / 50, 1 / 20)
    assert got[:, 0] == pytest.approx([0.0, 2.5, 5.0, 7.5])
    assert resampled(actions, 0.1, 0.1) == pytest.approx(actions)
    assert resampled(actions[:1], 0.1, 0.03).tolist() == [[0.0]]


def test_resampled_angles_go_the_short_way_round() -> None:
    got = resampled(np.array([[170.0], [-170.0]]), 0.2, 0.1, np.array([True]))
    assert got[:, 0].tolist() == [170.0, 180.0, 190.0]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 60),
    dt=st.floats(0.001, 1.0),
    period=st.floats(0.001, 1.0),
    seed=st.integers(0, 99),
)
def test_resampling_agrees_with_numpy_and_makes_nothing_up(
    rows: int, dt: float, period: float, seed: int
) -> None:
    actions = np.random.default_rng(seed).normal(size=(rows, 3))
    got = resampled(actions, dt, period)
    at = np.arange(len(got)) * period
    assert at[-1] <= (rows - 1) * dt + 1e-5 * period
    assert len(got) == 4096 or at[-1] + period > (rows - 1) * dt - 1e-9
    for column in range(3):
        expected = np.interp(at, np.arange(rows) * dt, actions[:, column])
        np.testing.assert_allclose(got[:, column], expected, atol=1e-6)


@pytest.mark.parametrize(("dt", "period"), [(0.0, 0.1), (float("nan"), 0.1), (0.1, float("inf"))])
def test_resampling_refuses_rates_that_are_none(dt: float, period: float) -> None:
    with pytest.raises(ValueError, match="cannot be resampled"):
        resampled(np.zeros((3, 1)), dt, period)


def run(low_pass: LowPass, wanted: np.ndarray) -> np.ndarray:
    return np.array([low_pass.next(row) for row in wanted])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_one_row_at_a_time_is_what_scipy_makes_of_the_whole(order: int) -> None:
    rng = np.random.default_rng(3)
    start, wanted = rng.normal(size=6), rng.normal(size=(200, 6)).cumsum(axis=0)
    low_pass = LowPass(3.0, 30.0, order)
    low_pass.start(start)
    got = run(low_pass, wanted)
    sections = butter(order, 3.0, fs=30.0, output="sos")
    for column in range(6):
        expected, _ = sosfilt(sections, wanted[:, column], zi=sosfilt_zi(sections) * start[column])
        np.testing.assert_allclose(got[:, column], expected, atol=1e-9)


def test_there_is_no_jump_at_the_start_nor_where_chunks_meet() -> None:
    here = np.array([40.0, -20.0])
    low_pass = LowPass(2.0, 30.0)
    low_pass.start(here)
    first, second = np.tile([41.0, -21.0], (40, 1)), np.tile([71.0, -61.0], (60, 1))
    got = np.vstack([here, run(low_pass, np.vstack([first, second]))])
    # The steepest slope of the filter's own answer to a step of 1.
    sections = butter(2, 2.0, fs=30.0, output="sos")
    steepest = np.abs(np.diff(sosfilt(sections, np.ones(100)), prepend=0.0)).max()
    assert steepest < 0.2, "an unfiltered step moves 1 in a tick"
    moved = np.abs(np.diff(got, axis=0)).max(axis=0)
    assert (moved <= np.array([30.0, 40.0]) * steepest + 0.01).all()
    assert got[-1] == pytest.approx([71.0, -61.0], abs=0.05), "and it arrives"


def test_a_robot_that_stands_where_it_is_wanted_does_not_move() -> None:
    low_pass = LowPass(1.0, 50.0)
    low_pass.start(np.array([123.0, -7.0]))
    assert run(low_pass, np.tile([123.0, -7.0], (20, 1))) == pytest.approx(
        np.tile([123.0, -7.0], (20, 1))
    )


def test_columns_left_out_pass_and_unknown_positions_start_at_the_first_action() -> None:
    low_pass = LowPass(1.0, 30.0, left_out=np.array([False, True, False]))
    low_pass.start(np.array([0.0, 0.0, np.nan]))
    got = low_pass.next(np.array([10.0, 10.0, 10.0]))
    assert 0 < got[0] < 1
    assert got[1:] == pytest.approx([10.0, 10.0])


def test_an_angle_is_followed_past_180() -> None:
    low_pass = LowPass(5.0, 30.0, turns=np.array([True, False]))
    low_pass.start(np.array([175.0, 175.0]))
    wanted = np.array([[(175.0 + 2 * k + 180) % 360 - 180] * 2 for k in range(30)])
    got = run(low_pass, wanted)
    assert np.abs(np.diff(got[:, 0])).max() < 3.0
    assert np.abs(np.diff(got[:, 1])).max() > 20.0, "what would happen otherwise"


def test_starting_again_forgets() -> None:
    low_pass = LowPass(1.0, 30.0)
    low_pass.start(np.zeros(1))
    run(low_pass, np.full((50, 1), 100.0))
    low_pass.start(np.array([5.0]))
    assert low_pass.next(np.array([5.0])) == pytest.approx([5.0])


@pytest.mark.parametrize(("cutoff", "order"), [(15.0, 2), (0.0, 2), (float("nan"), 2), (3.0, 9)])
def test_a_filter_that_cannot_be_is_refused(cutoff: float, order: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        LowPass(cutoff, 30.0, order)
