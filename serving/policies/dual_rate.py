"""`qwen_vla`: a policy with a slow and a fast half, for many sessions.

An observation with pictures is encoded, and its features are kept for its session. One without is
acted on with the features kept and its own sensor window. The two have a thread each, so that a
fast observation does not wait for another session's slow pass.

Features age from the moment their pictures came. The client's clock counts too: the time between
the two observations by its own stamps, in which the way to the server is contained. The larger of
the two is taken; a clock that was set forward makes features too old, never too young.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.wire import RobotState
from policies.base import AT_REST, ActionChunk, DualRatePolicy, Features, PolicyError
from serving.engine_options import EngineOptions
from serving.messages import Instructions, Observation, ServingError
from serving.pictures import pixels_of
from serving.robot_values import StatePlaces, at_tick_ends, check_space, joint_targets
from serving.seldom import Seldom
from serving.served import Predicted, Request, ServedPolicy, SessionMemory

__all__ = ["DualRateSessions", "load"]

_seldom = Seldom(logging.getLogger("serving.policies"))

_SLOW, _FAST = 0, 1
_KEY = "dual rate"


@dataclass(frozen=True, slots=True)
class _Held:
    """Features of a session.

    Attributes:
        features: of the policy.
        arrived_at: when their pictures came, `time.monotonic()` seconds.
        taken_at: when they were taken, UNIX seconds in the client's clock.
    """

    features: Features
    arrived_at: float
    taken_at: float

    def age_s(self, observation: Observation) -> float:
        """How old they are for this observation."""
        return max(time.monotonic() - self.arrived_at, observation.timestamp - self.taken_at)


@dataclass(slots=True)
class _Session:
    """What is kept of a session. Each lane changes its own; whole values are swapped.

    Attributes:
        views: camera → view of the policy, for the cameras that it looks through.
        places: where the policy's values are among the state values.
        names: of the actions, as the client calls them; empty where they cannot be told.
        held: the newest features.
        previous: the last chunk.
        seen: the last state of the robot.
    """

    views: dict[str, str]
    places: StatePlaces
    names: tuple[str, ...]
    held: _Held | None = None
    previous: ActionChunk | None = None
    seen: RobotState | None = None


class DualRateSessions:
    """A dual-rate policy as the engine wants it.

    Args:
        policy: both its halves; they may be called at the same time.
        features_max_age_s: features older than this are not acted on.
    """

    lanes = ("encode", "act")
    most_batched = 1  # neither half takes more than one observation

    def __init__(self, policy: DualRatePolicy, features_max_age_s: float) -> None:
        self._policy, self._max_age_s = policy, features_max_age_s
        self._acting = threading.Lock()  # `act` may run beside `encode`, not beside itself

    @property
    def action_names(self) -> tuple[str, ...]:
        """The policy's columns."""
        return self._policy.spec.columns

    @property
    def dt(self) -> float:
        """Seconds between two rows, as the policy was trained."""
        return self._policy.spec.dt

    def lane_of(self, observation: Observation) -> int:
        """Observations with pictures are slow, and so is whoever asks for features."""
        return _SLOW if observation.pictures or observation.wants == "features" else _FAST

    def admit(self, instructions: Instructions) -> SessionMemory:
        """Begin a session; bad_policy where a view has no camera."""
        spec = self._policy.spec
        renamed = {camera: _renamed(camera, instructions) for camera in instructions.cameras}
        views = {camera: name for camera, name in renamed.items() if name in spec.views}
        missing = [view for view in spec.views if view not in views.values()]
        if missing or len(views) != len(spec.views):
            cameras = ", ".join(instructions.cameras) or "none"
            raise ServingError(
                "bad_policy",
                f"the policy looks through {', '.join(spec.views)}, one camera each; the cameras "
                f"are {cameras}: name or rename them so",
            )
        places = StatePlaces.of(instructions.state_names)
        check_space(spec.space, places)
        names = places.action_names(len(spec.columns))
        values = {_KEY: _Session(views, places, names)}
        return SessionMemory(instructions, values)

    def predict(self, requests: Sequence[Request]) -> Sequence[Predicted | Exception]:
        """Encode or act, one request after the other."""
        results: list[Predicted | Exception] = []
        for request in requests:
            try:
                results.append(self._one(request))
            except ServingError as error:
                results.append(error)
            except PolicyError as error:
                results.append(ServingError("failed", str(error)))
        return results

    def _one(self, request: Request) -> Predicted:
        session: _Session = request.memory.values[_KEY]
        observation = request.observation
        if self.lane_of(observation) == _SLOW:
            session.held = self._encode(session, request)
        if observation.wants == "features":
            assert session.held is not None
            packed = self._policy.pack(session.held.features)
            return Predicted(features=packed, identity=self._policy.spec.identity)
        held = session.held
        if held is None:
            raise ServingError(
                "failed", "there are no features yet: send an observation with pictures first"
            )
        age_s = held.age_s(observation)
        if age_s > self._max_age_s:
            raise ServingError(
                "failed",
                f"the features are {age_s:.2f} s old, {self._max_age_s:g} s is the limit: send an "
                "observation with pictures",
            )
        robot = session.seen = session.places.moving_state(observation, session.seen)
        with self._acting:
            chunk = self._policy.act(held.features, observation.sensor, robot, session.previous)
        session.previous = chunk
        spec = self._policy.spec
        columns = len(session.names) or len(spec.columns)
        targets = joint_targets(chunk.actions, spec.space, robot, columns)
        fps = request.memory.instructions.fps
        targets = at_tick_ends(targets, robot, spec.dt, 1.0 / fps if fps else 0.0)
        return Predicted(targets, features_age_s=max(age_s, 0.0), names=session.names)

    def _encode(self, session: _Session, request: Request) -> _Held:
        observation = request.observation
        missing = [camera for camera in session.views if camera not in observation.pictures]
        if missing:
            raise ServingError("failed", f"no picture of {', '.join(missing)}: send one of each")
        pictures = {
            view: pixels_of(camera, observation.pictures[camera])
            for camera, view in session.views.items()
        }
        features = self._policy.encode(pictures, observation.task or self._policy.spec.task)
        return _Held(features, request.arrived_at, observation.timestamp)


