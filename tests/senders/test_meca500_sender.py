"""The robot sender as a process with the Meca500 driver, the maker's library and a controller."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

pytest.importorskip("mecademicpy")

from common.kinematics import flange_pose
from common.wire import Action, encode_action
from senders.robots.meca500_motion import pose_difference
from tests.senders.fake_meca500 import ESTOP, HOME, FakeMeca500
from tests.senders.test_robot_sender import Listener


class Rig:
    """A controller, a sender of it, a listener to that, and a receiver's socket for actions."""

    def __init__(self, start: Any, free_port: Any, context: Any, *options: object) -> None:
        self.robot = FakeMeca500("11.3.2").start()
        self.actions = context.socket(zmq.PUB)
        action_port = self.actions.bind_to_random_port("tcp://127.0.0.1")
        port = free_port()
        self.program = start(
            "robot_sender", "--robot", "on", "--driver", "meca500",
            "--driver-options", f"address={self.robot.host}", "connect_s=1", "stale_s=0.6",
            "--port", port, "--action-port", action_port, *options,
        )  # fmt: skip
        self.listener = Listener(context, port)
        self._seq = 0

    def publish(self, target: np.ndarray, space: Any = "joint_position") -> None:
        now = time.time()
        rows = np.tile(target, (8, 1)).astype(np.float32)
        action = Action(self._seq, now, now - 0.1, 1, 0.1, 0.1, space, rows)
        self.actions.send_multipart(encode_action(action))
        self._seq += 1

    def says(self, condition: str) -> Callable[[], bool]:
        """Whether the newest status is `condition`."""

        def said() -> bool:
            self.listener.drain()
            statuses = self.listener.statuses
            return bool(statuses) and statuses[-1]["condition"] == condition

        return said

    def reaches(self, target: np.ndarray) -> Callable[[], bool]:
        def there() -> bool:
            self.publish(target)
            time.sleep(0.05)
            return bool(np.abs(self.robot.joints - target).max() < 0.05)

        return there


@pytest.fixture
def rig(start: Any, free_port: Any, zmq_context: Any) -> Iterator[Callable[..., Rig]]:
    """`rig(*options)`: everything runs."""
    rigs: list[Rig] = []

    def begin(*options: object) -> Rig:
        rigs.append(Rig(start, free_port, zmq_context, *options))
        return rigs[-1]

    yield begin
    for made in rigs:
        made.robot.stop()
        assert not made.robot.unknown, made.robot.unknown


def test_states_come_at_100_hz_and_actions_move_the_arm(rig: Any, until: Any) -> None:
    made = rig("--accept-actions")
    until(made.says("ok"), "the robot to be ready")
    until(made.listener.has(100), "100 states")
    origin = np.array([state[0] for state in made.listener.states])
    assert len(origin) / (origin[-1] - origin[0]) == pytest.approx(100, rel=0.15)
    target = np.array(HOME) + np.array([15.0, 5, -5, 10, 5, 20])
    until(made.reaches(target), "the arm at its target")
    until(made.listener.has(len(made.listener.states) + 10), "states")
    assert made.listener.joints == pytest.approx(target, abs=0.1)
    assert made.program.stop() == 0
    assert made.robot.activated and made.robot.resting
    assert "Traceback" not in made.program.said


def test_pose_deltas_move_the_flange_along_them(rig: Any, until: Any) -> None:
    made = rig("--accept-actions")
    until(made.says("ok"), "the robot to be ready")
    began = flange_pose(made.robot.joints)

    def gone() -> np.ndarray:
        return flange_pose(made.robot.joints)[:3] - began[:3]

    def far_enough() -> bool:
        made.publish(np.array([0.0, 2.0, -1.0, 0, 0, 0]), "pose_delta")  # mm a tenth of a second
        time.sleep(0.05)
        return bool(gone()[1] > 12)

    until(far_enough, "12 mm along y")
    assert gone() == pytest.approx([0, gone()[1], -0.5 * gone()[1]], abs=0.5)
    turned = pose_difference(flange_pose(made.robot.joints), began)[3:]
    assert np.abs(turned).max() < 0.5
    assert made.program.stop() == 0


