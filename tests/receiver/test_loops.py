"""The loops inside one process, with a policy that misbehaves on order, over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from common import endpoints, wire
from common.wire import RobotState
from policies.base import ActionChunk, PolicySpec
from receiver.console import Console
from receiver.options import Ports, ReceiverOptions, StaleAfter
from receiver.results import ResultsWriter
from receiver.runtime import Runtime
from receiver.summary import summarize
from tests.support import free_ports, wait_until


class ScriptedPolicy:
    """A policy that does at once what a test tells it to."""

    spec = PolicySpec(
        name="scripted",
        views=("View1",),
        image_size=(64, 36),
        sensor_window=20,
        sensor_channels=4,
        rows=8,
        columns=tuple("abcdefg"),
        space="joint_delta",
        dt=0.02,
        task="the policy's own",
    )

    def __init__(self) -> None:
        self.encode_does: Callable[[], None] = lambda: None
        self.act_does: Callable[[], None] = lambda: None
        self.rows = np.full((8, 7), 0.01, np.float32)
        self.tasks: list[str] = []
        self.windows: list[NDArray[np.float32]] = []
        self.images: list[NDArray[np.uint8]] = []

    def encode(self, images: Mapping[str, NDArray[np.uint8]], task: str) -> int:
        self.encode_does()
        self.tasks.append(task)
        self.images = [images["View1"]]
        return len(self.tasks)

    def act(
        self, features: Any, sensor: Any, robot: RobotState | None, previous: ActionChunk | None
    ) -> ActionChunk:
        self.act_does()
        self.windows = [*self.windows[-5:], np.array(sensor)]
        return ActionChunk(self.rows, self.rows)


class Rig:
    """A runtime at 50 Hz, and a thread that feeds each of its streams until told not to."""

    def __init__(self, folder: Path, **options: Any) -> None:
        camera, robot, sensor, action = free_ports(4)
        self.policy = ScriptedPolicy()
        self.console = Console(live=True)
        given = ReceiverOptions(
            checkpoint="-",
            action_hz=50.0,
            output_dir=folder,
            bind="127.0.0.1",
            robot_ip="127.0.0.1",
            aline_length=3,
            sensor_hz=500.0,
            stale_after=StaleAfter(view_s=0.5, sensor_s=0.3, robot_s=0.3, features_s=0.6),
            ports=Ports(camera, robot, sensor, action),
            **options,
        )
        self.run = Runtime(given, self.policy, ResultsWriter(folder), self.console)
        self.feeding = {"camera", "robot", "sensor"}
        self.force = 0.1
        self._stop = threading.Event()
        self._context: zmq.Context[Any] = zmq.Context()
        self._actions = self._context.socket(zmq.SUB)
        self._actions.subscribe(b"")
        self._actions.connect(f"tcp://127.0.0.1:{action}")
        self.run.start()
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        robot, camera = self._context.socket(zmq.PUB), self._context.socket(zmq.PUSH)
        robot.bind(f"tcp://127.0.0.1:{self.run.options.ports.robot}")
        camera.connect(f"tcp://127.0.0.1:{self.run.options.ports.camera}")
        self.robot_socket = robot
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        target = ("127.0.0.1", self.run.options.ports.sensor)
        picture = np.zeros((36, 64, 3), np.uint8)
        picture[..., 2] = 200  # red, in OpenCV's order
        jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
        while not self._stop.wait(0.02):
            stamp = time.time()
            if "robot" in self.feeding:
                robot.send_multipart(
                    wire.encode_robot(RobotState(stamp, stamp, 0.0, (0.0,) * 6, (190.0,) * 6))
                )
            if "camera" in self.feeding:
                camera.send_multipart(wire.encode_camera(wire.CameraFrame("View1", stamp, jpeg)))
            if "sensor" in self.feeding:
                stamps = stamp + np.arange(-9, 1) / 500
                forces = np.full(10, self.force, np.float32)
                alines = np.zeros((10, 3), np.float32)
                batch = wire.SampleBatch(stamps, stamps, forces, alines)
                udp.sendto(wire.encode_samples(batch), target)
        for sock in (robot, camera):
            sock.close(linger=0)
        udp.close()

    def wait_for_action(self, wanted: Callable[[wire.Action], bool], what: str) -> wire.Action:
        found: list[wire.Action] = []

        def look() -> bool:
            while self._actions.poll(10):
                action = wire.decode_action(self._actions.recv_multipart())
                if wanted(action):
                    found.append(action)
                    return True
            return False

        wait_until(look, what, 20)
        return found[0]

    def drain(self) -> None:
        while self._actions.poll(0):
            self._actions.recv_multipart()

    def wait_for_hold(self, reason: str) -> wire.Action:
        self.drain()
        return self.wait_for_action(lambda a: a.hold and a.reason == reason, f"hold: {reason}")

    def wait_for_motion(self) -> wire.Action:
        self.drain()
        return self.wait_for_action(lambda a: not a.hold, "motion")

    def close(self) -> None:
        self.run.close()
        self._stop.set()
        self._feeder.join(5)
        self._context.destroy(linger=0)
        self.console.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()
    assert rig.run.failure is None


@pytest.mark.parametrize(
    ("stream", "reason"),
    [("robot", "robot silent"), ("camera", "View1 silent"), ("sensor", "sensor silent")],
)
def test_a_silent_stream_holds_until_it_is_back(rig: Rig, stream: str, reason: str) -> None:
    rig.wait_for_motion()
    rig.feeding.discard(stream)
    held = rig.wait_for_hold(reason)
    assert not held.actions.any()
    rig.feeding.add(stream)
    rig.wait_for_motion()
    assert rig.run.actions.holds[reason] > 0


def test_a_slow_half_that_hangs_lets_the_features_grow_old(rig: Rig) -> None:
    first = rig.wait_for_motion()
    hanging, hung = threading.Event(), threading.Event()

    def hang() -> None:
        hung.set()
        hanging.wait(20)

    rig.policy.encode_does = hang
    assert hung.wait(10)
    # The fast loop goes on with what it has, beyond the reuse, and only then holds.
    rig.wait_for_action(lambda a: not a.hold and a.seq > first.seq + 10, "reuse while it hangs")
    assert rig.wait_for_hold("features old").feature_age > 0.5
    rig.policy.encode_does = lambda: None
    hanging.set()
    assert rig.wait_for_motion().feature_age < 0.6
    assert rig.run.actions.late_updates > 0


def test_a_slow_half_that_raises_is_tried_again(rig: Rig) -> None:
    rig.wait_for_motion()

    def fail() -> None:
        raise RuntimeError("out of memory")

    rig.policy.encode_does = fail
    rig.wait_for_hold("features old")
    rig.policy.encode_does = lambda: None
    rig.wait_for_motion()
    assert rig.run.features.failures > 0


def test_a_fast_half_that_raises_holds(rig: Rig) -> None:
    rig.wait_for_motion()

    def fail() -> None:
        raise RuntimeError("no kernel image")

    rig.policy.act_does = fail
    rig.wait_for_hold("policy failed")
    rig.policy.act_does = lambda: None
    rig.wait_for_motion()


def test_an_action_from_inputs_that_grew_old_meanwhile_never_leaves(rig: Rig) -> None:
    rig.wait_for_motion()

    # Longer than a robot state is good for (0.3 s here): what it saw is no longer so.
    def hang() -> None:
        threading.Event().wait(0.4)

    rig.policy.act_does = hang
    rig.wait_for_hold("inference took too long")
    rig.drain()
    rig.wait_for_hold("inference took too long")
    rig.policy.act_does = lambda: None
    rig.wait_for_motion()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_output_that_is_not_finite_never_leaves(rig: Rig, bad: float) -> None:
    rig.wait_for_motion()
    rig.policy.rows = np.full((8, 7), bad, np.float32)
    rig.wait_for_hold("policy failed")
    rig.policy.rows = np.zeros((8, 7), np.float32)
    rig.wait_for_motion()


def test_what_leaves_is_inside_the_limits_whatever_the_policy_says(rig: Rig) -> None:
    rig.policy.rows = np.full((8, 7), 1e4, np.float32)
    speeds = np.array(rig.run.options.limits.joint_speed_deg_s)
    rig.wait_for_motion()
    action = rig.wait_for_motion()
    assert (np.abs(action.actions[:, :6]) <= speeds * 0.02 + 1e-3).all()
    assert (action.actions[:, 6] <= 1.0).all()
    assert rig.run.actions.cuts["joint_speed"] > 0


@pytest.mark.parametrize("force", [3.5, -3.5])
def test_too_much_force_holds(rig: Rig, force: float) -> None:
    rig.wait_for_motion()
    rig.force = force
    rig.wait_for_hold("force above its limit")
    rig.force = 0.2
    rig.wait_for_motion()


def test_the_policy_sees_rgb_and_the_newest_samples_in_order(rig: Rig) -> None:
    rig.wait_for_motion()
    red, green, blue = rig.policy.images[0].reshape(-1, 3).mean(0)
    assert red > 180
    assert max(green, blue) < 30
    wait_until(lambda: rig.policy.windows[-1].shape == (20, 4), "a whole window")
    assert rig.policy.windows[-1][0, 0] == pytest.approx(0.1)


def test_the_task_can_be_changed_while_it_runs(rig: Rig) -> None:
    rig.wait_for_motion()
    assert rig.policy.tasks[-1] == "the policy's own"
    rig.run.task.put("something else")
    wait_until(lambda: rig.policy.tasks[-1] == "something else", "the new task")


def test_an_episode_ends_and_the_next_begins(rig: Rig) -> None:
    rig.wait_for_motion()
    rig.feeding.discard("robot")
    rig.robot_socket.send_multipart(wire.encode_episode_end())
    rig.wait_for_action(lambda a: a.reason == "episode ended", "the end")
    assert rig.run.episodes.current is not None
    assert not rig.run.episodes.current.active
    rig.feeding.add("robot")
    assert rig.wait_for_motion().feature_update <= 3  # counts from 1 again
    assert rig.run.episodes.current.number == 2


def test_a_slow_tick_is_missed_and_the_grid_is_kept(rig: Rig) -> None:
    rig.wait_for_motion()
    pauses = [0.07]

    def pause_once() -> None:
        if pauses:
            threading.Event().wait(pauses.pop())

    rig.policy.act_does = pause_once
    wait_until(lambda: rig.run.actions.misses >= 2, "two or three missed ticks of 20 ms")
    rig.wait_for_motion()
    rig.run.close()
    assert summarize(rig.run)["deadline_misses"] >= 2


def test_the_last_word_is_hold(rig: Rig) -> None:
    rig.wait_for_motion()
    rig.run.close()
    rig.wait_for_action(lambda a: a.hold and a.reason == "stopped", "the last word")


def test_a_picture_that_cannot_be_decoded_is_counted(rig: Rig) -> None:
    rig.wait_for_motion()
    jpeg = cv2.imencode(".jpg", np.full((360, 640, 3), 90, np.uint8))[1].tobytes()
    scan = jpeg.index(b"\xff\xda")
    # Whole by its markers, but the tables that decoding needs are gone.
    broken = jpeg[:2] + jpeg[jpeg.index(b"\xff\xc0") : scan] + jpeg[scan:]
    rig.feeding.discard("camera")
    push = rig._context.socket(zmq.PUSH)
    push.connect(f"tcp://127.0.0.1:{rig.run.options.ports.camera}")

    def counted() -> int:
        frame = wire.CameraFrame("View1", time.time(), broken)
        push.send_multipart(wire.encode_camera(frame))
        return rig.run.counters.snapshot().get(endpoints.CAMERA.stream, {}).get("undecodable", 0)

    wait_until(counted, "a broken picture to be counted", 10)
    rig.feeding.add("camera")
    rig.wait_for_motion()