def load(instructions: Instructions, options: EngineOptions) -> ServedPolicy:
    """Load the checkpoint at the path and run both halves once, which allocates what they reuse.

    Raises:
        ServingError: bad_policy for what is no such checkpoint, or cannot run on the device.
    """
    try:
        from policies.qwen_vla import load_policy
    except ModuleNotFoundError as error:
        raise ServingError(
            "bad_policy",
            f"qwen_vla needs {error.name} on the server: pip install '.[receiver]' there",
        ) from None
    try:
        policy = load_policy(instructions.path, device=instructions.device, keep_plain=False)
    except PolicyError as error:
        raise ServingError("bad_policy", str(error)) from None
    _warm_up(policy)
    spec = policy.spec
    count = f"{spec.parameters:,}"
    _seldom.log(logging.INFO, "%s: %s parameters on %s", spec.name, count, spec.device)
    return DualRateSessions(policy, options.features_max_age_s)


def _warm_up(policy: DualRatePolicy) -> None:
    spec = policy.spec
    width, height = spec.image_size
    black = dict.fromkeys(spec.views, np.zeros((height, width, 3), np.uint8))
    features = policy.encode(black, spec.task)
    for samples in {max(spec.sensor_window // 2, 1), spec.sensor_window} - {0}:
        window = np.zeros((samples, spec.sensor_channels), np.float32)
        policy.act(features, window if spec.sensor_window else None, AT_REST, None)


def _renamed(camera: str, instructions: Instructions) -> str:
    """The camera's name at the policy; LeRobot's clients rename with their prefix."""
    prefix = "observation.images."
    for name in (camera, prefix + camera):
        if name in instructions.rename:
            return instructions.rename[name].removeprefix(prefix)
    return camera.removeprefix(prefix)
