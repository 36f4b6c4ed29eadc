"""The robot sender as a process against plain sockets, and its loop with a robot that fails."""

from __future__ import annotations

import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from common.clock import Tick, wall
from common.wire import Action, encode_action
from senders.drivers import DriverError, RecordingOver, RobotFault, RobotReading
from senders.executor import ActionExecutor
from senders.limits import MotionLimits
from senders.robot_log import COLUMNS, RobotLog
from senders.robot_loop import RobotSender
from senders.robot_sender import RobotOptions, _limits

STATE = struct.Struct("<ddf12f")


class Listener:
    """What a receiver's plain SUB socket gets."""

    def __init__(self, context: zmq.Context[Any], port: int) -> None:
        self.socket = context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.subscribe(b"")
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self.states: list[tuple[float, ...]] = []
        self.statuses: list[dict[str, Any]] = []
        self.topics: list[bytes] = []

    def drain(self) -> None:
        while self.socket.poll(0):
            topic, payload = self.socket.recv_multipart()
            self.topics.append(topic)
            if topic == b"robot_state":
                assert len(payload) == 68
                self.states.append(STATE.unpack(payload))
            if topic == b"robot_status":
                self.statuses.append(msgpack.unpackb(payload))

    def has(self, count: int) -> Callable[[], bool]:
        def enough() -> bool:
            self.drain()
            return len(self.states) >= count

        return enough

    @property
    def joints(self) -> np.ndarray:
        return np.array(self.states[-1][3:9])


@pytest.fixture
def robot(start: Callable[..., Any], free_port: Callable[[], int], zmq_context: Any) -> Any:
    """`robot(*options)`: a sender of a made-up robot, and a listener to it."""

    def begin(*options: object) -> tuple[Any, Listener, int]:
        port = free_port()
        program = start(
            "robot_sender", "--robot", "on", "--driver", "synthetic", "--port", port, *options
        )
        return program, Listener(zmq_context, port), port

    return begin


@pytest.fixture
def receiver(free_port: Callable[[], int], zmq_context: Any, until: Any) -> Iterator[Any]:
    """A receiver's PUB socket for actions: `publish(target=…)` goes to its `port`."""

    class Receiver:
        port = free_port()
        seq = 0

        def __init__(self) -> None:
            self.bind()

        def bind(self) -> None:
            self.socket = zmq_context.socket(zmq.PUB)
            until(self.bound, "the port to be free")

        def bound(self) -> bool:
            try:
                self.socket.bind(f"tcp://127.0.0.1:{self.port}")
            except zmq.ZMQError:  # a socket is closed some time after close() returns
                return False
            return True

        def restart(self) -> None:
            self.socket.close(0)
            self.seq = 0
            self.bind()

        def publish(self, target: np.ndarray, **given: Any) -> None:
            now = time.time()
            rows = np.tile(np.append(target, 0.0), (8, 1)).astype(np.float32)
            fields: dict[str, Any] = {"space": "joint_position", "actions": rows, **given}
            self.socket.send_multipart(
                encode_action(Action(self.seq, now, now - 0.1, 1, 0.1, 0.1, **fields))
            )
            self.seq += 1

    made = Receiver()
    yield made
    made.socket.close(0)


