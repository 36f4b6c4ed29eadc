"""Third stage: a flow-matching head learns to sample chunks, on features of the slow half."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from policies.flow.config import FlowConfig, check_base
from policies.flow.head import FlowHead
from policies.flow.policy import FlowPolicy
from policies.flow.sampling import sample
from policies.flow.storing import empty_parts, save_flow
from policies.qwen_vla import load_policy
from policies.qwen_vla.policy import QwenVlaPolicy
from policies.qwen_vla.sensor_encoder import SensorEncoder
from scripts.training.act import Batch, Episodes, settle
from scripts.training.data import read_traces
from scripts.training.errors import TipMetric
from scripts.training.loop import Report, Schedule, descend
from scripts.training.record import Record, read_record
from scripts.training.run import encoded, goals_of, split_traces
from scripts.training.small import without_dropout

if TYPE_CHECKING:
    from scripts.train_flow import FlowOptions

__all__ = ["FlowTrainer", "Scales", "measured_scales", "train_flow"]

_JUDGED_BATCHES = 8
_MEASURED_BATCHES = 32
# A row that hardly moves is not made loud: less is not seen at the tip.
_LEAST_SCALE_DEG = 0.01


@dataclass(frozen=True, slots=True)
class Scales:
    """Where the rows lie, less the joints that they begin at: both (H, 6) in degrees."""

    center_deg: Tensor
    scale_deg: Tensor


def measured_scales(batches: Iterable[Batch]) -> Scales:
    """Mean and standard deviation of each value of a chunk, over the rows that are examples."""
    # Of each batch only what is needed: its windows are large.
    parts = [(b.rows_deg - b.start_deg.unsqueeze(1), b.valid.unsqueeze(2)) for b in batches]
    deltas, weights = (torch.cat(part).double() for part in zip(*parts, strict=True))
    count = weights.sum(dim=0).clamp(min=1.0)
    center = (deltas * weights).sum(dim=0) / count
    spread = ((deltas - center).square() * weights).sum(dim=0) / count
    return Scales(center.float(), spread.sqrt().clamp(min=_LEAST_SCALE_DEG).float())


class FlowTrainer(nn.Module):
    """The head and its sensor encoder, trainable.

    Args:
        sensor: begins as the base policy's, or anew.
        head: the same of its fusion and decoder.
        scales: of the rows.
        metric: what errors do at the tip.
        draws: how often each sample is made noisy; the encoder looks at it once.
    """

    def __init__(
        self,
        sensor: SensorEncoder,
        head: FlowHead,
        scales: Scales,
        metric: TipMetric,
        draws: int = 4,
    ) -> None:
        super().__init__()
        self.sensor, self.head = sensor, head
        self.metric, self.draws = metric, draws
        self.register_buffer("center", scales.center_deg)
        self.register_buffer("scale", scales.scale_deg)
        self.center: Tensor
        self.scale: Tensor
        # An error of 1 in all values of a row, at the tip: each row counts as much as the others.
        typical = (metric.matrix.square().sum(dim=0) * scales.scale_deg.square()).sum(dim=1)
        self.register_buffer("typical_mm", typical.sqrt())
        self.typical_mm: Tensor

    def memory(self, batch: Batch) -> Tensor:
        """Tokens (B, 1, hidden)."""
        return self.head.memory(batch.features.unsqueeze(1), self.sensor(batch.windows))

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean square of the velocity's error, weighed by what it does at the tip.

        Any such weighing leaves the flow that has the smallest loss where it is; it says what is
        learned first.
        """
        many = self.draws
        memory = self.memory(batch).repeat(many, 1, 1)
        rows = (batch.rows_deg - batch.start_deg.unsqueeze(1) - self.center) / self.scale
        rows = rows.repeat(many, 1, 1)
        # What came after a push is no example, and must not be seen by rows that are. One row at
        # least is seen, or there is nothing to attend to.
        unknown = ~batch.valid.repeat(many, 1)
        unknown[:, 0] = False
        tau = torch.rand(len(rows), generator=generator)
        noise = torch.randn(rows.shape, generator=generator)
        wrong = self.metric(self.head.errors(rows, memory, tau, noise, unknown) * self.scale)
        length = wrong.square().sum(dim=2) / self.typical_mm.square()
        # What comes soon is executed most often, as for the direct head.
        share = 1.0 / torch.sqrt(1.0 + torch.arange(rows.shape[1]))
        weights = share * batch.valid.repeat(many, 1)
        return (length * weights).sum() / weights.sum()

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Rows (B, H, 6) in degrees, sampled freely."""
        memory = self.memory(batch)
        shape = (len(batch.features), *self.scale.shape)

        def velocity(rows: Tensor, tau: float) -> Tensor:
            return self.head.velocity(rows, torch.full((len(rows),), tau), memory)

        rows = sample(velocity, torch.randn(shape, generator=generator))
        return batch.start_deg.unsqueeze(1) + self.center + self.scale * rows

    def learn(
        self,
        episodes: Episodes,
        kept: Sequence[Batch],
        schedule: Schedule,
        path: Path,
        report: Report,
        every: int = 250,
    ) -> None:
        """Train from where `path` was left; a report every so many steps."""

        def draw(step: int) -> Batch:
            # As the direct head's: it sees the same ticks in the same order.
            return episodes.at_step(step, schedule.batch)

        def loss_of(step: int, batch: Batch) -> Tensor:
            # The encoder begins as the base's, which has learned what its values are like.
            settle(self)
            return self.loss(batch, torch.Generator().manual_seed(step))

        def judge() -> dict[str, float]:
            return self.judge(kept)

        descend(self, schedule, draw, loss_of, judge, path, report, every)

    @torch.no_grad()
    def judge(self, kept: Sequence[Batch]) -> dict[str, float]:
        """Median distance in mm from where the tip should be, as of the direct head; the loss."""
        self.eval()
        generator = torch.Generator().manual_seed(0)
        first, every, losses = [], [], []
        for batch in kept:
            distance = self.metric(self(batch, generator) - batch.rows_deg)[..., :3].norm(dim=2)
            first.append(distance[:, 0][batch.valid[:, 0]])
            every.append(distance[batch.valid])
            losses.append(self.loss(batch, generator).item())
        return {
            "kept_loss": float(np.mean(losses)),
            "first_mm": float(torch.cat(first).median()),
            "first_mm_p95": float(torch.cat(first).quantile(0.95)),
            "rows_mm": float(torch.cat(every).median()),
        }


def train_flow(options: FlowOptions) -> Iterator[str]:
    """Train a flow head, and write it; gives lines for a person to read."""
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    options.work.mkdir(parents=True, exist_ok=True)
    base = load_policy(options.base, device="cpu", keep_plain=True)
    check_base(base.config)
    traces = split_traces(read_traces(options.data, base.config.views), options.kept)
    yield f"{len(traces.learned)} episodes to learn from, {len(traces.kept)} to judge by"
    metric = TipMetric(goals_of(traces.learned).mean(dim=0).numpy(), options.tool_mm)
    episodes = []
    for given in (traces.learned, traces.kept):
        # Where nothing moves there is nothing to learn of acting.
        part = [trace for trace in given if trace.moves]
        features, looks = encoded(base, part)
        # A tensor made in inference mode cannot be learned from.
        own = features.clone()
        episodes.append(
            Episodes(
                base.config,
                part,
                own,
                looks.trace,
                looks.seen_s,
                options.lag_s,
                base.fast.action_expert,
            )
        )
    yield "features are there"
    learned, judged = episodes
    scales = measured_scales(_drawn(learned, options.batch, _MEASURED_BATCHES, seed=1))
    trainer = _trainer(base, scales, metric, options)
    kept = list(_drawn(judged, options.batch, _JUDGED_BATCHES, seed=0))
    schedule = Schedule(options.steps, options.batch, options.rate)
    with Record(options.work, "flow", options.steps) as record:
        # Another base's features are others: a head for it begins anew.
        path = options.work / f"flow-{base.spec.identity[:12]}.pt"
        trainer.learn(learned, kept, schedule, path, record)
    figures = trainer.judge(kept)
    yield ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    save_flow(_policy(base, trainer), options.out, options.base)
    yield f"flow head  {options.out}"
    picture = options.work / "flow.png"
    draw(options.work, picture)
    yield f"picture  {picture}"


def _trainer(
    base: QwenVlaPolicy, scales: Scales, metric: TipMetric, options: FlowOptions
) -> FlowTrainer:
    torch.manual_seed(options.seed)
    sensor, head = empty_parts(base.config)
    nn.init.normal_(head.pos_embed, std=0.5)
    fast = base.fast
    assert fast.sensor_encoder is not None  # by check_base
    sensor.load_state_dict(fast.sensor_encoder.state_dict())
    if options.begin == "base":
        head.begin_as(fast.action_expert)
    if hasattr(head, "goal_readout"):
        head.goal_readout.load_state_dict(fast.action_expert.goal_readout.state_dict())
    for module in (sensor, head):
        without_dropout(module)
    return FlowTrainer(sensor, head, scales, metric, options.draws)


def _policy(base: QwenVlaPolicy, trainer: FlowTrainer) -> FlowPolicy:
    """The policy with the weights as they are; they are not to be trained any further."""
    flow = FlowConfig(
        center_deg=tuple(tuple(row) for row in trainer.center.tolist()),
        scale_deg=tuple(tuple(row) for row in trainer.scale.tolist()),
    )
    return FlowPolicy(base, trainer.sensor, trainer.head, flow)


def _drawn(episodes: Episodes, size: int, count: int, seed: int) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    return (episodes.draw(size, rng) for _ in range(count))


def draw(folder: Path, path: Path) -> None:
    """Draw the loss and the errors of the stage into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    own = [entry for entry in read_record(folder) if entry["stage"] == "flow"]
    steps = [entry["step"] for entry in own]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4))
    left.plot(steps, [entry["loss"] for entry in own], color="0.6", label="training")
    left.plot(steps, [entry["kept_loss"] for entry in own], label="episodes not trained on")
    left.set(title="Flow head: error of the velocity", ylabel="mean square [normalised]")
    for name, label in (
        ("first_mm", "first row, median"),
        ("first_mm_p95", "first row, 95 %"),
        ("rows_mm", "all rows, median"),
    ):
        right.plot(steps, [entry[name] for entry in own], label=label)
    right.set(title="Flow head: sampled rows, episodes not trained on")
    right.set(ylabel="error at the tip [mm]")
    for axis in (left, right):
        axis.set(xlabel="step", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
