"""`--split`: the slow half on the server, the fast half here.

Pictures go out, features come back. The fast half runs on them at every control tick with the
newest sensor window. When the network goes it carries on with the features it has, until these
are too old.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from policies.base import AT_REST, ActingPolicy, ActionChunk, Features, PolicyError
from serving.body import BodyState
from serving.messages import Chunk, FeatureReply, Instructions, Observation, ServingError
from serving.replies import in_one_line
from serving.robot_values import StatePlaces, check_space, joint_targets

if TYPE_CHECKING:  # PyTorch is on this computer only where it is wanted
    from policies.qwen_vla import FastHalf

__all__ = ["FastHalfHere", "Planned", "load_here"]


@dataclass(frozen=True, slots=True)
class Planned:
    """What the fast half makes of a moment.

    Attributes:
        chunk: rows of actions, the first for the next control step.
        measured_at: monotonic seconds at which the oldest input was measured: that of the features.
    """

    chunk: Chunk
    measured_at: float


@dataclass(frozen=True, slots=True)
class _Held:
    features: Features
    measured_at: float


class FastHalfHere:
    """The newest features and the policy's fast half; used by the control loop's thread."""

    def __init__(
        self, policy: ActingPolicy, instructions: Instructions, features_max_age_s: float
    ) -> None:
        """Act with `policy` for a robot that `instructions` describe.

        ServingError("bad_policy") where the robot cannot do what the policy says.
        """
        self._policy, self._max_age_s = policy, features_max_age_s
        self._places = StatePlaces.of(instructions.state_names)
        check_space(policy.spec.space, self._places)
        columns = len(policy.spec.columns)
        self._names = self._places.action_names(columns)
        self._columns = len(self._names) or columns
        self._held: _Held | None = None
        self._previous: ActionChunk | None = None
        self.updates = 0

    @property
    def sensor_samples(self) -> int:
        """Samples of the sensor that the policy looks at."""
        return self._policy.spec.sensor_window

    def take(self, reply: FeatureReply, measured_at: float) -> str:
        """Use these features from now on; in words why not, empty when they are taken."""
        # Two that say nothing of themselves are not known to be one.
        if not reply.identity or reply.identity != self._policy.spec.identity:
            return (
                "the server's features are of another checkpoint than the one here: use the same "
                "one on both"
            )
        try:
            features = self._policy.unpack(reply.packed)
        except PolicyError as error:
            return str(error)
        self._held = _Held(features, measured_at)
        self.updates += 1
        return ""

    def forget(self) -> None:
        """Nothing is known any more: another episode begins."""
        self._held = self._previous = None

    def age_s(self, now: float) -> float | None:
        """Age of the features; None without."""
        return None if self._held is None else now - self._held.measured_at

    def plan(
        self,
        step: int,
        state: BodyState,
        sensor: Callable[[int], NDArray[np.float32] | None],
        now: float,
        speeds: NDArray[np.float32] | None = None,
    ) -> Planned | str:
        """Rows of actions from `step` on, or in words why there are none.

        `speeds` (S,) are those of the state's values, None where they are not known.
        """
        held, spec = self._held, self._policy.spec
        if held is None:
            return "there are no features yet"
        if (age_s := now - held.measured_at) > self._max_age_s:
            return f"the features are {age_s:.2f} s old, --features_max_age is {self._max_age_s:g}"
        window = sensor(spec.sensor_window) if spec.sensor_window else None
        try:
            observed = state.values.astype(np.float32)
            observation = Observation(step, now, False, observed, speeds=speeds)
            robot = self._places.moving_state(observation, None)
            chunk = self._policy.act(held.features, window, robot, self._previous)
            rows = joint_targets(chunk.actions, spec.space, robot, self._columns)
            planned = Chunk(step, now, rows, self._names, dt=spec.dt)
        except (PolicyError, ServingError) as error:
            return str(error)
        except Exception as error:  # a server's features can have a shape that the model trips over
            return f"the fast half failed: {in_one_line(error)}"
        self._previous = chunk
        return Planned(planned, min(held.measured_at, state.at))


def load_here(
    instructions: Instructions, checkpoint: str, device: str, features_max_age_s: float
) -> FastHalfHere:
    """Load the fast half of a checkpoint on this computer; ServingError says what to do."""
    try:
        import torch

        from policies.qwen_vla import load_fast_half
    except ModuleNotFoundError as error:
        raise ServingError(
            "bad_policy", f"--split needs {error.name} here: pip install '.[receiver]'"
        ) from None
    torch.set_num_threads(max((os.cpu_count() or 2) // 2, 1))
    try:
        policy = load_fast_half(checkpoint, device=device)
        _warm_up(policy)
    except PolicyError as error:
        raise ServingError("bad_policy", f"--split: {error}") from None
    return FastHalfHere(policy, instructions, features_max_age_s)


def _warm_up(policy: FastHalf) -> None:
    """The first passes allocate and record what later ones reuse, which takes seconds."""
    spec = policy.spec
    for samples in (spec.sensor_window // 2, spec.sensor_window, spec.sensor_window):
        window = np.zeros((max(samples, 1), spec.sensor_channels), np.float32)
        policy.act(policy.blank(), window if spec.sensor_window else None, AT_REST)
