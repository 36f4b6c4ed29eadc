"""First stage: the slow half learns to see where the episode ends well."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policies.qwen_vla.config import JOINTS, RobotConfig
from scripts.training.errors import TipMetric
from scripts.training.looks import Looks
from scripts.training.towers import TrainableSlowHalf

__all__ = ["LookTrainer", "Schedule", "batch_at", "learning_rate", "load_state", "save_state"]


@dataclass(frozen=True)
class Schedule:
    """How one stage is trained."""

    steps: int
    batch: int
    rate: float
    warmup: int = 200
    decay: float = 0.02

    def at(self, step: int) -> float:
        """The learning rate of a step: warm-up, then a cosine down to a hundredth."""
        return learning_rate(step, self.steps, self.warmup, self.rate)


def learning_rate(step: int, steps: int, warmup: int, rate: float) -> float:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    if step < warmup:
        return rate * (step + 1) / warmup
    part = (step - warmup) / max(steps - warmup, 1)
    return rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0))))


def batch_at(step: int, count: int, size: int) -> Tensor:
    """The indices (size,) of a step: each pass over all `count` is in another order.

    A function of the step alone, so that training that was stopped goes on as if it had not been.
    """
    places = range(step * size, (step + 1) * size)
    orders = {
        number: torch.randperm(count, generator=torch.Generator().manual_seed(number))
        for number in {place // count for place in places}
    }
    return torch.stack([orders[place // count][place % count] for place in places])


class LookTrainer(nn.Module):
    """The slow half with a linear read-out of the goal."""

    def __init__(self, slow: TrainableSlowHalf, width: int, robot: RobotConfig) -> None:
        super().__init__()
        self.slow = slow
        self.goal = nn.Linear(width, JOINTS)
        self.register_buffer("home_deg", torch.tensor(robot.center_deg))
        self.register_buffer("span_deg", torch.tensor(robot.span_deg))

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
        report: Callable[[int, dict[str, float]], None],
        every: int = 250,
    ) -> None:
        """Train from where `path` was left; a report every so many steps."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, schedule.rate, weight_decay=schedule.decay)
        begin = load_state(path, self, optimizer)
        running, since, began = 0.0, begin, time.monotonic()
        for step in range(begin, schedule.steps):
            self.train()
            picked = batch_at(step, len(looks.levels), schedule.batch)
            for group in optimizer.param_groups:
                group["lr"] = schedule.at(step)
            _, goals = self(_varied(looks.levels[picked], torch.Generator().manual_seed(step)))
            error = metric(goals - looks.goals_deg[picked])
            # The root keeps far-off samples, such as all are at first, from drowning the rest.
            loss = torch.sqrt(error.square().sum(dim=1) + 0.04).mean()
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            running += loss.item()
            if (step + 1) % every == 0 or step + 1 == schedule.steps:
                save_state(path, self, optimizer, step + 1)
                tip = self.judge(kept, metric)
                seconds = time.monotonic() - began
                report(
                    step + 1,
                    {
                        "loss": running / (step + 1 - since),
                        "tip_mm": float(tip.median()),
                        "tip_mm_p95": float(tip.quantile(0.95)),
                        "samples_per_s": (step + 1 - since) * schedule.batch / seconds,
                    },
                )
                running, since, began = 0.0, step + 1, time.monotonic()

    @torch.no_grad()
    def judge(self, looks: Looks, metric: TipMetric) -> Tensor:
        """How far (N,) in mm the tip would be from where it should."""
        self.eval()
        errors = []
        for part in torch.split(torch.arange(len(looks.levels)), 64):
            _, goals = self(looks.levels[part])
            errors.append(metric(goals - looks.goals_deg[part])[:, :3].norm(dim=1))
        return torch.cat(errors)

    @torch.no_grad()
    def features(self, looks: Looks) -> Tensor:
        """Features (N, width) of all looks."""
        self.eval()
        parts = torch.split(torch.arange(len(looks.levels)), 64)
        return torch.cat([self.slow(looks.levels[part]) for part in parts])


def _varied(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Other light and contrast: (batch, patches, values) float levels."""
    count = len(levels)
    gain = 1 + 0.1 * torch.randn((count, 1, 1), generator=generator)
    shift = 8 * torch.randn((count, 1, 1), generator=generator)
    return ((levels.float() - 128) * gain + (128 + shift)).clamp(0, 255)


def save_state(path: Path, model: nn.Module, optimizer: Any, step: int) -> None:
    """Write everything that training goes on from, whole or not at all."""
    draft = path.with_name(f".{path.name}.part")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(state, draft)
    draft.replace(path)


def load_state(path: Path, model: nn.Module, optimizer: Any) -> int:
    """The step to go on from; 0 where nothing was trained yet."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
