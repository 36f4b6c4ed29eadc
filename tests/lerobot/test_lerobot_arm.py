"""LeRobot's own SO-101 class over Feetech's own SDK, against servos that speak their bytes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")
pytest.importorskip("scservo_sdk", reason="Feetech's SDK is not installed: make test-lerobot")

import zmq

from common.clock import wall
from common.program import OptionError, ProgramError
from common.wire import Action, RobotState, decode_robot, encode_action
from senders import registry, robots
from senders.drivers import DriverError, RobotFault
from senders.robots.lerobot_arm import LeRobotArm
from tests.lerobot.feetech import GOAL, TORQUE, Bus
from tests.support import ROOT, Child, free_ports, wait_until


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    made = Bus()
    made.calibrate(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make(bus: Bus, tmp_path: Path) -> Iterator[Callable[..., LeRobotArm]]:
    """`make(key=value)`: the driver as the sender makes it, from text."""
    arms: list[LeRobotArm] = []

    def begin(**options: str) -> LeRobotArm:
        given = {"port": bus.path, "id": "arm", "calibration_dir": str(tmp_path)} | options
        texts = [f"{key}={value}" for key, value in given.items()]
        arms.append(registry.make(robots.DRIVERS, "lerobot", {}, texts))
        return arms[-1]

    yield begin
    for arm in arms:
        arm.close()


def expected(bus: Bus) -> np.ndarray:
    return np.array([*(bus.degrees(n) for n in range(1, 6)), bus.percent()])


def test_the_arm_is_read_in_degrees_and_percent(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    arm = make()
    before = wall()
    arm.open()
    reading = arm.read()
    assert reading.joints_deg == pytest.approx(expected(bus), abs=0.1)
    assert reading.joints_deg[:3] == pytest.approx([3.5, 7.0, 10.5], abs=0.2)
    assert reading.pose.tolist() == [0.0] * 6
    assert before <= reading.sampled_at <= wall()


def test_opening_leaves_the_arm_where_it_stands(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    """The servos' old targets are far off: torque must not come on before they are replaced."""
    stood = expected(bus)
    arm = make()
    arm.open()
    assert bus.torque == [1] * 6
    arm.read()
    arm.read()
    assert expected(bus) == pytest.approx(stood, abs=0.2)
    first_goal = next(k for k, (_, address, _) in enumerate(bus.written) if address == GOAL)
    first_torque = bus.written.index(next(w for w in bus.written if w[1:] == (TORQUE, b"\x01")))
    assert first_goal < first_torque


