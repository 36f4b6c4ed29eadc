"""Between a client's state and action values and those of the project's own policies.

The policies of this project know six joints in degrees, the tool's pose, a force, and actions of
six joints with the gripper last. A client names its values as LeRobot does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.wire import ActionSpace, RobotState
from serving.messages import Observation, ServingError

__all__ = ["StatePlaces", "at_tick_ends", "check_space", "joint_targets"]

_JOINTS, _POSE = 6, 6
# Two states tell speeds when they are so far apart: noise below, another motion above.
_SPEED_S = (0.01, 0.2)


@dataclass(frozen=True, slots=True)
class StatePlaces:
    """Where a policy's values are among a client's state values.

    Attributes:
        joints: places of the six joints; None where they cannot be told.
        pose: places of the six values of the tool's pose; None where there are none.
        force: place of the force; None where there is none.
        gripper: place of the gripper; None where there is none.
        names: the client's names of the state values.
    """

    joints: tuple[int, ...] | None
    pose: tuple[int, ...] | None
    force: int | None
    gripper: int | None
    names: tuple[str, ...]

    @classmethod
    def of(cls, names: tuple[str, ...]) -> StatePlaces:
        """Tell by the names.

        Values with `pose`, `force` or `gripper` at the start of their name are those, and the first
        six of the others are the joints. An arm of five joints and a gripper (SO-101) has six
        values that move: there the gripper is the sixth.
        """
        starting = {
            word: tuple(n for n, name in enumerate(names) if name.startswith(word))
            for word in ("pose", "force", "gripper")
        }
        taken = {n for places in starting.values() for n in places}
        joints = tuple(n for n in range(len(names)) if n not in taken)[:_JOINTS]
        pose, force, gripper = (starting[word] for word in ("pose", "force", "gripper"))
        if len(joints) == _JOINTS - 1 and gripper:
            joints, gripper = (*joints, gripper[0]), ()
        return cls(
            joints if len(joints) == _JOINTS else None,
            pose[:_POSE] if len(pose) >= _POSE else None,
            force[0] if force else None,
            gripper[0] if gripper else None,
            names,
        )

    def robot_state(self, observation: Observation) -> RobotState | None:
        """The observation's state as policies of this project take it; None without six joints."""
        if self.joints is None:
            return None
        state: NDArray[np.float32] = observation.state
        return RobotState(
            observation.timestamp,
            observation.timestamp,
            float(state[self.force]) if self.force is not None else 0.0,
            tuple(float(state[n]) for n in self.joints),
            tuple(float(state[n]) for n in self.pose) if self.pose else (0.0,) * _POSE,
        )

    def moving_state(
        self, observation: Observation, before: RobotState | None
    ) -> RobotState | None:
        """As `robot_state`, with joint speeds: those that the client tells.

        A client that tells none (LeRobot's) is known to move where its last state was just before.
        """
        state = self.robot_state(observation)
        if state is None or self.joints is None:
            return None
        if (told := observation.speeds) is not None:
            return replace(state, speeds=tuple(float(told[n]) for n in self.joints))
        if before is None:
            return state
        span_s = state.origin_timestamp - before.origin_timestamp
        if not _SPEED_S[0] <= span_s <= _SPEED_S[1]:
            return state
        pairs = zip(state.joints, before.joints, strict=True)
        return replace(state, speeds=tuple((a - b) / span_s for a, b in pairs))

    def action_names(self, columns: int) -> tuple[str, ...]:
        """The client's names of action columns: its joints, and its gripper where it has one.

        Empty where the joints cannot be told.
        """
        if self.joints is None:
            return ()
        names = tuple(self.names[n] for n in self.joints)
        if columns > _JOINTS and self.gripper is not None:
            names += (self.names[self.gripper],)
        return names


def check_space(space: ActionSpace, places: StatePlaces) -> None:
    """ServingError("bad_policy") where a client with these values cannot do what a policy says."""
    if space == "pose_delta":
        raise ServingError(
            "bad_policy",
            "the policy moves the tool by changes of its pose, and clients move joints: "
            "run it with receiver/main.py",
        )
    if space == "joint_delta" and places.joints is None:
        raise ServingError(
            "bad_policy",
            "the policy gives changes of six joints, and the client's state has not six: "
            f"{', '.join(places.names) or 'nothing'}",
        )


def joint_targets(
    actions: NDArray[np.float32], space: ActionSpace, robot: RobotState | None, columns: int
) -> NDArray[np.float32]:
    """A policy's rows (H, A) as targets (H, columns) that a client can go to.

    Deltas are changes over one row each: row k ends at the state plus the sum of rows 0 to k.
    Values beyond `columns` (a gripper that the client does not have) are left out.
    """
    targets = actions[:, :columns].astype(np.float64)
    if space == "joint_delta":
        if robot is None:
            raise ServingError("failed", "the policy gives changes, and there is no robot state")
        targets[:, :_JOINTS] = np.cumsum(targets[:, :_JOINTS], axis=0) + np.asarray(robot.joints)
    return targets.astype(np.float32)


def at_tick_ends(
    targets: NDArray[np.float32], robot: RobotState | None, dt: float, period_s: float
) -> NDArray[np.float32]:
    """Targets (H, columns) as a client with control ticks of `period_s` is to execute them.

    A policy's row k says where the arm should be (k + 1) `dt` after the observation. A client goes
    to row 0 in the tick that begins with the observation, and follows the others `dt` apart: so row
    k must say where to be k `dt` after the end of that tick. Ticks of `dt` or longer, and those of
    an unknown length (0.0), leave the rows as they are; shorter ones would be ahead of the motion
    by the difference.
    """
    if not 0.0 < period_s < dt or robot is None:
        return targets
    start = targets[0].copy()  # of what is not measured, the first row is all that is known
    start[:_JOINTS] = robot.joints
    before = np.concatenate([start[None], targets[:-1]])
    shifted: NDArray[np.float32] = before + np.float32(period_s / dt) * (targets - before)
    return shifted
