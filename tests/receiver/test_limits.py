"""Whatever a policy proposes, what leaves is inside the limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.kinematics import flange_pose, flange_transform
from common.wire import RobotState
from receiver.limits import NoState, limit_rows
from receiver.options import Limits

LIMITS = Limits()
LOW, HIGH = np.array(LIMITS.joint_min_deg), np.array(LIMITS.joint_max_deg)
DT = 0.1
SLACK = 1e-3  # float32 on the wire


def robot_at(joints: list[float] | np.ndarray) -> RobotState:
    return RobotState(1.0, 1.0, 0.0, tuple(joints), tuple(flange_pose(joints)))


def rows_of(size: float) -> st.SearchStrategy[np.ndarray]:
    values = st.floats(-size, size, width=32)
    return arrays(np.float32, st.tuples(st.integers(1, 8), st.just(7)), elements=values)


inside = st.tuples(
    *(st.floats(float(max(a, -720)), float(min(b, 720))) for a, b in zip(LOW, HIGH, strict=True))
)


@settings(deadline=None, max_examples=200)
@given(rows_of(1e5), inside, st.sampled_from(["joint_position", "joint_delta"]))
def test_joint_rows_stay_in_range_and_under_the_speed(
    rows: np.ndarray, joints: tuple[float, ...], space: str
) -> None:
    limited = limit_rows(rows, space, DT, robot_at(np.array(joints)), LIMITS).rows.astype(float)
    at = np.array(joints)
    outside = _outside(flange_pose(at)[:3])
    for row in limited[:, :6]:
        target = at + row if space == "joint_delta" else row
        assert (target >= LOW - SLACK).all()
        assert (target <= HIGH + SLACK).all()
        step = np.abs(target - at)
        assert (step <= np.array(LIMITS.joint_speed_deg_s) * DT + SLACK).all()
        assert (step <= LIMITS.joint_step_deg + SLACK).all()
        now_outside = _outside(flange_pose(target)[:3])
        assert now_outside <= outside + 0.01
        at, outside = target, now_outside
    assert ((limited[:, 6] >= LIMITS.gripper_min) & (limited[:, 6] <= LIMITS.gripper_max)).all()


def _outside(point: np.ndarray) -> float:
    box = np.clip(point, LIMITS.workspace_min_mm, LIMITS.workspace_max_mm)
    return float(np.linalg.norm(point - box))


@settings(deadline=None, max_examples=200)
@given(rows_of(1e5), st.tuples(*[st.floats(-600, 600)] * 3))
def test_pose_rows_stay_in_the_box_and_under_the_speed(
    rows: np.ndarray, position: tuple[float, float, float]
) -> None:
    robot = RobotState(1.0, 1.0, 0.0, (0.0,) * 6, (*position, 0.0, 90.0, 0.0))
    limited = limit_rows(rows, "pose_delta", DT, robot, LIMITS).rows.astype(float)
    at = np.array(position)
    for row in limited:
        assert (np.abs(row[:3]) <= LIMITS.position_speed_mm_s * DT + SLACK).all()
        assert (np.abs(row[3:6]) <= LIMITS.rotation_speed_deg_s * DT + SLACK).all()
        assert _outside(at + row[:3]) <= _outside(at) + 0.01
        at = at + row[:3]


def test_what_is_within_the_limits_is_left_as_it_is() -> None:
    rows = np.zeros((8, 7), np.float32)
    rows[:, 0] = np.linspace(0.5, 4.0, 8)
    limited = limit_rows(rows, "joint_position", DT, robot_at([0, 0, 0, 0, 30, 0]), LIMITS)
    assert limited.cut == {"joint_speed"}  # joint 5: 30 → 0
    rows[:, 4] = 30.0
    limited = limit_rows(rows, "joint_position", DT, robot_at([0, 0, 0, 0, 30, 0]), LIMITS)
    np.testing.assert_allclose(limited.rows, rows, atol=1e-6)
    assert limited.cut == frozenset()


def test_a_cut_step_keeps_its_direction() -> None:
    rows = np.array([[40.0, 20.0, 0, 0, 0, 0, 0]], np.float32)
    limited = limit_rows(rows, "joint_delta", DT, robot_at([0.0] * 6), LIMITS)
    assert limited.rows[0, 0] == pytest.approx(2 * limited.rows[0, 1])
    assert 0 < limited.rows[0, 0] <= 4.5 + SLACK
    assert limited.cut == {"joint_speed"}


def test_deltas_add_up_to_no_more_than_the_range() -> None:
    rows = np.full((8, 7), 3.0, np.float32)
    free = Limits(arm="none")
    limited = limit_rows(rows, "joint_delta", 1.0, robot_at([0, 85, 0, 0, 0, 0]), free)
    assert 85 + limited.rows[:, 1].sum() <= 90 + SLACK
    assert "joint_range" in limited.cut


@pytest.mark.parametrize("tool_mm", [(0.0, 0.0, 0.0), (0.0, 0.0, 70.0)])
@pytest.mark.parametrize("space", ["joint_position", "joint_delta"])
def test_the_tool_stays_in_the_box(tool_mm: tuple[float, float, float], space: str) -> None:
    start = np.array([0.0, 20.0, 0.0, 0.0, 40.0, 0.0])

    def height(joints: np.ndarray) -> float:
        rotation, position = flange_transform(joints)
        return float((position + rotation @ np.array(tool_mm))[2])

    floor = height(start) - 40.0
    limits = Limits(tool_mm=tool_mm, workspace_min_mm=(-400.0, -400.0, floor))
    down = np.zeros((8, 7), np.float32)
    down[:, 1] = 3.0 if space == "joint_delta" else start[1] + 3.0 * np.arange(1, 9)
    down[:, 2:6] = 0.0 if space == "joint_delta" else start[2:6]
    limited = limit_rows(down, space, DT, robot_at(start), limits)
    moved = limited.rows[:, :6].astype(float)
    targets = start + np.cumsum(moved, axis=0) if space == "joint_delta" else moved
    heights = [height(target) for target in targets]
    assert min(heights) >= floor - 0.01
    assert heights[0] < height(start) - 1.0, "it may move down as far as the box reaches"
    assert "workspace" in limited.cut


def test_a_tool_outside_the_box_may_only_come_back() -> None:
    start = [0.0, 20.0, 0.0, 0.0, 40.0, 0.0]
    above = float(flange_pose(start)[2]) + 30.0
    limits = Limits(workspace_min_mm=(-400.0, -400.0, above))
    rows = np.zeros((4, 7), np.float32)
    rows[:, 1] = 3.0  # further down
    assert not limit_rows(rows, "joint_delta", DT, robot_at(start), limits).rows.any()
    rows[:, 1] = -3.0
    assert (limit_rows(rows, "joint_delta", DT, robot_at(start), limits).rows[:, 1] == -3.0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_output_that_is_not_finite_is_refused(bad: float) -> None:
    rows = np.zeros((8, 7), np.float32)
    rows[3, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        limit_rows(rows, "joint_position", DT, robot_at([0.0] * 6), LIMITS)


def test_without_a_robot_state_nothing_can_be_checked() -> None:
    with pytest.raises(NoState):
        limit_rows(np.zeros((8, 7), np.float32), "joint_delta", DT, None, LIMITS)


@pytest.mark.parametrize("shape", [(8, 5), (8, 8), (8,)])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rows of 6 or 7"):
        limit_rows(np.zeros(shape, np.float32), "joint_delta", DT, robot_at([0.0] * 6), LIMITS)


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="joint_min_deg"):
        Limits(joint_min_deg=(200.0,) * 6)
    with pytest.raises(ValueError, match="above 0"):
        Limits(force_n=0.0)
