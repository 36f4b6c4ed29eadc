"""A policy whose fast half is told where the robot is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.kinematics import flange_transform
from common.wire import RobotState
from policies.base import AT_REST, PolicyError
from policies.qwen_vla import load_policy, save_policy
from policies.qwen_vla.acting import told_of
from policies.qwen_vla.config import PolicyConfig, RobotConfig, from_json, to_json
from policies.qwen_vla.policy import QwenVlaPolicy
from scripts.training.small import make_small

JOINTS = (21.0, 33.0, -12.0, 2.0, 28.0, 1.0)
ROBOT = dataclasses.replace(AT_REST, joints=JOINTS)


@pytest.fixture(scope="module")
def policy() -> QwenVlaPolicy:
    goals = torch.tensor([JOINTS, HOME]) + torch.arange(2).unsqueeze(1)
    return make_small(("View3", "View4"), goals).policy()


HOME = (25.0, 30.0, -15.0, 0.0, 30.0, 0.0)


def window(samples: int = 65, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((samples, 1026), dtype=np.float32)


def test_the_sensor_alone_is_what_the_runtime_gives(policy: QwenVlaPolicy) -> None:
    assert policy.spec.sensor_channels == 1026
    assert policy.config.sensor is not None
    assert policy.config.sensor.channels == 1044
    assert policy.spec.space == "joint_position"


def test_rows_begin_at_the_robots_joints(policy: QwenVlaPolicy) -> None:
    chunk = policy.act(policy.blank(), window(), ROBOT)
    assert chunk.actions[:, :6] - chunk.delta[:, :6] == pytest.approx(
        np.tile(np.float32(JOINTS), (16, 1)), abs=1e-5
    )
    assert np.array_equal(chunk.actions[:, 6], chunk.delta[:, 6])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_goal_that_is_no_number_gives_no_action(policy: QwenVlaPolicy, value: float) -> None:
    with pytest.raises(PolicyError, match="goal read out of the features"):
        policy.act(torch.full((1, 1, 128), value), window(), ROBOT)


def seen_from(goal_deg: Any, joints_deg: Any) -> Any:
    """The tip, 70 mm before the flange, and the needle's direction, as seen from the goal."""
    (turned, at), (goal, there) = (flange_transform(j) for j in (joints_deg, goal_deg))
    tip = goal.T @ (at + 70.0 * turned[:, 2] - there - 70.0 * goal[:, 2])
    axis = goal.T @ (turned[:, 2] - goal[:, 2])
    return np.arcsinh(np.append(tip, 20.0 * axis) / 0.5)


def test_the_goal_is_read_out_of_the_features(policy: QwenVlaPolicy) -> None:
    robot, readout = policy.config.robot, policy.fast.action_expert.goal_readout
    assert robot is not None
    features = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted = features[0].mean(dim=0) @ readout.weight.T + readout.bias
    assert policy.goal_deg(features) == pytest.approx(wanted.numpy(), abs=1e-4)
    # At the goal there is nothing left to go, whatever the features.
    told = told_of(robot, wanted.numpy(), (), wanted.numpy())
    assert told[-6:] == pytest.approx(np.zeros(6), abs=1e-4)
    away = told_of(robot, np.add(wanted.numpy(), [0, 0, 0, 0, 1, 0]), (), wanted.numpy())
    assert np.abs(away[-6:]).max() > 1.0


def test_the_joints_are_the_last_values_of_each_sample(policy: QwenVlaPolicy) -> None:
    config = policy.config.robot
    assert config is not None
    goal = policy.goal_deg(policy.blank())
    assert goal is not None
    told = np.append((np.array(JOINTS) - config.center_deg) / config.span_deg, np.zeros(6))
    told = np.append(told, seen_from(goal, np.array(JOINTS)))
    whole = np.concatenate((window(), np.tile(told, (65, 1))), axis=1).astype(np.float32)
    with torch.inference_mode():
        delta = policy.fast(policy.blank(), torch.from_numpy(whole)[None])[1][0]
    chunk = policy.act(policy.blank(), window(), ROBOT)
    assert chunk.delta == pytest.approx(delta.numpy(), abs=1e-5)
    moving = dataclasses.replace(ROBOT, speeds=(2.0, 0.0, 1.0, 0.0, 0.0, -1.0))
    assert not np.allclose(policy.act(policy.blank(), window(), moving).delta, chunk.delta)
    elsewhere = dataclasses.replace(ROBOT, joints=tuple(j + 5 for j in JOINTS))
    assert not np.allclose(policy.act(policy.blank(), window(), elsewhere).delta, chunk.delta)


def test_without_a_robot_there_is_no_action(policy: QwenVlaPolicy) -> None:
    with pytest.raises(PolicyError, match="no robot was seen"):
        policy.act(policy.blank(), window(), None)
    lost: list[RobotState] = [
        dataclasses.replace(ROBOT, joints=(float("nan"), *JOINTS[1:])),
        dataclasses.replace(ROBOT, joints=JOINTS[:5]),
    ]
    for robot in lost:
        with pytest.raises(PolicyError, match="6 finite numbers"):
            policy.act(policy.blank(), window(), robot)


def test_it_is_loaded_as_saved_and_runs_the_fast_way(policy: QwenVlaPolicy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", device="cpu")
    assert loaded.config.robot == policy.config.robot
    features = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1))
    for samples in (40, 65):
        expected = policy.act(features, window(samples), ROBOT)
        got = loaded.act(features, window(samples), ROBOT)
        assert got.actions == pytest.approx(expected.actions, abs=1e-4)


def test_files_of_before_say_nothing_of_the_robot() -> None:
    data = json.loads(json.dumps(to_json(PolicyConfig())))
    assert data.pop("robot") is None
    assert from_json(data) == PolicyConfig()


@pytest.mark.parametrize(
    ("center", "span"),
    [((0.0,) * 5, (1.0,) * 5), ((0.0,) * 6, (0.0,) * 6), ((float("inf"),) * 6, (1.0,) * 6)],
)
def test_a_bad_robot_section_is_refused(center: tuple[float, ...], span: tuple[float, ...]) -> None:
    with pytest.raises(PolicyError, match="robot"):
        RobotConfig(center, span)


@pytest.mark.parametrize("tool", [(0.0, 0.0), (0.0, 0.0, float("nan")), (0.0, 0.0, 1e9)])
def test_a_bad_tool_is_refused(tool: tuple[float, ...]) -> None:
    with pytest.raises(PolicyError, match=r"robot\.tool_mm"):
        RobotConfig((0.0,) * 6, (1.0,) * 6, (), tool)


def test_deltas_do_not_begin_at_joints() -> None:
    with pytest.raises(PolicyError, match="joint positions"):
        PolicyConfig(robot=RobotConfig((0.0,) * 6, (1.0,) * 6))