def test_an_emergency_stop_is_told_and_nothing_old_is_done_after_it(rig: Any, until: Any) -> None:
    made = rig("--accept-actions")
    until(made.says("ok"), "the robot to be ready")
    far = np.array(HOME) + np.array([120.0, 0, 0, 0, 0, 0])
    began = made.robot.joints.copy()

    def moves() -> bool:
        made.publish(far)
        time.sleep(0.05)
        return bool(np.abs(made.robot.joints - began).max() > 2)

    until(moves, "motion")
    made.robot.set_stop(ESTOP, 1)
    until(made.says("emergency_stop"), "the stop to be told")
    states = len(made.listener.states)
    heard = len(made.listener.statuses)

    def told_for_a_while() -> bool:  # a plan as of before is sent all the time
        made.publish(far)
        made.listener.drain()
        time.sleep(0.02)
        return len(made.listener.statuses) >= heard + 1

    until(told_for_a_while, "the stop to be told again")
    assert len(made.listener.states) == states
    stopped = made.robot.joints.copy()
    made.robot.told.clear()
    made.robot.set_stop(ESTOP, 0)
    heard = len(made.listener.statuses)
    until(told_for_a_while, "the sender to wait, though the stop is over")
    assert not made.robot.told  # neither power nor homing before somebody says so
    made.program.type("resume")
    until(made.says("ok"), "the robot to be ready again")
    until(made.listener.has(states + 60), "states again")
    assert made.robot.joints == pytest.approx(stopped)  # without fresh actions
    until(made.reaches(stopped), "no motion")
    until(made.reaches(np.array(HOME)), "the arm at home, by fresh actions")
    assert made.program.stop() == 0


@pytest.mark.parametrize("how", ["cut", "off", "error", "error, not latched"])
def test_a_robot_that_is_lost_or_fails_comes_back(rig: Any, until: Any, how: str) -> None:
    made = rig("--accept-actions", *(["--no-latch-stops"] if "not latched" in how else []))
    until(made.says("ok"), "the robot to be ready")
    until(made.listener.has(10), "states")
    if "error" in how:
        made.robot.fail(3041, "Collision")
    elif how == "cut":
        made.robot.cut()
    else:
        made.robot.stop()
    expected = "error" if "error" in how else "lost"

    def told() -> bool:
        made.listener.drain()
        return any(status["condition"] == expected for status in made.listener.statuses[-3:])

    first = len(made.listener.statuses)
    until(lambda: made.listener.drain() or len(made.listener.statuses) > first, "a status")
    until(told, f"{expected} to be told")
    if how == "off":
        made.robot.start()
    # Whoever took the arm's power, or has to see to its error, says when it may have it again; a
    # network that was away takes none.
    if how in ("off", "error"):
        until(lambda: "type resume once it is safe" in made.program.said, "it to wait for leave")
        assert not made.robot.activated or made.robot.error
        made.program.type("resume")
    until(made.says("ok"), "the robot to be ready again")
    before = len(made.listener.states)
    until(made.listener.has(before + 20), "states again")
    until(made.reaches(np.array(HOME) + 5), "the arm at its target")
    assert made.program.stop() == 0
    assert "Traceback" not in made.program.said


def test_a_robot_that_homes_is_waited_for_and_a_stop_does_not(rig: Any, until: Any) -> None:
    made = rig("--accept-actions")
    made.robot.homing_s = 600.0
    until(lambda: made.robot.count("Home"), "homing")
    made.listener.drain()
    heard = len(made.listener.statuses)
    until(
        lambda: made.listener.drain() or len(made.listener.statuses) >= heard + 2,
        "a status a second while it homes",
    )
    assert {status["condition"] for status in made.listener.statuses} == {"lost"}
    assert not made.listener.states
    assert made.program.stop() == 0
    until(lambda: not made.robot.controlled, "the connection to end")


def test_a_robot_that_is_only_watched_is_not_touched(rig: Any, until: Any) -> None:
    made = rig()
    until(made.listener.has(30), "states")
    assert made.program.stop() == 0
    assert not made.robot.activated and not made.robot.count("ResumeMotion")
