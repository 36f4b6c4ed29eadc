"""Every doubt ends in hold, with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.wire import CameraFrame, RobotCondition, RobotState, RobotStatus
from policies.base import PolicySpec
from receiver.commands import Guard, is_ready
from receiver.episodes import Episode
from receiver.features import FeatureUpdate
from receiver.inputs import StoredFrame, StoredState, StoredStatus
from receiver.observation import Observation
from receiver.options import Limits, StaleAfter

NOW = 1000.0
SPEC = PolicySpec(
    name="test",
    views=("View1", "View2"),
    image_size=(64, 36),
    sensor_window=4,
    sensor_channels=3,
    rows=8,
    columns=("a",) * 7,
    space="joint_position",
    dt=0.1,
    task="t",
)
FRAME = StoredFrame(CameraFrame("c", 1.0, b""), NOW - 0.05, NOW - 0.03)
SEEN = Observation(
    at=NOW,
    frames={"View1": FRAME, "View2": FRAME},
    sensor=np.zeros((4, 3), np.float32),
    sensor_at=NOW - 0.01,
    sensor_age_s=0.01,
    force_peak_n=0.1,
    robot=StoredState(RobotState(1, 1, 0, (0,) * 6, (0,) * 6), NOW - 0.02, NOW - 0.01),
)
UPDATE = FeatureUpdate(1, 1, None, {"View1": NOW - 0.3}, NOW - 0.25, NOW - 0.1, "t")
EPISODE = Episode(1, NOW - 10)


def guard(robot_required: bool = True) -> Guard:
    return Guard(SPEC, StaleAfter(), Limits(), robot_required)


def reason_of(
    judge: Guard, seen: Observation, update: FeatureUpdate | None, episode: Episode | None
) -> str:
    return judge.reason(seen, update, episode, judge.troubles(seen))


def with_frame(seen: Observation, **changes: float) -> Observation:
    return replace(seen, frames={**seen.frames, "View2": replace(FRAME, **changes)})


def with_force(seen: Observation, force: float) -> Observation:
    return replace(seen, force_peak_n=force)


def test_nothing_to_hold_for() -> None:
    assert reason_of(guard(), SEEN, UPDATE, EPISODE) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: replace(s, robot=None), "robot silent"),
        (lambda s: replace(s, robot=replace(s.robot, arrived_at=NOW - 0.6)), "robot silent"),
        (lambda s: replace(s, robot=replace(s.robot, sampled_at=NOW - 0.6)), "robot state old"),
        (lambda s: replace(s, frames={"View1": FRAME}), "View2 silent"),
        (lambda s: with_frame(s, arrived_at=NOW - 2.1), "View2 silent"),
        (lambda s: with_frame(s, captured_at=NOW - 2.1), "View2 old"),
        (lambda s: replace(s, sensor_age_s=0.6), "sensor silent"),
        (lambda s: replace(s, sensor_age_s=float("inf")), "sensor silent"),
        (lambda s: replace(s, sensor_at=NOW - 0.6), "sensor samples old"),
        (lambda s: replace(s, sensor=s.sensor[:1]), "sensor window not half full"),
        (lambda s: with_force(s, 3.1), "force above its limit"),
    ],
)
def test_reasons_in_the_observation(
    change: Callable[[Observation], Observation], reason: str
) -> None:
    assert reason_of(guard(), change(SEEN), UPDATE, EPISODE) == reason


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("ok", ""),
        ("lost", "robot lost"),
        ("error", "robot error"),
        ("emergency_stop", "robot emergency stop"),
    ],
)
def test_what_the_robots_side_says_of_it(condition: RobotCondition, reason: str) -> None:
    said = StoredStatus(RobotStatus(condition, NOW, "the detail"), NOW - 0.5)
    assert reason_of(guard(), replace(SEEN, robot_status=said), UPDATE, EPISODE) == reason
    # It is repeated every second: what is older says nothing of now.
    old = replace(said, arrived_at=NOW - 3.1)
    assert reason_of(guard(), replace(SEEN, robot_status=old), UPDATE, EPISODE) == ""


def test_a_trouble_that_passed_between_two_ticks_is_one_of_the_next() -> None:
    judge = guard()
    troubles: dict[RobotCondition, StoredStatus] = {}

    def found(*said: RobotCondition, at: float) -> tuple[str, ...]:
        """Of a tick that finds this said since the one before, the last of it last."""
        for condition in said:
            status = StoredStatus(RobotStatus(condition, at, ""), at)
            if condition != "ok":
                troubles[condition] = status
        return judge.troubles(replace(SEEN, robot_status=status, robot_troubles=dict(troubles)))

    assert found("error", "ok", at=NOW - 1.0) == ("error",)
    assert found("ok", at=NOW - 0.9) == ()
    assert found("error", "ok", at=NOW - 0.8) == ("error",)
    # What lasts is not said once more when it is over,
    assert found("emergency_stop", at=NOW - 0.7) == ("emergency_stop",)
    assert found("emergency_stop", at=NOW - 0.6) == ("emergency_stop",)
    assert found("ok", at=NOW - 0.5) == ()
    # and several at once are all there.
    assert set(found("error", "emergency_stop", "lost", at=NOW - 0.4)) == {
        "error",
        "emergency_stop",
        "lost",
    }
    assert found("ok", at=NOW - 0.3) == ()


def test_a_trouble_behind_another_reason_is_found() -> None:
    judge = guard()
    seen = with_force(replace(SEEN, frames={"View1": FRAME}), 3.1)
    troubles = judge.troubles(seen)
    assert troubles == ("force",)
    assert judge.reason(seen, UPDATE, EPISODE, troubles) == "View2 silent"


def test_reasons_in_features_and_episode() -> None:
    assert reason_of(guard(), SEEN, None, EPISODE) == "no features yet"
    assert (
        reason_of(guard(), SEEN, replace(UPDATE, captured={"View1": NOW - 2.1}), EPISODE)
        == "features old"
    )
    # Features of the episode before are not those of this one.
    assert reason_of(guard(), SEEN, UPDATE, Episode(2, NOW)) == "no features yet"
    assert reason_of(guard(), SEEN, UPDATE, replace(EPISODE, active=False)) == "episode ended"


def test_without_a_required_robot_its_silence_is_no_reason() -> None:
    assert reason_of(guard(robot_required=False), replace(SEEN, robot=None), UPDATE, None) == ""


def test_a_robot_that_is_not_needed_but_was_there_may_not_fall_silent() -> None:
    assert SEEN.robot is not None
    silent = replace(SEEN, robot=replace(SEEN.robot, arrived_at=NOW - 1.0))
    assert reason_of(guard(robot_required=False), silent, UPDATE, EPISODE) == "robot silent"


def test_force_and_silence_count_for_a_policy_without_a_sensor_window() -> None:
    blind = Guard(replace(SPEC, sensor_window=0), StaleAfter(), Limits(), True)
    seen = replace(SEEN, sensor=SEEN.sensor[:0])
    assert reason_of(blind, seen, UPDATE, EPISODE) == ""
    assert reason_of(blind, with_force(seen, 3.1), UPDATE, EPISODE) == "force above its limit"
    assert reason_of(blind, replace(seen, sensor_age_s=0.6), UPDATE, EPISODE) == "sensor silent"
    never = replace(seen, sensor_at=None, sensor_age_s=float("inf"), force_peak_n=None)
    assert reason_of(blind, never, UPDATE, EPISODE) == ""


def test_start_needs_every_view_half_a_window_and_the_robot() -> None:
    assert is_ready(SEEN, SPEC, True)
    assert not is_ready(replace(SEEN, frames={"View1": FRAME}), SPEC, True)
    assert not is_ready(replace(SEEN, sensor=SEEN.sensor[:1]), SPEC, True)
    assert is_ready(replace(SEEN, sensor=SEEN.sensor[:2]), SPEC, True)
    assert not is_ready(replace(SEEN, robot=None), SPEC, True)
    assert is_ready(replace(SEEN, robot=None), SPEC, False)