def test_states_come_100_times_a_second_in_the_wires_layout(robot: Any, until: Any) -> None:
    program, listener, _ = robot()
    until(listener.has(150), "150 states")
    assert program.stop() == 0
    origin = np.array([state[0] for state in listener.states])
    sent = np.array([state[1] for state in listener.states])
    assert np.median(np.diff(origin)) == pytest.approx(0.01, abs=0.002)
    assert len(origin) / (origin[-1] - origin[0]) == pytest.approx(100, rel=0.1)
    assert (sent >= origin).all() and abs(wall() - sent[-1]) < 20
    assert listener.states[-1][2] == 0.0
    assert listener.joints == pytest.approx([0, -10, 20, 0, 35, 0], abs=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_episode_and_exits_with_0(robot: Any, until: Any, number: int) -> None:
    program, listener, _ = robot()
    until(listener.has(5), "states")
    program.signal(number)
    assert program.ended() == 0, program.said
    until(lambda: listener.drain() or b"episode_end" in listener.topics, "episode_end")
    assert listener.topics[-1] == b"episode_end"
    assert "Traceback" not in program.said


def test_episode_end_comes_between_two_episodes_of_the_robot(robot: Any, until: Any) -> None:
    _, listener, _ = robot("--driver-options", "episode_s=0.5")
    until(lambda: listener.drain() or listener.topics.count(b"episode_end") >= 2, "two ends")
    first = listener.topics.index(b"episode_end")
    second = listener.topics.index(b"episode_end", first + 1)
    assert 20 <= second - first <= 60


def test_the_csv_holds_every_state_and_outlives_a_kill(
    robot: Any, until: Any, tmp_path: Path
) -> None:
    program, listener, _ = robot("--output-dir", "out")
    until(listener.has(220), "220 states")
    program.signal(signal.SIGKILL)
    program.ended()
    listener.drain()
    (path,) = (tmp_path / "out").glob("robot_state_*.csv")
    lines = path.read_text().splitlines()
    assert tuple(lines[0].split(",")) == COLUMNS
    rows = np.array([[float(v) for v in line.split(",")] for line in lines[1:]])
    assert rows.shape[1] == 15
    assert path.read_text().endswith("\n")
    last_sent = listener.states[-1][1]
    assert last_sent - rows[-1, 1] < 1.2
    received = {round(state[0], 6): state for state in listener.states}
    common = [row for row in rows if round(row[0], 6) in received]
    assert len(common) > 60
    for row in common:
        assert row[2:] == pytest.approx(received[round(row[0], 6)][2:], abs=1e-3)


def test_a_clean_stop_leaves_the_whole_csv(robot: Any, until: Any, tmp_path: Path) -> None:
    program, listener, _ = robot()
    until(listener.has(20), "states")
    assert program.stop() == 0
    listener.drain()
    (path,) = (tmp_path / "dataset" / "Robot_Data").glob("robot_state_*.csv")
    last = path.read_text().splitlines()[-1].split(",")
    assert float(last[0]) >= round(listener.states[-1][0], 6) - 1e-6


def test_a_killed_sender_is_heard_again_when_it_is_started_again(
    robot: Any, start: Any, until: Any
) -> None:
    program, listener, port = robot()
    until(listener.has(10), "states")
    program.signal(signal.SIGKILL)
    program.ended()
    listener.drain()
    before = len(listener.states)
    start("robot_sender", "--robot", "on", "--driver", "synthetic", "--port", port)
    until(listener.has(before + 10), "states of the second sender")


def test_actions_move_the_robot_only_when_they_are_accepted(
    robot: Any, receiver: Any, until: Any
) -> None:
    _, listener, _ = robot("--action-port", receiver.port)
    until(listener.has(10), "states")
    home = listener.joints
    for _ in range(5):
        receiver.publish(home + 5)
        until(listener.has(len(listener.states) + 10), "states")
    assert listener.joints == pytest.approx(home, abs=1e-6)


def test_the_robot_follows_holds_without_actions_and_follows_a_new_receiver(
    robot: Any, receiver: Any, until: Any
) -> None:
    program, listener, _ = robot("--accept-actions", "--action-port", receiver.port)
    until(listener.has(10), "states")
    home = listener.joints

    def reaches(target: np.ndarray) -> Callable[[], bool]:
        def there() -> bool:
            receiver.publish(target)
            listener.has(len(listener.states) + 5)()
            time.sleep(0.05)
            return bool(np.abs(listener.joints - target).max() < 0.01)

        return there

    until(reaches(home + 6), "the robot at its target")
    # A far target, then silence: it must stop on the way, within three periods and a bit.
    start_at, heard = listener.states[-1][0], len(listener.states)
    receiver.publish(home + np.array([90.0, 0, 0, 0, 0, 0]), hold=False)
    until(lambda: "no action for 0.30 s" in program.said, "the watchdog")
    until(listener.has(heard + 80), "states after the hold")
    tail = np.array(listener.states[-10:])[:, 3]
    assert np.ptp(tail) == 0.0
    assert home[0] + 6 < tail[-1] < home[0] + 6 + 75 * 0.5
    assert listener.states[-1][0] > start_at
    receiver.restart()
    until(reaches(home), "the robot at home, told by the second receiver")
    assert program.stop() == 0


def test_malformed_actions_move_nothing_and_stop_nothing(
    robot: Any, receiver: Any, until: Any
) -> None:
    program, listener, _ = robot("--accept-actions", "--action-port", receiver.port)
    until(listener.has(10), "states")
    home = listener.joints

    def send_rubbish() -> bool:
        receiver.socket.send_multipart([b"action", b"\xff" * 40])
        receiver.socket.send_multipart([b"action"])
        receiver.publish(home, actions=np.zeros((8, 5), np.float32))
        listener.has(len(listener.states) + 5)()
        time.sleep(0.05)
        return "action: columns" in program.said and "action: body" in program.said

    until(send_rubbish, "the refusals")
    until(listener.has(len(listener.states) + 10), "states")
    assert listener.joints == pytest.approx(home, abs=1e-6)
    assert program.stop() == 0


def test_off_uses_no_robot_and_publishes_nothing(start: Any, free_port: Any, until: Any) -> None:
    port = free_port()
    program = start("robot_sender", "--port", port)
    until(lambda: "--robot off" in program.said, "the line that says so")
    with pytest.raises(ConnectionRefusedError):
        import socket

        socket.create_connection(("127.0.0.1", port), 1.0)
    assert program.stop() == 0


def test_a_port_in_use_is_one_line_and_exit_1(call: Any, free_port: Any, zmq_context: Any) -> None:
    port = free_port()
    other = zmq_context.socket(zmq.PUB)
    other.bind(f"tcp://*:{port}")
    done = call("robot_sender", "--robot", "on", "--driver", "synthetic", "--port", port)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and f"port {port} is in use" in done.stderr


# --- the loop with a robot that fails ------------------------------------------------------------


class FailingRobot:
    """A robot of which reads fail while `broken` is set."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken = threading.Event()
        self.sick = threading.Event()
        self.crash = threading.Event()
        self.fault: DriverError | None = None
        self.episode = 0
        self.joints = np.array([0.0, -10.0, 20.0, 0.0, 35.0, 0.0])

    def open(self) -> None:
        self.calls.append("open")
        if self.broken.is_set():
            raise DriverError("it is off")

    def read(self) -> RobotReading:
        if self.crash.is_set():
            raise ZeroDivisionError
        if self.fault is not None:
            raise self.fault
        if self.broken.is_set():
            raise DriverError("no answer")
        joints = self.joints + (np.nan if self.sick.is_set() else 0.0)
        return RobotReading(wall(), joints, np.zeros(6), episode=self.episode)

    def move_joints(self, joints_deg: np.ndarray) -> None:
        self.calls.append("move")

    def move_pose(self, pose: np.ndarray) -> None:
        raise DriverError("it cannot")

    def hold(self) -> None:
        self.calls.append("hold")

    def close(self) -> None:
        self.calls.append("close")


class Refused(list[str]):
    """The reasons that actions were refused for."""

    @property
    def total(self) -> int:
        return len(self)


class Actions:
    """Stands for the stream of actions."""

    where = "nowhere:1"

    def __init__(self) -> None:
        self.waiting: list[Action] = []
        self.refused = Refused()

    def poll(self) -> list[tuple[Action, float]]:
        taken, self.waiting = self.waiting, []
        return [(action, time.monotonic()) for action in taken]

    def refuse(self, reason: str) -> None:
        self.refused.append(reason)


@pytest.fixture
def loop(zmq_context: Any, tmp_path: Path) -> Iterator[Any]:
    """`loop(robot, motion)`: the sender's loop in a thread; gives listener, thread and stop."""
    stop, ended = threading.Event(), []

    def begin(
        robot: Any, motion: Any = None, resumed: threading.Event | None = None
    ) -> tuple[Listener, threading.Thread, Any]:
        publisher = zmq_context.socket(zmq.PUB)
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        log = RobotLog(tmp_path)
        sender = RobotSender(robot, publisher, log, 100.0, motion, resumed)

        def run() -> None:
            try:
                sender.run(stop)
            except ZeroDivisionError:
                pass
            finally:
                log.close()
                publisher.close(1000)

        thread = threading.Thread(target=run)
        thread.start()
        ended.append(thread)
        return Listener(zmq_context, port), thread, stop

    yield begin
    stop.set()
    for thread in ended:
        thread.join(10)


@pytest.mark.parametrize("how", ["broken", "sick"])
def test_a_robot_that_fails_is_not_published_and_comes_back(
    loop: Any, until: Any, how: str
) -> None:
    robot = FailingRobot()
    listener, _, _ = loop(robot)
    until(listener.has(10), "states")
    trouble: threading.Event = getattr(robot, how)
    trouble.set()
    until(lambda: robot.calls.count("open") >= 3, "attempts to open it again")
    listener.drain()
    broken_from = len(listener.states)
    assert broken_from < 10_000 and robot.calls.count("close") >= 2
    time.sleep(0.1)
    listener.drain()
    assert len(listener.states) == broken_from
    trouble.clear()
    until(listener.has(broken_from + 10), "states again")
    assert b"episode_end" not in listener.topics


@pytest.mark.parametrize("crash", [False, True])
def test_a_robot_that_is_moved_is_held_then_closed_at_the_end(
    loop: Any, until: Any, crash: bool
) -> None:
    robot, actions = FailingRobot(), Actions()
    executor = ActionExecutor(MotionLimits.of_arm(), 100.0, 10.0)
    listener, thread, stop = loop(robot, (actions, executor))
    until(listener.has(5), "states")
    now = time.time()
    rows = np.tile(robot.joints, (8, 1)).astype(np.float32)
    actions.waiting.append(Action(0, now, now, 1, 0.1, 0.1, "joint_position", rows))
    until(lambda: "move" in robot.calls, "motion")
    (robot.crash if crash else stop).set()
    thread.join(10)
    assert robot.calls[-2:] == ["hold", "close"]


def test_a_refused_pose_puts_the_robot_on_hold(loop: Any, until: Any) -> None:
    robot, actions = FailingRobot(), Actions()
    executor = ActionExecutor(MotionLimits.of_arm(), 100.0, 10.0)
    listener, _, _ = loop(robot, (actions, executor))
    until(listener.has(5), "states")
    now = time.time()
    rows = np.zeros((8, 6), np.float32)
    actions.waiting.append(Action(0, now, now, 1, 0.1, 0.1, "pose_delta", rows))
    until(lambda: "hold" in robot.calls, "the hold")
    assert "the robot refused" in executor.holding
    before = len(listener.states)
    until(listener.has(before + 5), "states all the same")
    assert robot.calls.count("open") == 1
    assert not actions.refused


# --- what is said of the robot's condition -------------------------------------------------------


def conditions(listener: Listener) -> list[str]:
    listener.drain()
    return [status["condition"] for status in listener.statuses]


def heard(listener: Listener, condition: str) -> Callable[[], bool]:
    return lambda: conditions(listener)[-1:] == [condition]


@pytest.mark.parametrize(
    ("fault", "condition"),
    [
        (RobotFault("emergency_stop", "it was pressed"), "emergency_stop"),
        (RobotFault("error", "[3041] collision"), "error"),
        (DriverError("no answer"), "lost"),
    ],
)
def test_a_condition_is_told_at_its_change_and_every_second(
    loop: Any, until: Any, fault: DriverError, condition: str
) -> None:
    robot = FailingRobot()
    listener, _, _ = loop(robot)
    until(listener.has(10), "states")
    until(heard(listener, "ok"), "ok")
    first = len(listener.statuses)
    robot.fault = fault
    until(heard(listener, condition), condition)
    topics = len(listener.topics)
    until(lambda: conditions(listener)[first:].count(condition) >= 2, "it told again")
    assert listener.statuses[-1]["detail"] == str(fault)
    assert abs(listener.statuses[-1]["timestamp"] - wall()) < 20
    assert set(listener.topics[topics:]) == {b"robot_status"}  # and no state meanwhile
    robot.fault = None
    until(heard(listener, "ok"), "ok again")
    assert listener.statuses[-1]["detail"] == ""
    until(listener.has(len(listener.states) + 5), "states again")
    # ok comes before the first state, not after it.
    ok = max(k for k, topic in enumerate(listener.topics[topics:]) if topic == b"robot_status")
    assert b"robot_state" in listener.topics[topics:][ok:]


def test_a_robot_that_takes_long_to_open_delays_no_status_and_no_stop(
    loop: Any, until: Any
) -> None:
    class Slow(FailingRobot):
        let = threading.Event()

        def open(self) -> None:
            super().open()
            self.let.wait(30)

    robot = Slow()
    listener, thread, stop = loop(robot)
    until(lambda: conditions(listener).count("lost") >= 2, "two statuses")
    assert robot.calls == ["open"] and not listener.states
    robot.let.set()
    until(listener.has(5), "states")
    assert robot.calls == ["open"]
    stop.set()
    thread.join(10)
    assert robot.calls == ["open", "close"]


def test_a_stop_while_the_robot_is_opened_leaves_it_to_that(loop: Any, until: Any) -> None:
    class Stuck(FailingRobot):
        let = threading.Event()

        def open(self) -> None:
            super().open()
            self.let.wait(30)

    robot = Stuck()
    _, thread, stop = loop(robot)
    until(lambda: robot.calls, "open")
    stop.set()
    thread.join(15)
    assert not thread.is_alive()
    assert robot.calls == ["open"]  # no two calls at once
    robot.let.set()


@pytest.mark.parametrize("condition", ["emergency_stop", "error"])
def test_after_a_fault_only_fresh_actions_move_the_robot(
    loop: Any, until: Any, condition: Any
) -> None:
    robot, actions = FailingRobot(), Actions()
    executor = ActionExecutor(MotionLimits.of_arm(), 100.0, 10.0)
    listener, _, _ = loop(robot, (actions, executor))
    until(listener.has(5), "states")
    rows = np.tile(robot.joints, (8, 1)).astype(np.float32)

    def act(seq: int) -> None:
        now = time.time()
        # A minute to each row: the plan is far from over when the robot comes back.
        action = Action(seq, now, now, 1, 0.1, 9.0, "joint_position", rows)
        actions.waiting.append(action)

    act(0)
    until(lambda: "move" in robot.calls, "motion")
    robot.fault = RobotFault(condition, "stop")
    until(heard(listener, condition), condition)
    until(lambda: "close" in robot.calls, "the robot let go of")
    first_close = robot.calls.index("close")
    assert robot.calls[first_close - 1] == "hold"
    act(1)
    until(lambda: "no_state" in actions.refused, "the action refused")
    robot.fault = None
    before = len(listener.states)
    until(listener.has(before + 15), "states again")
    assert "move" not in robot.calls[first_close:]
    act(2)
    until(lambda: "move" in robot.calls[first_close:], "motion by a fresh action")


@pytest.mark.parametrize("condition", ["emergency_stop", "error"])
def test_a_stopped_robot_is_opened_again_only_when_somebody_says_so(
    loop: Any, until: Any, condition: Any
) -> None:
    robot, resumed = FailingRobot(), threading.Event()
    resumed.set()  # said before: for something else
    listener, _, _ = loop(robot, resumed=resumed)
    until(listener.has(5), "states")
    robot.fault = RobotFault(condition, "stop")
    until(heard(listener, condition), condition)
    until(lambda: "close" in robot.calls, "the robot let go of")
    robot.fault = None
    listener.drain()
    count = len(listener.statuses)
    until(
        lambda: listener.drain() or len(listener.statuses) >= count + 2,
        "it to be told twice more, a second apart",
    )
    assert robot.calls.count("open") == 1
    assert listener.statuses[-1]["condition"] == condition
    assert "type resume" in listener.statuses[-1]["detail"]
    resumed.set()
    before = len(listener.states)
    until(listener.has(before + 5), "states again")
    # A stop that lasts needs leave anew.
    robot.fault = RobotFault(condition, "stop")
    until(lambda: robot.calls.count("close") == 2, "the robot let go of again")
    resumed.set()
    until(lambda: robot.calls.count("close") == 3, "the same stop to be found again")
    until(lambda: not resumed.is_set(), "the leave to be used up")


def test_a_robot_that_is_lost_needs_no_leave(loop: Any, until: Any) -> None:
    robot = FailingRobot()
    listener, _, _ = loop(robot, resumed=threading.Event())
    until(listener.has(5), "states")
    robot.broken.set()
    until(lambda: "close" in robot.calls, "the robot let go of")
    robot.broken.clear()
    before = len(listener.states)
    until(listener.has(before + 5), "states again")


def test_what_was_seen_in_the_episode_before_does_not_move_the_robot(loop: Any, until: Any) -> None:
    robot, actions = FailingRobot(), Actions()
    listener, _, _ = loop(robot, (actions, ActionExecutor(MotionLimits.of_arm(), 100.0, 10.0)))
    until(listener.has(5), "states")
    rows = np.tile(robot.joints, (8, 1)).astype(np.float32)

    def act(seq: int, seen_at: float) -> None:
        actions.waiting.append(
            Action(seq, time.time(), seen_at, 1, 0.1, 9.0, "joint_position", rows)
        )

    seen_at = time.time()
    act(0, seen_at)
    until(lambda: "move" in robot.calls, "motion")
    robot.episode = 1
    until(lambda: listener.drain() or b"episode_end" in listener.topics, "episode_end")
    act(1, seen_at)
    until(lambda: "episode" in actions.refused, "the action refused")
    act(2, time.time())
    before = robot.calls.count("move")
    until(lambda: robot.calls.count("move") > before, "motion by what is seen now")
    assert actions.refused == ["episode"]


def test_a_publisher_that_fails_stops_nothing(tmp_path: Path, until: Any) -> None:
    class Failing:
        sent = 0

        def send_multipart(self, *_: Any) -> None:
            self.sent += 1
            raise zmq.ZMQError(zmq.ENOTSUP)

    robot, publisher, stop = FailingRobot(), Failing(), threading.Event()
    log = RobotLog(tmp_path)
    sender = RobotSender(robot, publisher, log, 100.0)  # type: ignore[arg-type]
    thread = threading.Thread(target=sender.run, args=(stop,))
    thread.start()
    until(lambda: publisher.sent > 20, "attempts to publish")
    stop.set()
    thread.join(10)
    log.close()
    assert not thread.is_alive() and robot.calls == ["open", "close"]


# --- a recording ---------------------------------------------------------------------------------


class Recording(FailingRobot):
    """Twenty readings, due at once; its end is the end of its ticks, or an exception."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.raises, self.left = raises, 20

    def ticks(self, stop: threading.Event) -> Iterator[Tick]:
        assert self.calls == ["open"]
        index = 0
        while self.left or self.raises:
            yield Tick(index, time.monotonic(), 0.0, 0)
            index += 1

    def read(self) -> RobotReading:
        if not self.left:
            raise RecordingOver
        self.left -= 1
        return RobotReading(wall(), self.joints, np.full(6, float(20 - self.left)))


@pytest.mark.parametrize("raises", [False, True])
def test_a_recording_is_played_whole_at_its_own_pace_and_ends_the_program(
    zmq_context: Any, tmp_path: Path, until: Any, raises: bool
) -> None:
    class Publisher:
        def __init__(self) -> None:
            self.sent: list[list[bytes]] = []

        def send_multipart(self, frames: list[bytes], *_: Any) -> None:
            self.sent.append(frames)

    publisher, log = Publisher(), RobotLog(tmp_path)
    robot = Recording(raises)
    RobotSender(robot, publisher, log, 1.0).run(threading.Event())  # type: ignore[arg-type]
    log.close()
    states = [STATE.unpack(frames[1]) for frames in publisher.sent if frames[0] == b"robot_state"]
    assert [state[9] for state in states] == list(range(1, 21))
    assert publisher.sent[-1][0] == b"episode_end" and robot.calls == ["open", "close"]


def test_a_recording_that_cannot_be_opened_ends_the_program(tmp_path: Path) -> None:
    from common.program import ProgramError

    class Publisher:
        def send_multipart(self, *_: Any) -> None: ...

    robot, log = Recording(False), RobotLog(tmp_path)
    robot.broken.set()
    with pytest.raises(ProgramError, match="it is off"):
        RobotSender(robot, Publisher(), log, 1.0).run(threading.Event())  # type: ignore[arg-type]
    log.close()


def test_a_drivers_own_limits_are_used_at_the_part_of_the_speed_asked_for() -> None:
    own = MotionLimits((-1.0,) * 6, (1.0,) * 6, (10.0,) * 6)
    robot: Any = FailingRobot()
    options = RobotOptions(speed_scale=0.25)
    assert _limits(robot, options) == MotionLimits.of_arm(speed_scale=0.25)
    robot.limits = own
    assert _limits(robot, options).joint_speed_deg_s == (2.5,) * 6
    assert _limits(robot, options).joint_max_deg == (1.0,) * 6
