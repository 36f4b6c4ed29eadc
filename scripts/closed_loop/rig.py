"""The insertion rig in virtual time: the real parts, as fast as the processor allows.

What is real: physics, pictures, A-scans, the JPEGs of the camera sender, the robot sender's
executor with its limits, the receiver's limits. What is modelled: the clocks, which are exact, and
the ways between the programs, which take no time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common import endpoints
from common.step_limiter import StepLimiter
from common.wire import Action, ActionSpace, RobotState
from receiver.limits import limit_rows
from receiver.options import Limits
from scripts.closed_loop.score import Score, ScoreOptions
from scripts.closed_loop.sensor_log import SensorLog
from senders.encoding import encode_jpeg
from senders.executor import ActionExecutor
from senders.jetson_camera_sender import CameraOptions
from senders.limits import MotionLimits
from senders.robot_sender import RobotOptions
from sim.engine import mujoco
from sim.layout import RigConfig
from sim.messages import Command
from sim.rendering import RigRenderer
from sim.rig import InsertionRig, Reading

__all__ = ["SAMPLE_EVERY", "SCORE_HZ", "START_S", "SUBSTEPS"]
__all__ += ["Sight", "VirtualRig"]

SUBSTEPS = 5
"""Physics steps of a tick of the rig, as in `sim/rig_server.py`."""
SAMPLE_EVERY = 2
"""Physics steps of a sample, as there."""
SCORE_HZ = 100.0
# The receiver tells speeds from states 50 ms apart; they come at 100 Hz.
_SPEED_STATES = 5
"""Readings a second that are scored, as many as `sim/trace.py` keeps."""
START_S = 0.1
"""Until then the arm stands still: the sensor's first window fills."""
_TOGETHER_S = 1e-9  # what is due within this is due at once
_SIGHTS = 8  # remembered: a quarter of a second
_WIDTH, _HEIGHT = 640, 360


@dataclass(frozen=True, slots=True)
class Sight:
    """What the cameras saw at one instant, to be drawn when somebody looks.

    Attributes:
        captured_at: seconds of the episode.
        qpos: the model's positions then.
    """

    captured_at: float
    qpos: NDArray[np.float64]


