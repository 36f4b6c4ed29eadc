"""First stage: the slow half learns to see where the episode ends well."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from policies.qwen_vla.config import JOINTS, RobotConfig
from scripts.training.errors import TipMetric
from scripts.training.looks import Looks
from scripts.training.loop import Report, Schedule, batch_at, descend
from scripts.training.towers import TrainableSlowHalf

__all__ = ["LookTrainer"]


class LookTrainer(nn.Module):
    """The slow half with a linear read-out of the goal."""

    def __init__(self, slow: TrainableSlowHalf, width: int, robot: RobotConfig) -> None:
        super().__init__()
        self.slow = slow
        self.goal = nn.Linear(width, JOINTS)
        self.register_buffer("home_deg", torch.tensor(robot.center_deg))
        self.register_buffer("span_deg", torch.tensor(robot.span_deg))

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.goal.weight.device

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Features (batch, width), and goals (batch, 6) in degrees."""
        features = self.slow(levels)
        return features, self.home_deg + self.span_deg * self.goal(features)

    def learn(
        self,
        looks: Looks,
        kept: Looks,
        schedule: Schedule,
        metric: TipMetric,
        path: Path,
        report: Report,
        every: int = 250,
    ) -> None:
        """Train from where `path` was left; a report every so many steps."""

        def draw(step: int) -> Tensor:
            return batch_at(step, len(looks.levels), schedule.batch)

        def loss_of(step: int, picked: Tensor) -> Tensor:
            varied = _varied(looks.levels[picked], torch.Generator().manual_seed(step))
            goals = self(varied.to(self.device))[1]
            error = metric(goals - looks.goals_deg[picked].to(self.device))
            # The root keeps far-off samples, such as all are at first, from drowning the rest.
            return torch.sqrt(error.square().sum(dim=1) + 0.04).mean()

        def judge() -> dict[str, float]:
            tip = self.judge(kept, metric)
            return {"tip_mm": float(tip.median()), "tip_mm_p95": float(tip.quantile(0.95))}

        descend(self, schedule, draw, loss_of, judge, path, report, every)

    @torch.no_grad()
    def judge(self, looks: Looks, metric: TipMetric) -> Tensor:
        """How far (N,) in mm the tip would be from where it should."""
        self.eval()
        errors = []
        for part in torch.split(torch.arange(len(looks.levels)), 64):
            _, goals = self(looks.levels[part].to(self.device))
            wrong = goals.cpu() - looks.goals_deg[part]
            errors.append(metric(wrong)[:, :3].norm(dim=1))
        return torch.cat(errors)

    @torch.no_grad()
    def features(self, looks: Looks) -> Tensor:
        """Features (N, width) of all looks, on the CPU."""
        self.eval()
        parts = torch.split(torch.arange(len(looks.levels)), 64)
        return torch.cat([self.slow(looks.levels[part].to(self.device)).cpu() for part in parts])


def _varied(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Other light and contrast: (batch, patches, values) float levels."""
    count = len(levels)
    gain = 1 + 0.1 * torch.randn((count, 1, 1), generator=generator)
    shift = 8 * torch.randn((count, 1, 1), generator=generator)
    return ((levels.float() - 128) * gain + (128 + shift)).clamp(0, 255)
