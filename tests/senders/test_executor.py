"""What the robot is told, for whatever actions come: pure logic, with time given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.kinematics import MECA500
from common.wire import Action
from senders.executor import ActionExecutor
from senders.limits import MotionLimits

HZ = 100.0
HOME = np.array([0.0, -10.0, 20.0, 0.0, 35.0, 0.0])
POSE = np.array([190.0, 0.0, 250.0, 0.0, 60.0, 10.0])
T0 = 1000.0
STAMP = 1.7e9


def action(rows: Any = None, seq: int = 0, at: float = 0.0, **given: Any) -> Action:
    """A chunk of which inference ended `at` seconds into the test."""
    if rows is None:
        rows = np.tile(HOME, (8, 1))
    fields: dict[str, Any] = {
        "seq": seq,
        "timestamp": STAMP + at,
        "observed_at": STAMP + at - 0.1,
        "feature_update": 1,
        "feature_age": 0.1,
        "dt": 0.1,
        "space": "joint_position",
        "actions": np.asarray(rows, np.float32),
    }
    return Action(**{**fields, **given})


def seen_before(age_s: float, seq: int, at: float) -> Action:
    """One of which the oldest input was seen so long before."""
    return action(seq=seq, at=at, observed_at=STAMP + at - age_s)


def executor(limits: MotionLimits | None = None, **given: Any) -> ActionExecutor:
    made = ActionExecutor(limits or MotionLimits.of_arm(speed_scale=1.0), HZ, 10.0, **given)
    made.observe(HOME, POSE)
    return made


def follow(made: ActionExecutor, start: float, seconds: float) -> list[np.ndarray]:
    """The targets of a robot that is at once where it is told to be."""
    targets = []
    for tick in range(1, round(seconds * HZ) + 1):
        command = made.step(T0 + start + tick / HZ)
        if command is not None and command.kind == "joints":
            targets.append(command.target)
            made.observe(command.target, POSE)
    return targets


def test_row_k_is_reached_k_plus_1_steps_after_arrival_in_a_straight_line() -> None:
    made = executor()
    rows = HOME + np.array([[2.0], [4.0], [5.0]]) * np.eye(6)[0]
    assert made.accept(action(rows), T0) == ""
    targets = np.array(follow(made, 0.0, 0.29))
    assert targets[9] == pytest.approx(rows[0], abs=1e-5)
    assert targets[19] == pytest.approx(rows[1], abs=1e-5)
    assert targets[4, 0] == pytest.approx(1.0)
    assert targets[24, 0] == pytest.approx(4.5)
    assert targets[:, 1:] == pytest.approx(np.tile(HOME[1:], (29, 1)), abs=1e-5)


def test_joint_delta_rows_add_up_from_the_joints_at_arrival() -> None:
    made = executor()
    rows = np.tile([1.0, -0.5, 0, 0, 0, 2.0, 0.7], (3, 1))
    made.accept(action(rows, space="joint_delta"), T0)
    targets = np.array(follow(made, 0.0, 0.3))
    assert targets[9] == pytest.approx(HOME + rows[0, :6], abs=1e-5)
    assert targets[29] == pytest.approx(HOME + 3 * rows[0, :6], abs=1e-5)


def test_pose_delta_moves_the_pose_and_turns_through_180_degrees() -> None:
    made = executor()
    pose = POSE.copy()
    pose[3] = 179.9
    made.observe(HOME, pose)
    rows = np.tile([0.5, 0, 0, 0.2, 0, 0], (2, 1))
    made.accept(action(rows, space="pose_delta"), T0)
    for tick in range(1, 21):
        command = made.step(T0 + tick / HZ)
        assert command is not None and command.kind == "pose" and command.target is not None
        made.observe(HOME, command.target)
    assert command.target == pytest.approx(
        [POSE[0] + 1.0, POSE[1], POSE[2], 179.9 + 0.4 - 360, POSE[4], POSE[5]], abs=1e-4
    )


def test_a_new_chunk_goes_on_from_where_the_old_one_was() -> None:
    made = executor()
    ahead = HOME + np.array([8.0, 0, 0, 0, 0, 0])
    made.accept(action([ahead], dt=0.2), T0)
    first = follow(made, 0.0, 0.1)
    made.observe(HOME, POSE)  # a slow robot, still where it was
    made.accept(action([ahead], seq=1, at=0.1, dt=0.2), T0 + 0.1)
    command = made.step(T0 + 0.11)
    assert command is not None and command.target is not None
    assert abs(command.target[0] - first[-1][0]) < 0.5
    assert first[-1][0] == pytest.approx(4.0, abs=1e-5)


def test_speed_is_limited_however_far_a_row_is() -> None:
    made = executor(MotionLimits.of_arm(speed_scale=0.5))
    made.accept(action([HOME + 60.0], dt=0.01), T0)
    targets = np.array([HOME, *follow(made, 0.0, 0.2)])
    steps = np.abs(np.diff(targets, axis=0)).max(axis=0)
    expected = np.minimum(0.5 * np.array(MECA500.joint_speed_deg_s) / HZ, 2.0)
    assert steps == pytest.approx(expected, abs=1e-9)


def test_targets_stop_at_the_end_of_the_range() -> None:
    made = executor()
    for k in range(40):
        made.accept(action([HOME + 500.0], seq=k, at=k / 10), T0 + k / 10)
        targets = follow(made, k / 10, 0.1)
    assert targets[-1][:5] == pytest.approx(MECA500.joint_max_deg[:5])
    assert targets[-1][5] < MECA500.joint_max_deg[5]


def test_a_stuck_robot_is_not_sent_further_and_further_away() -> None:
    limits = MotionLimits.of_arm(speed_scale=0.5)
    made = executor(limits)
    far = HOME + 60.0
    for k in range(60):
        made.accept(action([far], seq=k, at=k / 10), T0 + k / 10)
        for tick in range(10):
            made.observe(HOME, POSE)
            command = made.step(T0 + k / 10 + tick / HZ)
            assert command is not None and command.target is not None
            speed = np.array(limits.joint_speed_deg_s)
            assert (command.target - HOME <= speed * (limits.lead_s + 1 / HZ) + 1e-9).all()


def test_what_was_seen_in_the_episode_before_moves_nothing_in_the_next() -> None:
    made = executor()
    assert made.accept(seen_before(0.05, seq=0, at=0.0), T0) == ""
    made.begin_episode(T0 + 0.1)
    made.observe(HOME, POSE)
    # On its way when the episode began, and made of features from before it.
    assert made.accept(seen_before(0.05, seq=1, at=0.1), T0 + 0.12) == "episode"
    assert made.accept(seen_before(0.35, seq=2, at=0.2), T0 + 0.2) == "episode"
    assert made.step(T0 + 0.21) is None
    # An order to hold is obeyed all the same.
    assert made.accept(action(seq=3, at=0.25, hold=True), T0 + 0.25) == ""
    assert made.holding
    assert made.accept(seen_before(0.05, seq=4, at=0.3), T0 + 0.3) == ""
    assert (command := made.step(T0 + 0.31)) is not None
    assert command.kind == "joints"


def test_who_does_not_say_when_it_saw_is_believed_in_any_episode() -> None:
    made = executor()
    made.begin_episode(T0 + 0.05)
    made.observe(HOME, POSE)
    assert made.accept(action(seq=0, at=0.1, observed_at=0.0), T0 + 0.1) == ""


def test_nothing_moves_before_a_state_was_read_or_an_action_came() -> None:
    made = ActionExecutor(MotionLimits.of_arm(), HZ, 10.0)
    assert made.accept(action(), T0) == "no_state"
    assert made.step(T0 + 0.01) is None
    made.observe(HOME, POSE)
    assert made.step(T0 + 0.02) is None
    assert made.accept(action(seq=1, at=0.1), T0 + 0.1) == ""
    assert made.step(T0 + 0.11) is not None
    made.forget()
    assert made.step(T0 + 0.12) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"rows": np.zeros((8, 5))}, "columns"),
        ({"rows": np.zeros((8, 8))}, "columns"),
        ({"rows": np.zeros((0, 6))}, "rows"),
        ({"rows": np.full((8, 6), np.nan)}, "values"),
        ({"rows": np.full((8, 6), np.inf)}, "values"),
        ({"dt": 0.0}, "dt"),
        ({"dt": 1e5}, "dt"),
    ],
)
def test_unusable_actions_are_refused(given: dict[str, Any], reason: str) -> None:
    made = executor()
    assert made.accept(action(**given), T0) == reason
    assert made.step(T0 + 0.01) is None


def test_the_watchdog_holds_after_three_periods_and_lets_go_by_itself() -> None:
    made = executor()
    made.accept(action(), T0)
    assert made.step(T0 + 0.30).kind == "joints"  # type: ignore[union-attr]
    held = made.step(T0 + 0.31)
    assert held is not None and held.kind == "hold" and "0.30 s" in held.reason
    assert made.step(T0 + 0.32).kind == "hold"  # type: ignore[union-attr] # not taken yet
    made.held()
    assert made.step(T0 + 0.33) is None
    assert made.holds == {"watchdog": 1}
    assert made.accept(action(seq=9, at=0.9), T0 + 0.9) == ""
    assert made.step(T0 + 0.91).kind == "joints"  # type: ignore[union-attr]
    assert made.holding == ""


def test_refused_actions_do_not_keep_the_watchdog_quiet() -> None:
    made = executor()
    made.accept(action(), T0)
    for k in range(1, 5):
        made.accept(action(np.zeros((8, 5)), seq=k, at=k / 10), T0 + k / 10)
    assert made.step(T0 + 0.41).kind == "hold"  # type: ignore[union-attr]


def test_an_order_to_hold_is_obeyed_even_late_and_said_without_control_characters() -> None:
    made = executor()
    made.accept(action(seq=5, at=0.5), T0 + 0.5)
    assert made.accept(action(seq=4, at=0.4, hold=True, reason="x\n\x1b[2J"), T0 + 0.51) == "late"
    command = made.step(T0 + 0.52)
    assert command is not None and command.kind == "hold"
    assert command.reason == "receiver: x??[2J"
    assert made.accept(action(seq=6, at=0.6), T0 + 0.6) == ""
    assert made.step(T0 + 0.61).kind == "joints"  # type: ignore[union-attr]


def test_late_and_old_actions_are_ignored() -> None:
    made = executor()
    up, down = HOME + 5.0, HOME - 5.0
    assert made.accept(action([up], seq=500, at=1.0), T0 + 1.0) == ""
    assert made.accept(action([down], seq=499, at=0.9), T0 + 1.01) == "late"
    assert made.accept(action([down], seq=500, at=1.0), T0 + 1.02) == "late"
    assert made.accept(action([down], seq=499, at=1.05), T0 + 1.05) == "late"
    assert made.accept(action([down], seq=501, at=0.8), T0 + 1.03) == "old"
    stale = {"observed_at": STAMP - 5.0}
    assert made.accept(action([down], seq=502, at=1.04, **stale), T0 + 1.04) == "old"
    targets = follow(made, 1.0, 0.1)
    assert (targets[-1] > HOME).all()


def test_a_receiver_that_starts_again_is_followed() -> None:
    made = executor()
    assert made.accept(action(seq=5000, at=1.0), T0 + 1.0) == ""
    assert made.accept(action(seq=2, at=1.1), T0 + 1.1) == ""
    assert made.accept(action(seq=1, at=1.05), T0 + 1.12) == "late"


def test_a_receiver_found_again_after_a_silence_is_followed_whatever_it_counts() -> None:
    made = executor()
    made.accept(action(seq=5000, at=1.0), T0 + 1.0)
    assert made.accept(action(seq=300, at=1.5), T0 + 1.5) == ""


def test_actions_that_queued_up_in_the_network_are_not_executed() -> None:
    made = executor()
    for k in range(30):
        assert made.accept(action(seq=k, at=k / 10), T0 + k / 10) == ""
    burst = [made.accept(action(seq=k, at=k / 10), T0 + 5.0) for k in range(30, 49)]
    assert burst == ["delayed"] * 15 + [""] * 4  # from 4.5 s on, 0.5 s ago and less
    assert made.accept(action(seq=50, at=5.0), T0 + 5.0) == ""


def test_actions_that_stay_late_are_never_followed(caplog: pytest.LogCaptureFixture) -> None:
    made = executor()
    for k in range(30):
        assert made.accept(action(seq=k, at=k / 10), T0 + k / 10) == ""
    # A queue on the way that stands: nothing is lost, everything is three seconds old.
    late = [made.accept(action(seq=k, at=k / 10), T0 + 3.0 + k / 10) for k in range(30, 3000)]
    assert set(late) == {"delayed"}
    made.step(T0 + 303.0)
    assert made.holding
    assert [record.message[:45] for record in caplog.records if "later" in record.message] == [
        "actions come 3.0 s later than the fastest did"
    ]
    # The queue is gone.
    assert made.accept(action(seq=3001, at=303.0), T0 + 303.0) == ""


def test_a_receiver_whose_clock_was_set_is_followed_again_before_long() -> None:
    made = executor()
    for k in range(30):
        made.accept(action(seq=k, at=k / 10), T0 + k / 10)
    answers = [made.accept(action(seq=k, at=k / 10 - 3600.0), T0 + k / 10) for k in range(30, 80)]
    assert answers[0] != ""
    assert answers[-1] == ""


def test_a_robot_outside_its_range_is_left_alone() -> None:
    made = executor()
    made.observe(HOME + np.array([0, 105.0, 0, 0, 0, 0]), POSE)
    made.accept(action(), T0)
    command = made.step(T0 + 0.01)
    assert command is not None and command.kind == "hold" and "outside its range" in command.reason
    made.held()
    made.accept(action(seq=1, at=0.1), T0 + 0.1)
    assert made.step(T0 + 0.11) is None
    assert made.holds == {"range": 1}


value = st.one_of(
    st.floats(-400, 400), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1e-30, float("nan")])
)
chunks = st.builds(
    dict,
    rows=st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(value, min_size=6, max_size=6), min_size=n, max_size=n)
    ),
    space=st.sampled_from(["joint_position", "joint_delta", "pose_delta"]),
    dt=st.floats(0.0, 0.5),
    hold=st.booleans(),
    skip=st.integers(-2, 40),
)


@settings(max_examples=150, deadline=None)
@given(
    actions=st.lists(chunks, max_size=8),
    scale=st.floats(0.05, 1.0),
    lag=st.floats(0.05, 1.0),
)
def test_whatever_comes_targets_stay_in_range_and_steps_within_the_speed(
    actions: list[dict[str, Any]], scale: float, lag: float
) -> None:
    """The robot moves a part `lag` of the way to its target each tick."""
    limits = MotionLimits.of_arm(speed_scale=scale)
    made = executor(limits)
    low, high = np.array(limits.joint_min_deg), np.array(limits.joint_max_deg)
    step = np.array(limits.joint_speed_deg_s) / HZ
    joints, pose, last, moment = HOME, POSE, None, 0.0
    for seq, fields in enumerate(actions):
        rows, skip = fields["rows"], fields["skip"]
        chunk = {key: fields[key] for key in ("space", "dt", "hold")}
        made.accept(action(rows, seq=seq, at=moment, **chunk), T0 + moment)
        for _ in range(10 + skip):
            moment += 1 / HZ
            made.observe(joints, pose)
            command = made.step(T0 + moment)
            if command is None or command.kind != "joints":
                last = None
            if command is None or command.target is None:
                made.held()
                continue
            assert np.isfinite(command.target).all()
            if command.kind == "pose":
                pose = command.target
                assert (pose[:3] <= limits.pose_max_mm).all()
                continue
            before = joints if last is None else last
            assert (command.target >= low).all() and (command.target <= high).all()
            assert (np.abs(command.target - before) <= step + 1e-9).all()
            joints = joints + lag * (command.target - joints)
            last = command.target