class VirtualRig:
    """One rig with its senders; to be made, used and closed by one and the same thread.

    Seconds count from the episode's start. Everything that happens is a function of the seed and
    of the commands, whatever was done before `reset`.
    """

    def __init__(
        self, config: RigConfig | None = None, score_options: ScoreOptions | None = None
    ) -> None:
        """Build the rig and its renderer; DriverError where nothing can be rendered."""
        self.rig = InsertionRig(config, 0)
        self.limits = Limits()
        self._score_options = score_options
        self._shown = mujoco.MjData(self.rig.model)
        self._renderer = RigRenderer(self.rig.model, _WIDTH, _HEIGHT)
        self._quality = CameraOptions().quality
        self._motion = MotionLimits.of_arm(speed_scale=RobotOptions().speed_scale)
        self._robot_hz = RobotOptions().rate_hz
        self._tick_hz = self.rig.config.physics_hz / SUBSTEPS
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start an episode, and let the arm stand still until the first window has come."""
        self.rig.reset(seed)
        self.score = Score(self._score_options)
        self.time_s = 0.0
        self._substep = self._ticks = self._robot_ticks = self._frames = 0
        self.sensor = SensorLog(seed)
        self._scored, self._peak_n = -1, 0.0
        # No camera's shutter knows of the others' clocks.
        self._camera_phase_s = float(np.random.default_rng([seed, 2]).uniform(0.0, 1.0))
        self._camera_phase_s /= endpoints.CAMERA.rate_hz
        self._executor = ActionExecutor(self._motion, self._robot_hz, endpoints.ACTION.rate_hz)
        self._inbox: list[Action] = []
        self._sent = 0
        self._pending: Command | None = None
        self._robot: RobotState | None = None
        self._past: deque[tuple[float, ...]] = deque(maxlen=_SPEED_STATES)
        self._sights = deque([Sight(0.0, self.rig.data.qpos.copy())], maxlen=_SIGHTS)
        self._reading = self.rig.read()
        self.advance_to(START_S)

    @property
    def over(self) -> bool:
        """Whether the episode is; time then stands still."""
        return self.score.over

    @property
    def reading(self) -> Reading:
        """The newest truth, which no sender sees."""
        return self._reading

    def advance_to(self, time_s: float) -> None:
        """Let the rig and its senders run until `time_s`, or until the episode is over."""
        until = time_s + _TOGETHER_S
        while not self.over:
            tick_at = (self._ticks + 1) / self._tick_hz
            frame_at = self._frame_at(self._frames)
            robot_at = self._robot_ticks / self._robot_hz
            due = min(tick_at, frame_at, robot_at)
            if due > until:
                break
            # What the rig publishes at an instant is there for who looks at that instant.
            if tick_at <= due + _TOGETHER_S:
                self._tick(tick_at)
            elif frame_at <= due + _TOGETHER_S:
                self._frames += 1
                self._sights.append(Sight(frame_at, self.rig.data.qpos.copy()))
            else:
                self._robot_tick(robot_at)
        self.time_s = max(self.time_s, time_s)

    @property
    def published_at(self) -> float:
        """When the rig last published its state."""
        return self._ticks / self._tick_hz

    @property
    def frame_period_s(self) -> float:
        """Seconds from one picture of a camera to the next."""
        return 1.0 / endpoints.CAMERA.rate_hz

    def frame_after(self, at: float) -> float:
        """When the cameras take their first picture after `at`."""
        return self._frame_at(
            max(math.floor((at - self._camera_phase_s + _TOGETHER_S) / self.frame_period_s) + 1, 0)
        )

    def _frame_at(self, number: int) -> float:
        return self._camera_phase_s + number * self.frame_period_s

    def sight(self, at: float | None = None) -> Sight:
        """The newest instant at which the cameras took pictures, by `at` (lately) or by now."""
        limit = math.inf if at is None else at + _TOGETHER_S
        known = [sight for sight in self._sights if sight.captured_at <= limit]
        return known[-1] if known else self._sights[0]

    def jpegs(self, views: Sequence[str], sight: Sight | None = None) -> dict[str, bytes]:
        """Pictures by view as the camera sender pushes them, of the newest instant by default."""
        sight = sight or self.sight()
        self._shown.qpos[:] = sight.qpos
        mujoco.mj_kinematics(self.rig.model, self._shown)
        drawn = self._renderer.render(self._shown, views)
        return {view: encode_jpeg(picture, self._quality) for view, picture in drawn.items()}

    def pictures(
        self, views: Sequence[str], sight: Sight | None = None
    ) -> dict[str, NDArray[np.uint8]]:
        """The same as RGB (360, 640, 3) by view."""
        import cv2

        decoded = {
            view: cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            for view, jpeg in self.jpegs(views, sight).items()
        }
        return {
            view: np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
            for view, picture in decoded.items()
        }

    def robot(self) -> RobotState:
        """The newest state that the robot sender has published."""
        assert self._robot is not None  # published since the episode's first instant
        return self._robot

    def command(
        self,
        rows: NDArray[np.float32],
        space: ActionSpace,
        dt: float,
        robot: RobotState | None = None,
    ) -> frozenset[str]:
        """Send a chunk (H, 6 or 7) through the receiver's limits to the robot sender.

        `robot` is the state that it was made from, the newest by default. The names of the limits
        that cut it down are returned. ValueError for rows that no receiver would send.
        """
        limited = limit_rows(rows, space, dt, robot or self.robot(), self.limits)
        self._send(limited.rows, space, dt)
        return limited.cut

    def hold(self, reason: str) -> None:
        """Send the order to hold."""
        self._send(np.zeros((1, 7), np.float32), "joint_position", 0.1, reason)

    def limiter(self, control_hz: float) -> StepLimiter:
        """The limits of joint targets that a client itself sends `control_hz` times a second."""
        return self._motion.joints(control_hz)

    def move_joints(self, joints_deg: NDArray[np.float64]) -> None:
        """What the `sim` driver does: the rig takes it at its next tick."""
        self._pending = Command("joints", joints_deg.copy())

    def stop(self) -> None:
        """The same for a hold."""
        self._pending = Command("hold")

    def close(self) -> None:
        """Free the renderer; safe to call twice."""
        self._renderer.close()

    def _send(
        self, rows: NDArray[np.float32], space: ActionSpace, dt: float, hold: str = ""
    ) -> None:
        self._inbox.append(
            Action(
                seq=self._sent,
                timestamp=self.time_s,
                observed_at=self.time_s,
                feature_update=0,
                feature_age=0.0,
                dt=dt,
                space=space,
                actions=rows,
                hold=bool(hold),
                reason=hold,
            )
        )
        self._sent += 1

    def _tick(self, at: float) -> None:
        """One tick of the rig's server: the newest command, then the physics up to `at`."""
        rig = self.rig
        pending, self._pending = self._pending, None
        if pending is not None:
            _obey(rig, pending)
        self._ticks += 1
        left = SUBSTEPS
        while left:
            span = min(SAMPLE_EVERY - self._substep % SAMPLE_EVERY, left)
            rig.step(span)
            self._substep += span
            left -= span
            if self._substep % SAMPLE_EVERY == 0:
                self._sample(at - left * rig.timestep_s)

    def _sample(self, at: float) -> None:
        reading = self._reading = self.rig.read()
        self.sensor.add(at, reading)
        # Scored as often as the rig's own record has a row, with the greatest force since the last.
        self._peak_n = max(self._peak_n, abs(reading.force_n))
        row = int(at * SCORE_HZ + _TOGETHER_S)
        if row != self._scored and not self.over:
            self.score.see(replace(reading, force_n=self._peak_n))
            self._scored, self._peak_n = row, 0.0

    def _speeds(self, joints: tuple[float, ...]) -> tuple[float, ...]:
        """Joint speeds over the last states, as the receiver tells them."""
        if len(self._past) < _SPEED_STATES:
            return ()
        span_s = _SPEED_STATES / self._robot_hz
        earlier = self._past[0]
        return tuple((a - b) / span_s for a, b in zip(joints, earlier, strict=True))

    def _robot_tick(self, at: float) -> None:
        """One tick of the robot sender: read, publish, take what came, move."""
        rig, executor = self.rig, self._executor
        self._robot_ticks += 1
        joints, pose = rig.joints_deg, rig.pose
        self._robot = RobotState(
            self.published_at,
            at,
            _single(rig.force_n),
            _singles(joints),
            _singles(pose),
            self._speeds(_singles(joints)),
        )
        self._past.append(self._robot.joints)
        executor.observe(joints, pose)
        for action in self._inbox:
            executor.accept(action, at)
        self._inbox.clear()
        command = executor.step(at)
        if command is None:
            return
        if command.target is None:
            self.stop()
            executor.held()
        elif command.kind == "joints":
            self.move_joints(command.target)
        else:
            self._pending = Command("pose", command.target.copy())


def _obey(rig: InsertionRig, command: Command) -> None:
    if command.values is None:
        rig.hold()
    elif command.kind == "joints":
        rig.command_joints(command.values)
    else:
        rig.command_pose(command.values)


def _single(value: float) -> float:
    """A number as it is after the wire, which carries 32 bits."""
    return float(np.float32(value)) if math.isfinite(value) else 0.0


def _singles(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(values.astype(np.float32).tolist())
