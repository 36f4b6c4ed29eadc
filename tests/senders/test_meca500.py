"""The Meca500 driver: its arithmetic, and the maker's library against a fake controller."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mecademicpy")

from common.kinematics import MECA500, flange_pose, flange_transform
from senders.drivers import DriverError, RobotFault, RobotReading
from senders.robots import meca500_feedback
from senders.robots.meca500 import Meca500
from senders.robots.meca500_feedback import Feedback
from senders.robots.meca500_motion import (
    CARTESIAN_LIMIT,
    Follower,
    joint_difference,
    pose_difference,
    rotation_matrix,
    rotation_vector_deg,
)
from tests.senders.fake_meca500 import (
    CONNECTION_DROPPED,
    CONTROL_PORT,
    ESTOP,
    HOME,
    PSTOP2,
    FakeMeca500,
    own_address,
)

SPEED = np.array(MECA500.joint_speed_deg_s)
FIRMWARES = ["8.4.9", "10.2.5", "12.1.0"]
"""Two ports and text; the control port alone; that, with the status in JSON."""


def turned(vector_deg: np.ndarray) -> np.ndarray:
    """The rotation about a vector by its length (Rodrigues' formula)."""
    angle = np.radians(np.linalg.norm(vector_deg))
    x, y, z = vector_deg / np.linalg.norm(vector_deg)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


# --- arithmetic ----------------------------------------------------------------------------------


def test_euler_angles_are_those_of_the_kinematics() -> None:
    rng = np.random.default_rng(0)
    for joints in rng.uniform(-60, 60, (50, 6)):
        expected, _ = flange_transform(joints)
        assert rotation_matrix(flange_pose(joints)[3:]) == pytest.approx(expected, abs=1e-9)


def test_a_turn_of_the_base_joint_is_a_turn_about_the_bases_z() -> None:
    joints = np.array([10.0, -10, 20, 30, 35, 40])
    moved = joints + np.array([2.0, 0, 0, 0, 0, 0])
    turn = pose_difference(flange_pose(moved), flange_pose(joints))[3:]
    assert turn == pytest.approx([0, 0, 2], abs=1e-6)
    # The difference of the Euler angles is something else altogether.
    assert np.abs(flange_pose(moved)[3:] - flange_pose(joints)[3:] - [0, 0, 2]).max() > 0.5


def test_a_rotation_vector_leads_from_one_orientation_to_the_other() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        start, to = rng.uniform(-80, 80, (2, 6))
        turn = pose_difference(to, start)[3:]
        assert turned(turn) @ rotation_matrix(start[3:]) == pytest.approx(
            rotation_matrix(to[3:]), abs=1e-9
        )
    for vector in ([180.0, 0, 0], [0, 127.27922061357856, 127.27922061357856], [1e-8, 0, 0]):
        found = rotation_vector_deg(turned(np.array(vector)))
        assert np.abs(found) == pytest.approx(np.abs(vector), abs=1e-5)


def follow(goal: np.ndarray, step: np.ndarray, delay: int) -> np.ndarray:
    """Positions (ticks, 6) of a perfect arm whose feedback is `delay` ticks old."""
    follower = Follower(joint_difference, SPEED, 0.01, 5.0)
    arm = [np.zeros(6)]
    target = np.zeros(6)
    for tick in range(300):
        target = target + np.clip(goal - target, -step, step)
        seen = max(tick - delay, 0)
        velocity = follower.velocity(target, arm[seen], 0.01 * seen, 0.01 * tick)
        assert (np.abs(velocity) <= SPEED + 1e-9).all()
        arm.append(arm[-1] + 0.01 * velocity)
    return np.array(arm)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_old_feedback_makes_no_arm_overshoot(delay: int) -> None:
    goal = np.array([30.0, -20, 10, 5, 0, 60])
    arm = follow(goal, np.full(6, 0.75), delay)
    assert arm[-1] == pytest.approx(goal, abs=0.01)
    assert (np.sign(goal) * (arm - goal)).max() < 0.02
    speed = np.diff(arm[:40, 0]) / 0.01
    assert speed[2:] == pytest.approx(np.full(len(speed) - 2, 75.0), abs=5.0)


def test_a_far_target_is_approached_in_a_straight_line_at_no_more_than_top_speed() -> None:
    follower = Follower(joint_difference, SPEED, 0.01, 5.0)
    target = np.array([170.0, 85, 0, 0, 0, -17])
    velocity = follower.velocity(target, np.zeros(6), 0.0, 0.0)
    assert np.max(np.abs(velocity) / SPEED) == pytest.approx(1.0)
    assert velocity / velocity[0] == pytest.approx(target / target[0])


def test_a_missed_call_is_not_mistaken_for_speed() -> None:
    follower = Follower(joint_difference, SPEED, 0.01, 0.0)
    for now, place in ((0.0, 0.0), (0.01, 0.5), (0.018, 1.0), (0.04, 2.0)):
        velocity = follower.velocity(np.full(6, place), np.full(6, place), now, now)
    assert velocity == pytest.approx(np.full(6, 50.0))


def test_a_sample_that_was_held_up_is_known_to_be_old(monkeypatch: pytest.MonkeyPatch) -> None:
    class Said:
        def __init__(self, code: int, data: str) -> None:
            self.id, self.data = code, data

    now = 100.0
    monkeypatch.setattr(meca500_feedback.time, "monotonic", lambda: now)
    feedback = Feedback(frozenset({3005}))

    def cycle(stamp_us: int, late_s: float) -> float:
        nonlocal now
        now = 100.0 + 1e-6 * stamp_us + 0.001 + late_s
        feedback.take(Said(2210, f"{stamp_us},1,2,3,4,5,6"))
        feedback.take(Said(2211, f"{stamp_us},1,2,3,4,5,6"))
        assert feedback.newest is not None
        return now - feedback.newest.at

    ages = [cycle(10_000 * k, 0.0) for k in range(1, 100)]
    assert max(ages) < 1e-6
    assert cycle(1_000_000, 0.15) == pytest.approx(0.15, abs=1e-6)
    before = feedback.newest
    for bad in ("", "x", "2000000,1,2,3", "2000000,nan,2,3,4,5,6", "2000000,1e999,2,3,4,5,6"):
        feedback.take(Said(2210, bad))
    feedback.take(Said(2211, "2000000,1,2,3,4,5,6"))  # its other half was malformed
    assert feedback.newest is before and feedback.malformed == 5
    feedback.take(Said(3005, "Motion error."))
    assert feedback.last_error() == "[3005] Motion error."


@pytest.mark.parametrize(
    "option",
    [
        {"address": "the robot"},
        {"velocity_timeout_s": 0.0},
        {"gain": float("nan")},
        {"stale_s": 5.0},
        {"monitor_interval_s": 0.0},
    ],
)
def test_an_option_that_cannot_be_used_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Meca500(**option)


# --- against a controller ------------------------------------------------------------------------


@pytest.fixture
def switched_on() -> Iterator[Callable[..., FakeMeca500]]:
    """`switched_on(firmware)`: a controller that runs until the end of the test."""
    robots: list[FakeMeca500] = []

    def begin(firmware: str = "10.2.5") -> FakeMeca500:
        robots.append(FakeMeca500(firmware).start())
        return robots[-1]

    yield begin
    for robot in robots:
        robot.stop()
        assert not robot.unknown, robot.unknown


@pytest.fixture
def driver() -> Iterator[Callable[..., Meca500]]:
    """`driver(robot, **options)`: a driver of it that may move it; not open yet."""
    drivers: list[Meca500] = []

    def make(robot: FakeMeca500, **options: Any) -> Meca500:
        # Patient, for a machine that does other things meanwhile.
        patient = {"moves": True, "connect_s": 3.0, "stale_s": 0.6}
        drivers.append(Meca500(robot.host, **{**patient, **options}))
        return drivers[-1]

    yield make
    for made in drivers:
        made.close()


def stream(
    arm: Meca500, kind: str, goal: np.ndarray, step: np.ndarray, until: Callable[[], bool]
) -> list[RobotReading]:
    """Move a target to `goal` in steps, one every 10 ms, until a condition; the readings."""
    first = arm.read()
    target = np.array(first.joints_deg if kind == "joints" else first.pose)
    readings, pause, deadline = [first], threading.Event(), time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline, f"not there: {readings[-1]}"
        target = target + np.clip(goal - target, -step, step)
        (arm.move_joints if kind == "joints" else arm.move_pose)(target)
        pause.wait(0.01)
        readings.append(arm.read())
    return readings


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_it_is_reset_activated_homed_and_set_up(
    switched_on: Any, driver: Any, firmware: str
) -> None:
    robot = switched_on(firmware)
    robot.fail(3041, "Collision")
    arm = driver(robot)
    arm.open()
    order = ["ResetError", "ActivateRobot", "Home", "ClearMotion", "ResumeMotion", "SetVelTimeout"]
    told = [name for _, name, _ in robot.told if name in order]
    assert told == order
    assert robot.homed and not robot.paused and robot.error is None
    assert robot.timeout_s == 0.1 and robot.interval_s == 0.01
    assert sorted(robot.events) == [2210, 2211] and robot.trf == [0.0] * 6
    reading = arm.read()
    assert reading.joints_deg == pytest.approx(HOME, abs=1e-4)
    assert reading.pose == pytest.approx(flange_pose(HOME), abs=1e-4)
    assert 0 <= time.time() - reading.sampled_at < 0.2
    arm.open()  # already is
    assert robot.count("ActivateRobot") == 1


def test_positions_come_100_times_a_second(switched_on: Any, driver: Any, until: Any) -> None:
    arm = driver(switched_on())
    arm.open()
    stamps: list[float] = []

    def another() -> bool:
        stamp = arm.read().sampled_at
        if not stamps or stamp - stamps[-1] > 1e-3:
            stamps.append(stamp)
        return len(stamps) >= 60

    deadline, pause = time.monotonic() + 20, threading.Event()
    while not another():
        assert time.monotonic() < deadline
        pause.wait(0.002)
    assert np.median(np.diff(stamps)) == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize("firmware", ["8.4.9", "12.1.0"])
def test_a_stream_of_joint_targets_is_followed(
    switched_on: Any, driver: Any, until: Any, firmware: str
) -> None:
    robot = switched_on(firmware)
    arm = driver(robot)
    arm.open()
    goal = np.array(HOME) + np.array([25.0, 10, -15, 20, -10, 40])
    stream(
        arm, "joints", goal, 0.005 * SPEED, lambda: bool(np.allclose(robot.joints, goal, atol=0.02))
    )
    arm.hold()
    until(lambda: robot.last("MoveJointsVel") == [0.0] * 6, "the velocity of zero")
    sent = np.array([v for _, name, v in robot.told if name == "MoveJointsVel"])
    assert (np.abs(sent) <= SPEED).all()


def test_a_pose_is_reached_in_a_straight_line(switched_on: Any, driver: Any) -> None:
    robot = switched_on()
    robot.joints = np.array([20.0, 10, -5, 30, 40, -25])
    arm = driver(robot)
    arm.open()
    start = flange_pose(robot.joints)
    goal = start + np.array([20.0, -15, -12, 9, -7, 14])
    step = np.abs(goal - start) / 60  # all components arrive together: a straight line

    def there() -> bool:
        return bool(np.allclose(flange_pose(robot.joints), goal, atol=0.05))

    readings = stream(arm, "pose", goal, step, there)
    along = (goal - start)[:3] / np.linalg.norm((goal - start)[:3])
    for reading in readings:
        gone = (reading.pose - start)[:3]
        assert np.linalg.norm(gone - along * (gone @ along)) < 0.3
    sent = np.array([v for _, name, v in robot.told if name == "MoveLinVelWrf"])
    assert (np.abs(sent) <= CARTESIAN_LIMIT).all()


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("kind", ["joints", "pose"])
def test_a_target_out_of_all_proportion_is_moved_to_no_faster_than_allowed(
    switched_on: Any, driver: Any, until: Any, kind: str, scale: float
) -> None:
    robot = switched_on()
    arm = driver(robot, speed_scale=scale)
    arm.open()
    limit = scale * (SPEED if kind == "joints" else np.array([250.0] * 3 + [90.0] * 3))
    command = "MoveJointsVel" if kind == "joints" else "MoveLinVelWrf"
    for far in (1e6, -1e6):
        target = np.full(6, far) if kind == "joints" else np.array([far] * 3 + [100.0] * 3)
        (arm.move_joints if kind == "joints" else arm.move_pose)(target)
    arm.hold()
    until(lambda: robot.count(command) == 3, "what was said to arrive")
    sent = np.array([v for _, name, v in robot.told if name == command])
    assert (np.abs(sent) <= limit + 1e-4).all()
    assert np.isclose(np.abs(sent[0]) / limit, 1.0, atol=0.01).any()
    for bad in (np.full(6, np.nan), np.zeros(5)):
        with pytest.raises(DriverError, match="not a target"):
            arm.move_joints(bad)


@pytest.mark.parametrize("kind", ["joints", "pose"])
def test_the_arm_stops_by_itself_when_nothing_is_said(
    switched_on: Any, driver: Any, until: Any, kind: str
) -> None:
    robot = switched_on()
    robot.joints = np.array([20.0, 10, -5, 30, 40, -25])
    arm = driver(robot)
    arm.open()
    here = robot.joints if kind == "joints" else flange_pose(robot.joints)
    goal = here + np.array([60.0, 0, 0, 0, 0, 0])
    began = robot.joints.copy()
    stream(arm, kind, goal, np.full(6, 0.6), lambda: np.abs(robot.joints - began).max() > 5)
    assert robot.moving
    said = len(robot.told)
    until(lambda: robot.resting, "the arm to stop")
    stopped = robot.joints.copy()
    assert len(robot.told) <= said + 1  # nothing told it to (one may have been under way)
    said = len(robot.told)
    assert np.abs(stopped - began).max() < 45
    for _ in range(20):
        before = arm.read().sampled_at
        until(lambda since=before: arm.read().sampled_at > since + 1e-3, "the next position")
    assert robot.joints == pytest.approx(stopped) and len(robot.told) == said


def test_a_robot_that_does_not_take_the_time_out_is_not_moved(
    switched_on: Any, driver: Any
) -> None:
    robot = switched_on()
    robot.takes_timeout = False
    arm = driver(robot, connect_s=0.5)
    with pytest.raises(DriverError, match="time-out"):
        arm.open()
    with pytest.raises(DriverError):
        arm.move_joints(np.array(HOME) + 1)
    assert robot.count("MoveJointsVel") == 0


def test_what_was_left_in_the_robots_queue_is_not_done(switched_on: Any, driver: Any) -> None:
    robot = switched_on()
    robot.activated = robot.homed = robot.paused = True
    robot._queue.append(("joints", np.full(6, 50.0)))
    arm = driver(robot)
    arm.open()
    assert robot.joints == pytest.approx(HOME)
    assert robot.count("ActivateRobot") == robot.count("Home") == 0


def test_hold_and_close_are_safe_at_any_time_and_keep_the_motors_on(
    switched_on: Any, driver: Any, until: Any
) -> None:
    robot = switched_on()
    arm = driver(robot)
    arm.hold()
    arm.close()
    arm.open()
    began = robot.joints.copy()
    goal = began + 30
    stream(arm, "joints", goal, np.full(6, 0.7), lambda: np.abs(robot.joints - began).max() > 3)
    arm.hold()
    arm.hold()
    until(lambda: robot.last("MoveJointsVel") == [0.0] * 6, "the velocity of zero")
    assert not robot.moving
    stream(arm, "joints", goal, np.full(6, 0.7), lambda: np.abs(robot.joints - began).max() > 6)
    arm.close()
    assert robot.cleared and not robot.moving  # confirmed before the connection ended
    arm.close()
    arm.hold()
    assert robot.activated and robot.count("DeactivateRobot") == 0
    until(lambda: not robot.controlled, "the connection to end")
    for call in (arm.read, lambda: arm.move_joints(goal), lambda: arm.move_pose(goal)):
        with pytest.raises(DriverError, match="not open"):
            call()


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_an_error_is_reported_with_its_code_and_reset_once(
    switched_on: Any, driver: Any, until: Any, firmware: str
) -> None:
    robot = switched_on(firmware)
    arm = driver(robot)
    arm.open()

    def fault() -> RobotFault | None:
        try:
            arm.read()
        except RobotFault as found:
            return found
        return None

    robot.fail(3041, "Collision")
    until(fault, "the error")
    found = fault()
    assert found is not None and found.condition == "error"
    assert "[3041] Collision" in str(found)
    told = len(robot.told)
    with pytest.raises(RobotFault, match="3041"):
        arm.move_joints(np.array(HOME) + 1)
    arm.hold()
    assert len(robot.told) == told  # a robot in error is told nothing
    arm.close()
    arm.open()
    assert robot.error is None and robot.count("ResetError") == 1
    arm.read()
    robot.fail(3041, "Collision")
    until(fault, "the error again")
    for _ in range(2):
        arm.close()
        with pytest.raises(RobotFault, match="see to the cause") as again:
            arm.open()
        assert again.value.condition == "error"
    assert robot.count("ResetError") == 1
    robot.error = None  # somebody has seen to it
    arm.open()
    arm.read()


def test_an_error_that_cannot_be_reset_stays_an_error(switched_on: Any, driver: Any) -> None:
    robot = switched_on("12.1.0")
    robot.fail(3006, "Drive communication")
    arm = driver(robot, connect_s=0.5)
    with pytest.raises(RobotFault, match="3006") as found:
        arm.open()
    assert found.value.condition == "error"


@pytest.mark.parametrize("firmware", ["8.4.9", "12.1.0"])
@pytest.mark.parametrize("code", [ESTOP, PSTOP2])
def test_a_safety_stop_is_reported_and_never_reset(
    switched_on: Any, driver: Any, until: Any, code: int, firmware: str
) -> None:
    robot = switched_on(firmware)
    arm = driver(robot)
    arm.open()
    stopped: list[RobotFault] = []

    def seen() -> bool:
        try:
            arm.read()
        except RobotFault as found:
            stopped.append(found)
        return bool(stopped)

    robot.set_stop(code, 1)
    until(seen, "the stop")
    assert stopped[0].condition == "emergency_stop"
    told = len(robot.told)
    arm.hold()
    with pytest.raises(RobotFault):
        arm.move_joints(np.array(HOME) + 1)
    assert len(robot.told) == told
    robot.told.clear()
    for state in (1, 2):
        robot.set_stop(code, state)
        arm.close()
        with pytest.raises(RobotFault, match="stop") as found:
            arm.open()
        assert found.value.condition == "emergency_stop"
    changing = ("ResetError", "ActivateRobot", "Home", "ResumeMotion", "MoveJointsVel")
    assert not any(robot.count(name) for name in changing)
    robot.set_stop(code, 0)
    arm.open()
    arm.read()
    assert robot.homed and not robot.paused


def test_the_stop_that_a_lost_connection_left_behind_is_cleared(
    switched_on: Any, driver: Any
) -> None:
    robot = switched_on()
    robot.set_stop(CONNECTION_DROPPED, 2)
    robot.activated = robot.homed = True
    arm = driver(robot)
    arm.open()
    arm.read()
    assert robot.stops[CONNECTION_DROPPED] == 0


def test_a_robot_that_something_else_paused_is_told_nothing(
    switched_on: Any, driver: Any, until: Any
) -> None:
    robot = switched_on()
    arm = driver(robot)
    arm.open()
    robot.pause()
    refused: list[str] = []

    def seen() -> bool:
        try:
            arm.read()
        except RobotFault as found:
            refused.append(str(found))
        return bool(refused)

    until(seen, "the pause")
    with pytest.raises(RobotFault, match="paused"):
        arm.move_joints(np.array(HOME) + 1)
    arm.hold()
    assert not robot._queue


@pytest.mark.parametrize(
    ("how", "firmware"), [("mute", "12.1.0"), ("cut", "8.4.9"), ("off", "12.1.0")]
)
def test_silence_is_an_error_and_never_an_old_position(
    switched_on: Any, driver: Any, until: Any, how: str, firmware: str
) -> None:
    robot = switched_on(firmware)
    arm = driver(robot, connect_s=1.0)
    arm.open()
    if how == "mute":
        robot.mute = True
    elif how == "cut":
        robot.cut()
    else:
        robot.stop()
    failed: list[DriverError] = []

    def lost() -> bool:
        try:
            assert time.time() - arm.read().sampled_at < 1.0
        except DriverError as error:
            failed.append(error)
        return bool(failed)

    until(lost, "the loss to be noticed")
    assert not isinstance(failed[0], RobotFault)
    arm.close()
    if how == "off":
        with pytest.raises(DriverError, match="does not answer"):
            arm.open()
        robot.start()
        # Whoever took its power may be at the arm: it is said once, so that leave can be asked for.
        with pytest.raises(RobotFault, match="switched off meanwhile"):
            arm.open()
        assert not robot.activated
    robot.mute = False
    arm.open()
    arm.read()


def test_without_moves_it_is_only_listened_to(switched_on: Any, driver: Any) -> None:
    robot = switched_on()
    arm = driver(robot, moves=False)
    arm.open()
    assert arm.read().joints_deg == pytest.approx(HOME, abs=1e-4)
    with pytest.raises(DriverError, match="--accept-actions"):
        arm.move_joints(np.array(HOME))
    arm.hold()
    arm.close()
    assert not robot.activated
    changing = ("ResetError", "ActivateRobot", "Home", "ClearMotion", "ResumeMotion", "SetTrf")
    assert not any(robot.count(name) for name in changing)


def test_home_false_refuses_a_robot_that_is_not_homed(switched_on: Any, driver: Any) -> None:
    robot = switched_on()
    with pytest.raises(DriverError, match="not homed"):
        driver(robot, home=False).open()
    assert robot.count("Home") == 0


def test_an_emergency_stop_ends_the_homing(switched_on: Any, driver: Any, until: Any) -> None:
    robot = switched_on()
    robot.homing_s = 60.0
    arm = driver(robot)
    failed: list[BaseException] = []

    def opening() -> None:
        try:
            arm.open()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=opening)
    thread.start()
    until(lambda: robot.count("Home"), "homing")
    robot.set_stop(ESTOP, 1)
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(failed[0], RobotFault) and failed[0].condition == "emergency_stop"