def test_moving_holding_and_letting_go(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    arm = make()
    arm.open()
    start = arm.read().joints_deg
    target = start + np.array([20.0, -15.0, 10.0, 0.0, 30.0, 25.0])
    arm.move_joints(target)
    wait_until(lambda: np.allclose(arm.read().joints_deg, target, atol=0.15), "the target")
    for servo in bus.servos.values():
        servo.sag = 5.0
    away = target + np.array([-60.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    arm.move_joints(away)
    wait_until(lambda: arm.read().joints_deg[0] < target[0] - 5.0, "the arm to be under way")
    arm.hold()
    held = arm.read().joints_deg
    goals = [servo.word(GOAL) for servo in bus.servos.values()]
    assert away[0] + 10.0 < held[0] < target[0] - 5.0
    for _ in range(20):
        arm.hold()
        arm.read()
    assert [servo.word(GOAL) for servo in bus.servos.values()] == goals, "the arm would sink"
    assert arm.read().joints_deg == pytest.approx(held, abs=2.0)
    arm.close()
    arm.close()
    assert bus.torque == [1] * 6, "the arm would fall"


def test_limp_at_end_switches_the_motors_off(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    arm = make(limp_at_end="true")
    arm.open()
    assert bus.torque == [1] * 6
    arm.close()
    assert bus.torque == [0] * 6


def test_torque_false_reads_an_arm_that_is_moved_by_hand(
    bus: Bus, make: Callable[..., LeRobotArm]
) -> None:
    arm = make(torque="false")
    arm.open()
    assert bus.torque == [0] * 6
    bus.servos[1].position += 300
    assert arm.read().joints_deg == pytest.approx(expected(bus), abs=0.1)
    arm.hold()
    with pytest.raises(DriverError, match="torque=false"):
        arm.move_joints(np.zeros(6))
    assert bus.torque == [0] * 6


def test_poses_and_bad_targets_are_refused(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    arm = make()
    arm.open()
    goals = [servo.word(GOAL) for servo in bus.servos.values()]
    with pytest.raises(DriverError, match="not to poses"):
        arm.move_pose(np.zeros(6))
    with pytest.raises(DriverError, match="not a target"):
        arm.move_joints(np.full(6, np.nan))
    assert [servo.word(GOAL) for servo in bus.servos.values()] == goals


def test_limits_are_the_calibrated_ranges(make: Callable[..., LeRobotArm]) -> None:
    limits = make().limits
    half = (3340 - 760) / 2 * 360 / 4095
    assert limits.joint_min_deg[0] == pytest.approx(-half)
    assert limits.joint_max_deg[0] == pytest.approx(half)
    assert limits.joint_max_deg[4] == pytest.approx(180.0)
    assert (limits.joint_min_deg[5], limits.joint_max_deg[5]) == (0.0, 100.0)
    half_speed = limits.scaled(0.5)
    assert half_speed.joint_speed_deg_s == (60.0,) * 6
    assert half_speed.joint_max_deg == limits.joint_max_deg
    given = make(joint_min="-1,-2,-3,-4,-5,6", joint_max="1,2,3,4,5,7", joint_speed="30").limits
    assert given.joint_min_deg == (-1, -2, -3, -4, -5, 6)
    assert given.joint_speed_deg_s == (30.0,) * 6


def test_max_relative_target_is_leroobots_own_limit(
    bus: Bus, make: Callable[..., LeRobotArm], caplog: pytest.LogCaptureFixture
) -> None:
    arm = make(max_relative_target="5")
    arm.open()
    at = arm.read().joints_deg
    stood = bus.servos[1].position
    for _ in range(3):
        bus.servos[1].position = stood
        arm.move_joints(at + np.array([50.0, 0, 0, 0, 0, 0]))
    assert bus.servos[1].word(GOAL) - stood == pytest.approx(5.0 * 4095 / 360, abs=15)
    said = [r for r in caplog.records if "Relative goal position" in r.getMessage()]
    assert len(said) == 0, "no line for every command"


def test_joints_are_picked_and_ordered_by_name(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    arm = make(joints="gripper,elbow_flex")
    arm.open()
    wanted = [bus.percent(), bus.degrees(3), 0, 0, 0, 0]
    assert arm.read().joints_deg == pytest.approx(wanted, abs=0.1)
    others = [bus.servos[n].word(GOAL) for n in (1, 2, 4, 5)]
    arm.move_joints(np.array([10.0, -20.0, 99.0, 99.0, 99.0, 99.0]))
    wait_until(lambda: abs(arm.read().joints_deg[1] + 20.0) < 0.2, "the elbow")
    assert [bus.servos[n].word(GOAL) for n in (1, 2, 4, 5)] == others
    assert arm.limits.joint_max_deg[2:] == (0.0,) * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"joints": "gripper,elbow"}, "joints= must name each once, of shoulder_pan"),
        ({"joints": "gripper,gripper"}, "joints= must name each once"),
        ({"joint_min": "1,2"}, "need 6 values each"),
        ({"joint_min": "0,0,0,0,0,0", "joint_max": "0,1,1,1,1,1"}, "below joint_max"),
        ({"joint_speed": "30,nan,30,30,30,30"}, "must be finite"),
        ({"joint_speed": "inf"}, "must be finite"),
        ({"joint_max": "inf,1,1,1,1,1"}, "must be finite"),
        ({"max_relative_target": "nan"}, "max_relative_target must be a finite number"),
        ({"type": "so101_folower"}, "no robot 'so101_folower' here; type= is one of .*so101_fol"),
        ({"options": '{"colour": 1}'}, "`colour`"),
        ({"options": '{"port": "x"}'}, "not to be given in options: port"),
        ({"options": "[1]"}, "must be a JSON map"),
        ({"id": "other"}, "no calibration .*other.json: run lerobot-calibrate .*--robot.id=other"),
        ({"type": "bi_so_follower"}, "bi_so_follower"),
    ],
)
def test_options_that_cannot_be_used_end_in_one_line(
    make: Callable[..., LeRobotArm], options: dict[str, str], message: str
) -> None:
    with pytest.raises((ProgramError, OptionError), match=message) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_a_robot_of_more_than_six_joints_needs_six_picked(
    bus: Bus, make: Callable[..., LeRobotArm], tmp_path: Path
) -> None:
    """LeRobot's two SO-101 in one, twelve joints: of those, six can be driven."""
    bus.calibrate(tmp_path, "arm_left")
    bus.calibrate(tmp_path, "arm_right")
    options = '{"left_arm_config": {"port": "%s"}, "right_arm_config": {"port": "/dev/none"}}'
    two = {"type": "bi_so_follower", "port": "", "options": options % bus.path}
    with pytest.raises(ProgramError, match="12 joints, and the wire has 6: pick them with joints="):
        make(**two)
    with pytest.raises(ProgramError, match="give joint_min=… and joint_max=…"):
        make(**two, joints="left_gripper,right_gripper")


def test_other_calibrations_in_the_servos_are_not_used(
    bus: Bus, make: Callable[..., LeRobotArm]
) -> None:
    arm = make()
    bus.servos[3].put(31, 55)
    with pytest.raises(DriverError, match=r"do not hold the calibration .* run lerobot-calibrate"):
        arm.open()
    assert bus.torque == [0] * 6


def test_a_servo_that_is_missing_is_named(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    arm = make()
    bus.silent = {3, 6}
    with pytest.raises(DriverError, match=r"no answer from servo 3 \(elbow_flex\), 6 \(gripper\)"):
        arm.open()
    bus.silent = set()
    arm.open()
    arm.read()
    bus.silent = {2}
    with pytest.raises(DriverError, match="Present_Position"):
        arm.read()
    arm.close()
    bus.silent = set()
    arm.open()
    assert arm.read().joints_deg == pytest.approx(expected(bus), abs=0.1)


def test_single_corrupt_replies_are_asked_again(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    arm = make()
    arm.open()
    bus.corrupt = 1
    assert arm.read().joints_deg == pytest.approx(expected(bus), abs=0.1)
    bus.corrupt = 10_000
    with pytest.raises(DriverError):
        arm.read()


def test_a_port_that_goes_away_is_a_lost_robot(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    arm = make()
    arm.open()
    bus.close()
    for call in (arm.read, lambda: arm.move_joints(np.zeros(6)), arm.hold):
        with pytest.raises(DriverError):
            call()
    arm.close()
    with pytest.raises(DriverError, match="not connect"):
        arm.open()


def test_a_port_that_is_not_there(make: Callable[..., LeRobotArm]) -> None:
    with pytest.raises(DriverError, match="/dev/none"):
        make(port="/dev/none").open()


def test_an_error_of_a_servo_is_a_fault(bus: Bus, make: Callable[..., LeRobotArm]) -> None:
    arm = make()
    arm.open()
    arm._faults._next = 0.0  # type: ignore[attr-defined]  # once a second; now
    bus.servos[6].memory[65] = bus.error_byte[6] = 32
    with pytest.raises(RobotFault, match="gripper: overload") as caught:
        arm.read()
    assert caught.value.condition == "error"
    arm.close()
    with pytest.raises(RobotFault, match="gripper: overload"):
        arm.open()
    bus.servos[6].memory[65] = 0
    bus.error_byte.clear()
    arm.open()
    arm.read()


def test_a_bus_that_never_stops_talking_does_not_hang_the_sender(
    bus: Bus, make: Callable[..., LeRobotArm]
) -> None:
    """Whole packets of a stranger without end: Feetech's SDK waits for the right one for ever."""
    arm = make()
    arm.open()
    bus.silent, bus.babbles = set(bus.servos), True
    with pytest.raises(DriverError, match=r"no end to read|no status packet"):
        arm.read()
    arm.close()
    bus.silent, bus.babbles = set(), False
    wait_until(lambda: opens(arm), "the arm to come back")
    assert arm.read().joints_deg == pytest.approx(expected(bus), abs=0.1)


def opens(arm: LeRobotArm) -> bool:
    try:
        arm.open()
    except DriverError:
        return False
    return True


def test_a_call_that_hangs_is_given_up(
    bus: Bus, make: Callable[..., LeRobotArm], monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = make()
    arm.open()
    stuck = threading.Event()
    monkeypatch.setattr(arm._robot, "get_observation", stuck.wait)
    with pytest.raises(DriverError, match="no end to read"):
        arm.read()
    with pytest.raises(DriverError):
        arm.move_joints(np.zeros(6))
    arm.close()
    stuck.set()
    arm.open()
    arm.read()


class Receiver:
    """A receiver's end of both sockets."""

    def __init__(self, robot_port: int, action_port: int) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.states_socket = self.context.socket(zmq.SUB)
        self.states_socket.subscribe(b"")
        self.states_socket.connect(f"tcp://127.0.0.1:{robot_port}")
        self.actions = self.context.socket(zmq.PUB)
        self.actions.bind(f"tcp://127.0.0.1:{action_port}")
        self.states: list[RobotState] = []
        self.seq = 0

    def drain(self) -> int:
        while self.states_socket.poll(0):
            found = decode_robot(self.states_socket.recv_multipart())
            if isinstance(found, RobotState):
                self.states.append(found)
        return len(self.states)

    def ask(self, joints: list[float]) -> None:
        now = wall()
        rows = np.array([[*joints, 0.0]], np.float32)
        action = Action(self.seq, now, now, 0, 0.0, 0.1, "joint_position", rows)
        self.actions.send_multipart(encode_action(action))
        self.seq += 1

    def close(self) -> None:
        self.context.destroy(linger=0)


def test_the_sender_program_publishes_and_moves_the_arm(
    bus: Bus, tmp_path: Path, program: Callable[..., Child]
) -> None:
    robot_port, action_port = free_ports(2)
    receiver = Receiver(robot_port, action_port)
    options = (f"port={bus.path}", "id=arm", f"calibration_dir={tmp_path}")
    sender = program(
        "senders/robot_sender.py", "--robot", "on", "--driver", "lerobot",
        "--driver-options", *options, "--port", str(robot_port), "--accept-actions",
        "--action-port", str(action_port), "--rate-hz", "50", "--output-dir", str(tmp_path / "log"),
    )  # fmt: skip
    try:
        sender.wait_for("the robot is connected", 90)
        wait_until(lambda: receiver.drain() > 20, "states")
        assert receiver.states[-1].joints == pytest.approx(expected(bus), abs=0.2)
        assert receiver.states[-1].pose == (0.0,) * 6
        start = np.array(receiver.states[-1].joints)
        target = start + np.array([10.0, -8.0, 6.0, 0.0, 5.0, 20.0])

        def there() -> bool:
            receiver.ask(target.tolist())
            receiver.drain()
            threading.Event().wait(0.05)
            return bool(np.allclose(receiver.states[-1].joints, target, atol=0.3))

        wait_until(there, "the arm at its target")
        stamps = np.array([state.origin_timestamp for state in receiver.states])
        print(f"states {len(stamps)}, {(len(stamps) - 1) / np.ptp(stamps):.1f} Hz of 50")
        assert (np.diff(stamps) > 0).all()
        before = receiver.drain()
        bus.silent = {1}
        sender.wait_for("cannot read", 20)
        receiver.drain()
        count = len(receiver.states)
        assert count >= before
        bus.silent = set()
        wait_until(lambda: receiver.drain() > count + 10, "states again")
        assert sender.stop() == 0
        assert bus.torque == [1] * 6
    finally:
        receiver.close()


def test_the_sender_says_what_to_do_without_a_calibration(tmp_path: Path) -> None:
    command = [sys.executable, "senders/robot_sender.py", "--robot", "on", "--driver", "lerobot"]
    command += ["--driver-options", "port=/dev/none", "id=new", f"calibration_dir={tmp_path}"]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.strip().splitlines()
    assert "run lerobot-calibrate --robot.type=so101_follower --robot.port=/dev/none" in line
