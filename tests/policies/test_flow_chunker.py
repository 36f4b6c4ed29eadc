"""The bookkeeping of real-time chunking: alignment in time, hand-over, holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from policies.base import ActionChunk, PolicyError
from policies.flow.chunker import RtcChunker

ROWS, DT = 8, 0.1


def chunk(rows: NDArray[np.float64], start: float = 0.0) -> ActionChunk:
    """Rows (H,) of all joints alike, a gripper beside them; from joints that are all `start`."""
    actions = np.zeros((len(rows), 7), np.float32)
    actions[:, :6] = np.asarray(rows, np.float32)[:, None]
    delta = actions.copy()
    delta[:, :6] -= np.float32(start)
    return ActionChunk(actions, delta)


def ramp(start: float = 0.0, step: float = 1.0) -> ActionChunk:
    return chunk(start + step * np.arange(1, ROWS + 1), start)


def at(chunker: RtcChunker, moment: float) -> float | None:
    target = chunker.target(moment)
    if target is None:
        return None
    assert target.joints_deg == pytest.approx(np.full(6, target.joints_deg[0]))
    return float(target.joints_deg[0])


def begun(observed_at: float = 0.0) -> RtcChunker:
    chunker = RtcChunker(ROWS, DT)
    assert chunker.wants(observed_at)
    assert chunker.begin(observed_at, 0.3) is None
    assert not chunker.wants(observed_at + 0.2)
    chunker.finish(ramp(), observed_at + 0.3)
    return chunker


def test_nothing_is_planned_at_first() -> None:
    chunker = RtcChunker(ROWS, DT)
    assert chunker.target(0.0) is None
    with pytest.raises(ValueError, match="no inference was begun"):
        chunker.finish(ramp(), 1.0)


def test_the_first_chunk_begins_when_it_is_there() -> None:
    # The arm stood still meanwhile, where the rows begin.
    chunker = begun(5.0)
    assert at(chunker, 5.3) == pytest.approx(0.0)
    assert at(chunker, 5.35) == pytest.approx(0.5)
    assert at(chunker, 6.1) == pytest.approx(8.0)
    assert chunker.target(6.11) is None
    target = chunker.target(5.7)
    assert target is not None
    assert target.observed_at == 5.0


def test_what_is_left_is_aligned_in_time() -> None:
    chunker = begun()  # row value v is due at 0.3 + v / 10
    under_way = chunker.begin(0.55, latency_s=0.25)
    assert under_way is not None
    # Due at 0.65, 0.75, …, of a plan that ends at 1.1: five rows; 0.25 s are three of them.
    assert under_way.rows_deg.shape == (5, 6)
    assert under_way.rows_deg[:, 0] == pytest.approx([3.5, 4.5, 5.5, 6.5, 7.5])
    assert under_way.frozen == 3


@pytest.mark.parametrize(
    ("latency_s", "frozen"), [(0.0, 0), (0.05, 1), (0.1, 1), (0.3, 3), (0.301, 4), (5.0, 7)]
)
def test_rows_that_will_be_executed_meanwhile(latency_s: float, frozen: int) -> None:
    under_way = begun().begin(0.4, latency_s)
    assert under_way is not None
    assert len(under_way.rows_deg) == 7
    assert under_way.frozen == frozen


def test_the_hand_over_is_after_the_frozen_rows() -> None:
    chunker = begun()
    under_way = chunker.begin(0.4, 0.25)
    assert under_way is not None and under_way.frozen == 3
    # A chunk that is 100 higher throughout; it is there within its third row.
    chunker.finish(chunk(100.0 + np.arange(2, ROWS + 2), 101.0), 0.65)
    for moment in (0.4, 0.5, 0.65, 0.7):
        assert at(chunker, moment) == pytest.approx(10 * (moment - 0.3))
    assert at(chunker, 0.8) == pytest.approx(105.0)
    assert at(chunker, 1.2) == pytest.approx(109.0)
    before, after = chunker.target(0.7), chunker.target(0.71)
    assert before is not None and after is not None
    assert (before.observed_at, after.observed_at) == (0.0, 0.4)
    assert chunker.target(1.21) is None


def test_a_chunk_that_is_late_takes_over_when_it_is_there() -> None:
    chunker = begun()
    chunker.begin(0.4, 0.1)
    chunker.finish(chunk(100.0 + np.arange(2, ROWS + 2), 101.0), 0.75)
    assert at(chunker, 0.75) == pytest.approx(4.5)
    assert at(chunker, 0.8) == pytest.approx(105.0)
    assert chunker.expected_s == pytest.approx(0.35)


def test_a_chunk_does_not_grow_old_while_the_arm_holds() -> None:
    chunker = begun()  # until 1.1
    under_way = chunker.begin(0.9, 0.5)
    assert under_way is not None
    assert (len(under_way.rows_deg), under_way.frozen) == (2, 2)
    assert chunker.target(1.2) is None
    # 0.2 s of it were executed from the plan before; then the arm stood still for 0.3 s.
    chunker.finish(chunk(6.0 + np.arange(1, ROWS + 1), 6.0), 1.4)
    assert at(chunker, 1.4) == pytest.approx(8.0)
    assert at(chunker, 1.5) == pytest.approx(9.0)
    assert at(chunker, 2.0) == pytest.approx(14.0)
    assert chunker.target(2.01) is None


def test_when_to_begin() -> None:
    chunker = RtcChunker(ROWS, DT, least_rows=4)
    chunker.begin(0.0, 0.0)
    chunker.finish(ramp(), 0.0)
    assert [chunker.wants(t) for t in (0.1, 0.39, 0.4, 0.5)] == [False, False, True, True]
    chunker.begin(0.4, 0.0)
    assert not chunker.wants(0.9)
    chunker.clear()
    assert chunker.wants(0.9)
    assert chunker.target(0.4) is None


def test_the_longest_of_the_last_inferences_is_expected() -> None:
    chunker = RtcChunker(ROWS, DT, latency_s=0.05)
    for k, latency_s in enumerate((0.31, 0.12, *[0.1] * 10)):
        chunker.begin(float(k))
        chunker.finish(ramp(), k + latency_s)
        if k == 1:
            assert chunker.expected_s == pytest.approx(0.31)
    assert chunker.expected_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    "bad",
    [
        ActionChunk(np.zeros((ROWS, 5), np.float32), np.zeros((ROWS, 5), np.float32)),
        ActionChunk(np.zeros((3, 7), np.float32), np.zeros((3, 7), np.float32)),
        ActionChunk(np.zeros(7, np.float32), np.zeros(7, np.float32)),
        chunk(np.full(ROWS, np.nan)),
    ],
)
def test_chunks_that_cannot_be_followed(bad: ActionChunk) -> None:
    chunker = begun()
    chunker.begin(0.4, 0.1)
    with pytest.raises(PolicyError, match="a chunk must be"):
        chunker.finish(bad, 0.5)
    # What was planned goes on.
    assert at(chunker, 0.6) == pytest.approx(3.0)


def test_numbers_that_make_no_sense() -> None:
    for options in ({"dt": 0.0}, {"least_rows": 0}, {"least_rows": 9}, {"latency_s": -1.0}):
        with pytest.raises(ValueError, match="a chunk has rows"):
            RtcChunker(ROWS, **{"dt": DT, **options})  # type: ignore[arg-type]
    for observed_at, latency_s in ((float("nan"), 0.1), (0.0, -0.1), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="an instant and a latency"):
            RtcChunker(ROWS, DT).begin(observed_at, latency_s)


@settings(max_examples=60, deadline=None)
@example([(0.0, 0.78125, 0.0)])
@given(
    st.lists(
        st.tuples(st.floats(0.0, 0.4), st.floats(0.0, 0.9), st.floats(-0.05, 0.05)), max_size=12
    )
)
def test_a_policy_that_agrees_with_itself_is_followed_without_a_jump(
    inferences: list[tuple[float, float, float]],
) -> None:
    """Chunks off one straight line: whatever the latencies, the plan is that line, or none."""
    chunker = RtcChunker(ROWS, DT)
    chunker.begin(0.0, 0.0)
    chunker.finish(ramp(), 0.0)
    now = 0.0
    for pause, latency_s, mistaken_s in inferences:
        now += pause
        began, start = now, at(chunker, now)
        if start is None:
            break
        under_way = chunker.begin(now, max(latency_s + mistaken_s, 0.0))
        ends = now
        if under_way is not None:
            left = len(under_way.rows_deg)
            line = start + np.arange(1, left + 1)
            assert under_way.rows_deg[:, 0] == pytest.approx(line, abs=1e-4)
            assert 0 <= under_way.frozen <= left <= ROWS
            ends += left * DT
        now += latency_s
        if now > ends:
            break
        chunker.finish(ramp(start), now)
        for moment in np.linspace(now, now + 0.05, 3):
            target = at(chunker, float(moment))
            if target is None:  # a chunk that came so late that it is over
                assert moment > began + ROWS * DT
            else:
                assert target == pytest.approx(10 * moment, abs=1e-4)
