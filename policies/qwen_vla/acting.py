"""The fast half of a policy by itself: needs nothing of the backbone but its features."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from common.kinematics import flange_transform
from common.wire import RobotState
from policies.base import ActionChunk, PolicyError, PolicySpec
from policies.qwen_vla.config import JOINTS, NEAR_MM, PolicyConfig, RobotConfig
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.runner import FastRunner

__all__ = ["FastHalf", "count", "fast_spec", "start_deg", "told_of", "window_of"]

# A turn of the tool counts as what it moves a point so far up the tool by.
_LEVER_MM = 20.0


def fast_spec(config: PolicyConfig, device: torch.device, identity: str) -> PolicySpec:
    """What can be said of a policy without its backbone: no size of pictures, no parameters."""
    return PolicySpec(
        name=f"{config.name} ({config.expert.fusion})",
        views=config.views,
        image_size=(0, 0),
        sensor_window=config.sensor.window if config.sensor else 0,
        sensor_channels=config.sensor_channels,
        rows=config.expert.rows,
        columns=config.action.columns,
        space=config.action.space,
        dt=config.action.dt,
        task=config.task,
        fusion=config.expert.fusion,
        device=str(device),
        identity=identity,
    )


def count(parameters: Iterable[Tensor]) -> int:
    """How many values there are in all."""
    return sum(parameter.numel() for parameter in parameters)


def told_of(
    config: RobotConfig,
    joints_deg: ArrayLike,
    speeds_deg_s: ArrayLike,
    goal_deg: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """What a policy is told of a robot: (channels,).

    Args:
        config: what it is told.
        joints_deg: (6,).
        speeds_deg_s: (6,), or none.
        goal_deg: (6,) where the episode is to end, as features say; where `tool_mm` is given.
    """
    told = (np.asarray(joints_deg, np.float64) - config.center_deg) / config.span_deg
    if config.speed_deg_s:
        speeds = np.asarray(speeds_deg_s, np.float64)
        known = speeds.shape == (JOINTS,) and np.isfinite(speeds).all()
        told = np.append(told, speeds / config.speed_deg_s if known else np.zeros(JOINTS))
    if config.tool_mm:
        assert goal_deg is not None
        off_mm = _from_goal(joints_deg, goal_deg, config.tool_mm)
        told = np.append(told, np.arcsinh(off_mm / NEAR_MM))
    return told.astype(np.float32)


def _from_goal(
    joints_deg: ArrayLike, goal_deg: ArrayLike, tool_mm: ArrayLike
) -> NDArray[np.float64]:
    """Where the tool is in its own frame at the goal: (6,) mm, its tip and a turn of its axis."""
    tool = np.asarray(tool_mm, np.float64)
    (turned, at), (goal, there) = (flange_transform(angles) for angles in (joints_deg, goal_deg))
    tip = (at + turned @ tool) - (there + goal @ tool)
    axis = _LEVER_MM * (turned[:, 2] - goal[:, 2])
    return np.concatenate((goal.T @ tip, goal.T @ axis))


def start_deg(config: PolicyConfig, robot: RobotState | None) -> NDArray[np.float32] | None:
    """The joint angles (6,) in degrees that rows begin at.

    None where the policy is told nothing of the robot: its rows begin at zeros.

    Raises:
        PolicyError: no robot was seen, or its angles are not six finite numbers.
    """
    if config.robot is None:
        return None
    if robot is None:
        raise PolicyError("the policy needs the robot's joint angles, and no robot was seen")
    joints = np.array(robot.joints, dtype=np.float32)
    if joints.shape != (JOINTS,) or not np.isfinite(joints).all():
        raise PolicyError(f"the robot's joint angles must be {JOINTS} finite numbers")
    return joints


def window_of(
    config: PolicyConfig,
    sensor: NDArray[np.float32] | None,
    robot: RobotState | None,
    goal_deg: NDArray[np.float32] | None = None,
) -> Tensor | None:
    """A sensor window (1, T, channels) with what the policy is told of the robot.

    Args:
        config: the policy's.
        sensor: (T, channels of the sensor itself), oldest sample first, T at least 1.
        robot: whose joints are told, where the policy is told of them; `start_deg` checks it.
        goal_deg: (6,) where the episode is to end, where the policy reads that.

    Returns:
        A copy on the CPU; None where the policy takes no sensor.

    Raises:
        PolicyError: no window, one of another shape, or values that are not finite.
    """
    if config.sensor is None:
        return None
    if sensor is None:
        raise PolicyError(f"fusion {config.expert.fusion} needs a sensor window")
    channels = config.sensor_channels
    if sensor.ndim != 2 or sensor.shape[0] < 1 or sensor.shape[1] != channels:
        raise PolicyError(f"a sensor window must be (samples, {channels}), not {sensor.shape}")
    if not np.isfinite(sensor).all():
        raise PolicyError("the sensor window holds values that are not finite")
    # A copy: the window may be a view of a ring that goes on, and torch wants it writable.
    window = np.empty((1, len(sensor), config.sensor.channels), np.float32)
    window[0, :, :channels] = sensor
    if config.robot is not None and robot is not None:
        window[0, :, channels:] = told_of(config.robot, robot.joints, robot.speeds, goal_deg)
    return torch.from_numpy(window)


class FastHalf:
    """Acts on features, wherever they were computed.

    Args:
        config: the policy's.
        spec: what the whole policy takes and gives.
        plain: the fast parts as modules; may be None where there is a runner.
        runner: what evaluates the fast parts; by default the modules do it themselves.
    """

    def __init__(
        self,
        config: PolicyConfig,
        spec: PolicySpec,
        plain: FastParts | None,
        runner: FastRunner | None,
    ) -> None:
        if plain is None and runner is None:
            raise ValueError("a fast half needs its weights in one form at least")
        self.config = config
        self._plain, self._runner, self._spec = plain, runner, spec
        if runner is not None:
            self._readout = runner.goal_readout
        else:
            self._readout = getattr(self.fast.action_expert, "goal_readout", None)
        self._device = self.fast.action_expert.pos_embed.device if runner is None else runner.device

    @property
    def fast(self) -> FastParts:
        """The plain fast parts; PolicyError where the policy was loaded without them."""
        if self._plain is None:
            raise PolicyError("the policy was loaded to run only; load it with keep_plain=True")
        return self._plain

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._spec

    @torch.inference_mode()
    def act(
        self,
        features: Tensor,
        sensor: NDArray[np.float32] | None,
        robot: RobotState | None = None,
        previous: ActionChunk | None = None,
    ) -> ActionChunk:
        """Turn features and a sensor window into a chunk.

        Args:
            features: what `encode` returned.
            sensor: (T, channels), oldest sample first, T at least 1, resampled to the trained
                length; None with fusion `none` only.
            robot: where the robot is; not used where the configuration says nothing of it.
            previous: not used by this policy.

        Raises:
            PolicyError: no window or no robot where one is needed, a wrong shape, or values not
                finite.
        """
        joints = start_deg(self.config, robot)
        window = window_of(self.config, sensor, robot, self.goal_deg(features))
        delta = self._evaluate(features, window).float().cpu().numpy()
        actions = delta.copy()
        if joints is not None:
            actions[:, :JOINTS] += joints
        if not np.isfinite(actions).all():
            raise PolicyError("the policy gave values that are not finite: do not use the chunk")
        return ActionChunk(actions=actions, delta=delta)

    def blank(self) -> Tensor:
        """Features of nothing, to run `act` with before it is needed: the first pass is slow."""
        return torch.zeros(1, 1, self.config.expert.vl_features, device=self._device)

    def unpack(self, data: bytes) -> Tensor:
        """The features that `pack` made bytes of; PolicyError for anything else."""
        try:
            features: Tensor = load(data)["features"].to(self._device)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise PolicyError(f"not features of a policy: {error}") from None
        return features

    def goal_deg(self, features: Tensor) -> NDArray[np.float32] | None:
        """Joint angles (6,) at which the episode is to end, read out of features.

        None where the policy reads none; PolicyError where they are not finite.
        """
        if self._readout is None:
            return None
        weight = next(self._readout.parameters())
        goal: NDArray[np.float32] = (
            self._readout(features.to(weight).mean(dim=1))[0].float().cpu().numpy()
        )
        if not np.isfinite(goal).all():
            raise PolicyError("the goal read out of the features is not finite")
        return goal

    def _evaluate(self, features: Tensor, window: Tensor | None) -> Tensor:
        """The delta (rows, columns)."""
        if self._runner is not None:
            return self._runner(features, window)
        weight = self.fast.action_expert.pos_embed
        sensor = None if window is None else window.to(weight)
        delta: Tensor = self.fast(features.to(weight), sensor)[1]
        return delta[0]