def test_a_robot_that_another_program_controls_is_left_to_it(switched_on: Any, driver: Any) -> None:
    robot = switched_on()
    first, second = driver(robot), driver(robot)
    first.open()
    with pytest.raises(DriverError, match="another program"):
        second.open()
    first.read()


def test_another_arm_is_not_taken_for_a_meca500(
    switched_on: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot = switched_on()
    monkeypatch.setattr(robot, "_welcome", lambda: "[3000][Connected to MCA250 R1 v12.1.0]")
    with pytest.raises(DriverError, match="MCA250"):
        driver(robot).open()
    assert robot.count("ActivateRobot") == 0


def test_what_hangs_up_is_no_meca500_or_busy(driver: Any) -> None:
    somebody = FakeMeca500(host=own_address())  # in whose place something else listens
    with socket.socket() as listening:
        listening.bind((somebody.host, CONTROL_PORT))
        listening.listen()

        def hang_up() -> None:
            listening.accept()[0].close()

        hanging_up = threading.Thread(target=hang_up)
        hanging_up.start()
        with pytest.raises(DriverError, match="it is no Meca500, or busy") as found:
            driver(somebody).open()
        hanging_up.join(20)
    assert somebody.host in str(found.value) and "attribute" not in str(found.value)


def test_nobody_there_is_one_line(driver: Any) -> None:
    nobody = FakeMeca500(host=own_address())  # never switched on
    with pytest.raises(DriverError) as found:
        driver(nobody, connect_s=0.3).open()
    assert "\n" not in str(found.value) and nobody.host in str(found.value)
