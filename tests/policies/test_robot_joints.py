"""A policy whose fast half is told where the robot is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.wire import RobotState
from policies.base import AT_REST, PolicyError
from policies.qwen_vla import load_policy, save_policy
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
    assert policy.config.sensor.channels == 1038
    assert policy.spec.space == "joint_position"


def test_rows_begin_at_the_robots_joints(policy: QwenVlaPolicy) -> None:
    chunk = policy.act(policy.blank(), window(), ROBOT)
    assert chunk.actions[:, :6] - chunk.delta[:, :6] == pytest.approx(
        np.tile(np.float32(JOINTS), (16, 1)), abs=1e-5
    )
    assert np.array_equal(chunk.actions[:, 6], chunk.delta[:, 6])


def test_the_joints_are_the_last_values_of_each_sample(policy: QwenVlaPolicy) -> None:
    config = policy.config.robot
    assert config is not None
    told = np.append((np.array(JOINTS) - config.center_deg) / config.span_deg, np.zeros(6))
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


def test_deltas_do_not_begin_at_joints() -> None:
    with pytest.raises(PolicyError, match="joint positions"):
        PolicyConfig(robot=RobotConfig((0.0,) * 6, (1.0,) * 6))
