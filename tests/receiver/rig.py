"""A runtime inside a test's process, with a policy that obeys and streams fed over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zmq
from numpy.typing import NDArray

from common import wire
from common.wire import RobotState
from policies.base import ActionChunk, PolicySpec
from receiver.console import Console
from receiver.encoders import LocalEncoder
from receiver.folders import SessionFolders
from receiver.options import Ports, ReceiverOptions, StaleAfter
from receiver.runtime import Runtime
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

    def pack(self, features: Any) -> bytes:
        raise NotImplementedError

    unpack: Any = pack

    def act(
        self, features: Any, sensor: Any, robot: RobotState | None, previous: ActionChunk | None
    ) -> ActionChunk:
        self.act_does()
        self.windows = [*self.windows[-5:], np.array(sensor)]
        return ActionChunk(self.rows, self.rows)


class Rig:
    """A runtime at 50 Hz, and a thread that feeds each of its streams until told not to."""

    def __init__(
        self,
        folder: Path,
        feeding: Collection[str] = ("camera", "robot", "sensor"),
        **options: Any,
    ) -> None:
        camera, robot, sensor, action, time_port = free_ports(5)
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
            ports=Ports(camera, robot, sensor, action, time_port),
            **options,
        )
        encoder = LocalEncoder(self.policy)
        self.run = Runtime(given, self.policy, encoder, SessionFolders(folder), self.console)
        self.feeding = set(feeding)
        self.force = 0.1
        self._closed = False
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

    def say(self, condition: wire.RobotCondition) -> None:
        """What the robot's side says of the robot."""
        said = wire.encode_robot_status(wire.RobotStatus(condition, time.time()))
        self.robot_socket.send_multipart(said)

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
        if self._closed:
            return
        self._closed = True
        self.run.close()
        self._stop.set()
        self._feeder.join(5)
        self._context.destroy(linger=0)
        self.console.close()
