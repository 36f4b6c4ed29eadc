"""Acting can be learned before seeing is: in hindsight it is known what sight would have told.

The fast half is first trained on the goals themselves, in place of features. Once the slow half
sees, the goals it reads out of its features are put where the true ones were: both are linear, so
that one matrix does it, and nothing that was learned is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.config import JOINTS, RobotConfig

__all__ = ["SIGHT_DEG", "in_place_of_features", "take_features", "take_goals"]

SIGHT_DEG = 0.04
"""What sight gets wrong of a joint angle, about: a fifth of a millimetre at the needle's tip."""


def in_place_of_features(goals_deg: Tensor, robot: RobotConfig, width: int, seed: int) -> Tensor:
    """Goals (N, 6) in degrees, made about as wrong as sight, as features (N, width)."""
    generator = torch.Generator().manual_seed(seed)
    seen = goals_deg + SIGHT_DEG * torch.randn(goals_deg.shape, generator=generator)
    features = torch.zeros(len(goals_deg), width)
    features[:, :JOINTS] = (seen - torch.tensor(robot.center_deg)) / torch.tensor(robot.span_deg)
    return features


@torch.no_grad()
def take_goals(expert: ActionExpert, robot: RobotConfig) -> None:
    """Make an expert read goals out of what `in_place_of_features` gives."""
    readout = expert.goal_readout
    readout.weight.zero_()
    readout.weight[:, :JOINTS] = torch.diag(torch.tensor(robot.span_deg))
    readout.bias.copy_(torch.tensor(robot.center_deg))


@torch.no_grad()
def take_features(expert: ActionExpert, goal: nn.Linear, robot: RobotConfig) -> None:
    """Make an expert that acts on goals act on the features that `goal` reads them out of.

    Raises:
        ValueError: the fusion is another than `concat`, which alone takes features as they are.
    """
    if expert.config.fusion != "concat":
        raise ValueError(f"goals cannot stand in for features of fusion {expert.config.fusion}")
    fusion: nn.Linear = expert.fusion_proj
    of_goals = fusion.weight[:, :JOINTS].clone()
    fusion.weight[:, : expert.config.vl_features] = of_goals @ goal.weight
    fusion.bias.add_(of_goals @ goal.bias)
    span = torch.tensor(robot.span_deg)
    expert.goal_readout.weight.copy_(span[:, None] * goal.weight)
    expert.goal_readout.bias.copy_(torch.tensor(robot.center_deg) + span * goal.bias)
