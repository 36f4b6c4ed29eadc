"""The fast half learns to act: on goals in place of features, then on features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.qwen_vla.acting import told_of
from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.config import JOINTS, PolicyConfig
from policies.qwen_vla.sensor_encoder import SensorEncoder
from scripts.training.errors import TipMetric
from scripts.training.loop import Report, Schedule, descend
from scripts.training.traces import OLDEST_LOOK_S, ROW_S, Trace

__all__ = ["ActTrainer", "Batch", "Episodes", "settle"]

# Speeds are told from two states so far apart, and in this share of the samples not at all.
_SPEED_S = 0.05
_SPEEDS_UNKNOWN = 0.08
# From here on normalization is no longer by the batch's own mean and deviation: of 32 samples
# these are off by a fifth, a noise that drowns what is worth tenths of a millimetre.
_SETTLED_STEPS = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """What the fast half gets at some ticks, and what the expert did.

    Attributes:
        features: (B, D).
        windows: (B, T, channels) with the robot's joints, where the policy takes them.
        start_deg: (B, 6) joint angles that the rows begin at.
        rows_deg: (B, H, 6) joint angles as they came to be.
        valid: (B, H) whether a row is an example.
    """

    features: Tensor
    windows: Tensor
    start_deg: Tensor
    rows_deg: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(getattr(self, part.name).to(device) for part in fields(self)))


class Episodes:
    """Draws ticks of traces at random, each with features of a look at an earlier moment.

    How long before is random: the policy is used with features that are fresh and with such that
    are two seconds old, and must not care.

    Args:
        config: of the policy.
        traces: what to draw from.
        features: (looks, D) of the slow half.
        trace_of: (looks,) which trace each look is of.
        seen_s: (looks,) when in it.
        lag_s: by how much the arm is behind its targets: rows are where it was so much later.
        expert: reads goals out of features, where the policy is told them.
    """

    def __init__(
        self,
        config: PolicyConfig,
        traces: Sequence[Trace],
        features: Tensor,
        trace_of: NDArray[np.int64],
        seen_s: NDArray[np.float64],
        lag_s: float,
        expert: ActionExpert | None = None,
    ) -> None:
        self._config, self._traces, self._features = config, traces, features
        self._goals_deg = None if expert is None else _goals_deg(expert, features)
        self._lag_s = lag_s
        looks: list[list[tuple[float, int]]] = [[] for _ in traces]
        for look, (number, at_s) in enumerate(zip(trace_of, seen_s, strict=True)):
            looks[number].append((float(at_s), look))
        self._looks = looks
        self._usable = [n for n, trace in enumerate(traces) if looks[n] and self._teaches(trace)]
        if not self._usable:
            raise ValueError("there is nothing to learn acting from: no episode moves")
        dt = config.action.dt
        if abs(dt - ROW_S) > 1e-6 and any(len(trace.ticks_s) for trace in traces):
            raise ValueError(
                f"demonstrations say what to do every {ROW_S:g} s, and the policy's rows are "
                f"{dt:g} s apart: train on sessions"
            )
        spans = np.array([traces[n].times_s[-1] for n in self._usable])
        self._weights = spans / spans.sum()

    def _teaches(self, trace: Trace) -> bool:
        """Whether there is a tick that is an example."""
        drawn = (trace.times_s >= trace.first_s) & (trace.times_s < self._last_s(trace))
        return trace.moves and bool((drawn & ~trace.excluded).any())

    def _last_s(self, trace: Trace) -> float:
        """The last tick for which there is a row."""
        return float(trace.times_s[-1]) - self._config.action.dt - self._lag_s

    def draw(self, size: int, rng: np.random.Generator) -> Batch:
        """A batch of ticks."""
        parts = [self._tick(rng) for _ in range(size)]
        looks, windows, starts, rows, valid = zip(*parts, strict=True)
        return Batch(
            self._features[list(looks)],
            torch.from_numpy(np.stack(windows)),
            torch.from_numpy(np.stack(starts)),
            torch.from_numpy(np.stack(rows)),
            torch.from_numpy(np.stack(valid)),
        )

    def at_step(self, step: int, size: int) -> Batch:
        """The batch of a step of training, the same each time."""
        return self.draw(size, np.random.default_rng((step, 0xAC7)))

    def _tick(
        self, rng: np.random.Generator
    ) -> tuple[
        int, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]
    ]:
        number = int(self._usable[rng.choice(len(self._usable), p=self._weights)])
        trace = self._traces[number]
        at_s, rows, valid = self._example(trace, rng)
        fresh = [look for seen, look in self._looks[number] if at_s - OLDEST_LOOK_S <= seen <= at_s]
        before = [look for seen, look in self._looks[number] if seen <= at_s]
        look = int(rng.choice(fresh or before[-1:] or [self._looks[number][0][1]]))
        joints = _at(trace, np.array([at_s]))[0]
        goal = None if self._goals_deg is None else self._goals_deg[look]
        return look, self._window(trace, at_s, joints, goal, rng), joints, rows, valid

    def _example(
        self, trace: Trace, rng: np.random.Generator
    ) -> tuple[float, NDArray[np.float32], NDArray[np.bool_]]:
        """A moment, the rows (H, 6) that were right then, and which of them (H,) are known."""
        config = self._config
        count = config.expert.rows
        if len(trace.ticks_s):
            usable = np.flatnonzero(trace.ticks_s >= trace.first_s - 1e-9)
            tick = int(rng.choice(usable if len(usable) else len(trace.ticks_s)))
            told = trace.rows_deg[tick][:count]
            rows = np.concatenate((told, np.repeat(told[-1:], count - len(told), axis=0)))
            return float(trace.ticks_s[tick]), rows, np.arange(count) < len(told)
        while True:
            at_s = float(rng.uniform(trace.first_s, self._last_s(trace)))
            if not trace.excluded[_place(trace.times_s, at_s)]:
                break
        steps = np.arange(1, count + 1, dtype=np.float64)
        due = np.asarray(at_s + self._lag_s + config.action.dt * steps, dtype=np.float64)
        left_out = trace.times_s[trace.excluded & (trace.times_s > at_s)]
        ends = left_out[0] if len(left_out) else trace.times_s[-1]
        return at_s, _at(trace, due), due <= ends + 1e-9

    def _window(
        self,
        trace: Trace,
        at_s: float,
        joints: NDArray[np.float32],
        goal_deg: NDArray[np.float32] | None,
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        config = self._config
        assert config.sensor is not None
        channels = config.sensor_channels
        window = np.empty((config.sensor.window, config.sensor.channels), np.float32)
        given = trace.window(at_s, config.sensor.window, rng)
        if given.shape[1] != channels:
            raise ValueError(
                f"{trace.source}: {given.shape[1]} values in a sample, the policy takes {channels}"
            )
        window[:, :channels] = _as_long(given, config.sensor.window)
        if config.robot is not None:
            before = _at(trace, np.array([at_s - _SPEED_S]))[0]
            # Not every runtime knows speeds, and none does at first.
            known = rng.random() >= _SPEEDS_UNKNOWN and at_s >= trace.times_s[0] + _SPEED_S
            speeds = (joints - before) / _SPEED_S if known else ()
            window[:, channels:] = told_of(config.robot, joints, speeds, goal_deg)
        return window


@torch.no_grad()
def _goals_deg(expert: ActionExpert, features: Tensor) -> NDArray[np.float32] | None:
    """Goals (looks, 6) as an expert reads them out of features (looks, D); None: it reads none."""
    goals = expert.goal_deg(features.unsqueeze(1).to(expert.pos_embed))
    return None if goals is None else goals.cpu().numpy()


def _as_long(window: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """The window, its first sample repeated where it is too short."""
    if len(window) >= samples:
        return window
    return np.concatenate((np.repeat(window[:1], samples - len(window), axis=0), window))


def _place(times: NDArray[np.float64], at_s: float) -> int:
    return min(max(int(np.searchsorted(times, at_s, side="right")) - 1, 0), len(times) - 1)


def _at(trace: Trace, moments: NDArray[np.float64]) -> NDArray[np.float32]:
    """Joint angles (N, 6) at some moments, between those measured."""
    columns = [np.interp(moments, trace.times_s, trace.joints_deg[:, j]) for j in range(JOINTS)]
    return np.stack(columns, axis=1).astype(np.float32)


def settle(model: nn.Module) -> None:
    """Let batch normalization use what it has learned of means and deviations."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class ActTrainer(nn.Module):
    """The fast parts, trainable.

    The heads are as the checkpoint has them; a gripper column, where there is one, stays at zero.
    """

    def __init__(self, config: PolicyConfig, sensor: SensorEncoder, expert: ActionExpert) -> None:
        super().__init__()
        self.config, self.sensor, self.expert = config, sensor, expert

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.expert.pos_embed.device

    def forward(self, batch: Batch) -> Tensor:
        """Rows (B, H, 6) in degrees."""
        _, delta = self.expert(batch.features.unsqueeze(1), self.sensor(batch.windows))
        rows: Tensor = delta[..., :JOINTS]
        start = batch.start_deg.unsqueeze(1)
        if self.config.action.space == "joint_delta":
            return start + rows.cumsum(dim=1)
        return start + rows if self.config.robot is not None else rows

    def learn(
        self,
        episodes: Episodes,
        kept: Sequence[Batch],
        schedule: Schedule,
        metric: TipMetric,
        path: Path,
        report: Report,
        every: int = 250,
    ) -> None:
        """Train from where `path` was left; a report every so many steps."""
        # Each row's part in the loss: what comes soon is executed most often.
        share = 1.0 / (1.0 + torch.arange(self.config.expert.rows, device=self.device))

        def draw(step: int) -> Batch:
            return episodes.at_step(step, schedule.batch)

        def loss_of(step: int, drawn: Batch) -> Tensor:
            if step >= _SETTLED_STEPS:
                settle(self)
            batch = drawn.to(self.device)
            length = metric(self(batch) - batch.rows_deg).square().sum(dim=2)
            weights = share * batch.valid
            return (torch.sqrt(length + 0.01) * weights).sum() / weights.sum()

        def judge() -> dict[str, float]:
            return self.judge(kept, metric)

        descend(self, schedule, draw, loss_of, judge, path, report, every)

    @torch.no_grad()
    def judge(self, kept: Sequence[Batch], metric: TipMetric) -> dict[str, float]:
        """Median distance in mm from where the tip should be: first row, and all rows."""
        self.eval()
        first, every = [], []
        for batch in (one.to(self.device) for one in kept):
            distance = metric(self(batch) - batch.rows_deg)[..., :3].norm(dim=2)
            first.append(distance[:, 0][batch.valid[:, 0]])
            every.append(distance[batch.valid])
        return {
            "first_mm": float(torch.cat(first).median()),
            "first_mm_p95": float(torch.cat(first).quantile(0.95)),
            "rows_mm": float(torch.cat(every).median()),
        }
