"""Chunks of actions from a queue, in virtual time: asynchronously, and synchronously.

The queue, its thresholds and aggregations, when to look again, the limits and the holds are the
robot client's own control loop (`serving/control_loop.py`), and what the server leaves out is its
own slot (`serving/newest.py`). Written again here is what has clocks and sockets: the server
predicts from one observation at a time, the newest, and each prediction takes its latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.step_limiter import StepLimiter
from common.wire import RobotState
from policies.base import ActionChunk, DualRatePolicy
from receiver.encoders import LocalEncoder
from scripts.closed_loop.rig import Sight, VirtualRig
from scripts.closed_loop.running import Latencies, Tally
from serving.aggregation import choose
from serving.body import BodyState, Seen
from serving.control_loop import ControlLoop
from serving.control_values import Arrival, LoopOptions
from serving.messages import Chunk, Observation
from serving.newest import Likeness, NewestSlot
from serving.robot_values import joint_targets

__all__ = ["CONTROL_HZ", "Queueing", "run_chunks"]

CONTROL_HZ = 100.0
"""Targets a second, as many as the robot sender's executor makes of a chunk."""
_JOINTS = 6
_NAMES = tuple(f"joint_{k}.pos" for k in range(1, _JOINTS + 1))
_SIZE = (360, 640, 3)
_NOTHING: NDArray[np.uint8] = np.broadcast_to(np.uint8(0), _SIZE)
_UNCHANGED_FOR_S = 1.0
_MARGIN_S = 1.0
_SAME_S = 1e-9


@dataclass(frozen=True, slots=True)
class Queueing:
    """How chunks are executed.

    Attributes:
        rows: of a chunk that are used; the others are cut off. None: all.
        threshold: a new observation is sent when this part of a chunk is left; 0.0 is synchronous.
        aggregation: by name, what becomes of a step that is queued and in the new chunk.
    """

    rows: int | None
    threshold: float
    aggregation: str = "latest_only"


class _Body:
    """The virtual rig as the client's control loop wants it.

    Pictures and A-scans are made when a prediction begins, of what was there when the observation
    was: here are only the times.
    """

    state_names = action_names = _NAMES

    def __init__(self, rig: VirtualRig, views: tuple[str, ...]) -> None:
        self._rig = rig
        self.cameras: Mapping[str, tuple[int, int, int]] = dict.fromkeys(views, _SIZE)

    def limiter(self, control_hz: float) -> StepLimiter:
        return self._rig.limiter(control_hz)

    def open(self) -> None:
        """It is."""

    def read(self) -> BodyState:
        # The rig publishes at each of its ticks; the state is of the newest.
        return BodyState(self._rig.rig.joints_deg, self._rig.published_at)

    def seen(self) -> Mapping[str, Seen]:
        at = self._rig.sight().captured_at
        return {view: Seen(_NOTHING, at) for view in self.cameras}

    def sensor(self, samples: int) -> NDArray[np.float32]:
        """The number of the newest sample: it tells two windows apart as their samples would."""
        return np.array([[self._rig.sensor.newest]], np.float32)

    def move(self, target: NDArray[np.float64]) -> None:
        self._rig.move_joints(target)

    def hold(self) -> None:
        self._rig.stop()

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A prediction on its way."""

    chunk: Chunk
    done_at: float


class _Server:
    """Predicts from the newest observation, one at a time."""

    def __init__(
        self, rig: VirtualRig, policy: DualRatePolicy, latencies: Latencies, tally: Tally
    ) -> None:
        self._rig, self._policy, self._tally = rig, policy, tally
        self._latency_s = latencies.encode_s + latencies.act_s
        self._encoder = LocalEncoder(policy)
        self._slot = NewestSlot(Likeness(), _UNCHANGED_FOR_S)
        self._sights: dict[float, Sight] = {}
        self._speeds: dict[float, tuple[float, ...]] = {}
        self._previous: ActionChunk | None = None
        self._job: _Job | None = None

    def offer(self, observation: Observation, now: float) -> None:
        """An observation came."""
        if self._slot.offer(observation, now) == "filtered":
            return
        self._sights = {observation.timestamp: self._rig.sight()}
        self._speeds = {observation.timestamp: self._rig.robot().speeds}
        if self._job is None:
            self._begin(now)

    def answers(self, now: float) -> list[Arrival]:
        """What has come out by now."""
        arrived = []
        while self._job is not None and self._job.done_at <= now + _SAME_S:
            job, self._job = self._job, None
            arrived.append(Arrival(job.chunk, job.done_at))
            if self._slot.filled:
                self._begin(job.done_at)
        return arrived

    def close(self) -> None:
        """Let go of what decodes pictures."""
        self._encoder.close()

    def _begin(self, now: float) -> None:
        observation = self._slot.take(now).observation
        self._job = _Job(self._predict(observation), now + self._latency_s)

    def _predict(self, observation: Observation) -> Chunk:
        policy, spec = self._policy, self._policy.spec
        sight = self._sights[observation.timestamp]
        features = self._encoder.encode(self._rig.jpegs(spec.views, sight), spec.task)
        self._tally.encoded += 1
        joints = tuple(observation.state.tolist())
        at, speeds = observation.timestamp, self._speeds[observation.timestamp]
        robot = RobotState(at, at, 0.0, joints, (0.0,) * 6, speeds)
        assert observation.sensor is not None
        newest = int(observation.sensor[0, 0])
        window = self._rig.sensor.window(newest, spec.sensor_window) if spec.sensor_window else None
        chunk = self._previous = policy.act(features, window, robot, self._previous)
        self._tally.acted += 1
        rows = joint_targets(chunk.actions, spec.space, robot, _JOINTS)
        # The first row of an answer is for the observation's own instant, the policy's first for
        # `dt` after it: before that comes where the arm was.
        rows = np.concatenate([observation.state[None], rows])
        return Chunk(observation.timestep, observation.timestamp, rows, _NAMES, dt=spec.dt)


def run_chunks(
    rig: VirtualRig, policy: DualRatePolicy, latencies: Latencies, queueing: Queueing
) -> Tally:
    """Run the episode that `rig` has begun to its end, from a queue of actions.

    With a threshold of 0.0 it is synchronous: it looks when the queue is empty, and holds until
    there is an answer.
    """
    tally, spec = Tally(), policy.spec
    rows = spec.rows if queueing.rows is None else min(queueing.rows, spec.rows)
    options = LoopOptions(
        fps=CONTROL_HZ,
        task=spec.task,
        actions_per_chunk=rows + 1,
        chunk_size_threshold=queueing.threshold,
        aggregation=choose(queueing.aggregation),
        # What the last row waits in any case, and a second for the way there and back.
        max_input_age_s=(rows + 1) * spec.dt + max(latencies.encode_s, _MARGIN_S),
        resample=True,
        sensor_samples=spec.sensor_window,
    )
    loop = ControlLoop(_Body(rig, spec.views), options)
    server = _Server(rig, policy, latencies, tally)
    begun, index = rig.time_s, 0
    try:
        while not rig.over:
            at = begun + index / CONTROL_HZ
            index += 1
            rig.advance_to(at)
            step = loop.step(at, 1, server.answers(at))
            tally.ticks += 1
            tally.held += step.target is None
            if step.row is not None:
                tally.ages_s.append(at - step.row.measured_at)
            if step.observation is not None:
                server.offer(step.observation, at)
    finally:
        server.close()
    return tally
