"""The stages of training, one after the other, each from where it was left."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from policies.qwen_vla import load_policy, save_policy
from policies.qwen_vla.config import JOINTS, PolicyConfig
from policies.qwen_vla.images import PatchShape
from policies.qwen_vla.policy import QwenVlaPolicy
from scripts.training.act import ActTrainer, Batch, Episodes
from scripts.training.data import read_traces
from scripts.training.errors import TipMetric
from scripts.training.hindsight import in_place_of_features, take_features, take_goals
from scripts.training.look import LookTrainer
from scripts.training.looks import Looks, collect_looks, pictures_at, unseen
from scripts.training.loop import Schedule
from scripts.training.record import Record, draw
from scripts.training.small import make_small, without_dropout
from scripts.training.traces import Trace

if TYPE_CHECKING:
    from scripts.train import TrainOptions

__all__ = ["CannotTrain", "encoded", "goals_of", "split_traces", "train"]

_JUDGED_BATCHES = 8


class CannotTrain(ValueError):
    """The data or the checkpoint does not allow it; one line that says what to do."""


class _Split(NamedTuple):
    """Traces to train on, and to judge by."""

    learned: list[Trace]
    kept: list[Trace]


def train(options: TrainOptions) -> Iterator[str]:
    """Train, and write the checkpoint; gives lines for a person to read."""
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.checkpoint is None:
        yield from _train_small(options)
    else:
        yield from _fine_tune(options)
    picture = options.work / "training.png"
    draw(options.work, picture)
    yield f"picture  {picture}"


def split_traces(traces: Sequence[Trace], share: float) -> _Split:
    """By a digest of the episode, so that it stays where it is when others come in.

    Of a few episodes none may come to be judged by: then the one that is next to it.

    Raises:
        CannotTrain: there are not two that move.
    """
    learned: list[Trace] = []
    kept: list[Trace] = []
    for trace in traces:
        (kept if _digest(trace)[0] < 256 * share else learned).append(trace)
    _lend(learned, kept, 0)
    _lend(kept, learned, -1)
    if not any(trace.moves for trace in learned) or not any(trace.moves for trace in kept):
        raise CannotTrain(
            f"{len(traces)} episodes are too few to train on some and judge by others: it takes "
            "two at least in which the arm moves"
        )
    return _Split(learned, kept)


def _lend(giving: list[Trace], taking: list[Trace], place: Literal[0, -1]) -> None:
    """Where none of the one moves, let it have the first or last of the other, if it can spare it.

    First and last are by digest.
    """
    moving = sorted((trace for trace in giving if trace.moves), key=_digest)
    if len(moving) > 1 and not any(trace.moves for trace in taking):
        lent = moving[place]
        giving[:] = [trace for trace in giving if trace is not lent]
        taking.append(lent)


def _digest(trace: Trace) -> bytes:
    return hashlib.sha256(trace.joints_deg.tobytes() + trace.goal_deg.tobytes()).digest()


def goals_of(traces: Sequence[Trace]) -> Tensor:
    """Where traces end, (N, 6) joint angles."""
    return torch.tensor(np.array([trace.goal_deg for trace in traces]), dtype=torch.float32)


def _first_goals(path: Path, split: _Split) -> Tensor:
    """The goals (N, 6) that training began with: the robot is told of relative to them.

    They stay when it goes on with more demonstrations, or what was learned would mean others.
    """
    if not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        torch.save(goals_of(split.learned), draft)
        draft.replace(path)
    goals: Tensor = torch.load(path, weights_only=True)
    return goals


def _device(name: str) -> torch.device:
    """A device that is there."""
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, ValueError):  # the library raises each of them
        raise CannotTrain(f"--device {name}: there is none here; try cpu") from None


def _train_small(options: TrainOptions) -> Iterator[str]:
    device = _device(options.device)
    split = split_traces(read_traces(options.data, options.views), options.kept)
    yield f"{len(split.learned)} episodes to learn from, {len(split.kept)} to judge by"
    goals = _first_goals(options.work / "goals.pt", split)
    small = make_small(options.views, goals, options.rows, options.seed, options.tool_mm)
    config = small.config
    metric = TipMetric(goals.mean(dim=0).numpy(), options.tool_mm)
    trainer = ActTrainer(config, small.sensor, small.expert).to(device)
    if options.only != "look":
        yield from _feel(options, config, split, trainer, metric)
    if options.only == "feel":
        return
    looks = collect_looks(split.learned, config, PatchShape())
    judged = collect_looks(split.kept, config, PatchShape(), like=looks.grids)
    yield f"{len(looks.levels)} looks to learn from"
    assert config.robot is not None
    look = LookTrainer(small.slow(looks.grids), config.expert.vl_features, config.robot).to(device)
    schedule = Schedule(options.look_steps, options.batch, options.look_rate)
    with Record(options.work, "look", options.look_steps) as record:
        look.learn(looks, judged, schedule, metric, options.work / "look.pt", record)
    if options.only == "look":
        return
    features = (look.features(looks), look.features(judged))
    for module in (look, trainer):
        module.cpu()
    take_features(small.expert, look.goal, config.robot)
    trainer.to(device)
    yield from _act(options, config, split, trainer, features, (looks, judged), metric)
    trainer.cpu()
    save_policy(small.policy(), options.out)
    yield f"checkpoint  {options.out}"


def _feel(
    options: TrainOptions,
    config: PolicyConfig,
    split: _Split,
    trainer: ActTrainer,
    metric: TipMetric,
) -> Iterator[str]:
    """Acting, with the goals themselves for features."""
    assert config.robot is not None
    take_goals(trainer.expert, config.robot)
    parts = []
    for seed, traces in enumerate(split):
        looks = unseen(traces)
        width = config.expert.vl_features
        features = in_place_of_features(looks.goals_deg, config.robot, width, seed)
        parts.append(
            Episodes(
                config,
                traces,
                features,
                looks.trace,
                looks.seen_s,
                options.lag_s,
                trainer.expert,
            )
        )
    kept = _drawn(parts[1], options.batch)
    schedule = Schedule(options.feel_steps, options.batch, options.feel_rate)
    with Record(options.work, "feel", options.feel_steps) as record:
        trainer.learn(parts[0], kept, schedule, metric, options.work / "feel.pt", record)
    yield "goals for features: " + _said(trainer.judge(kept, metric))


def _fine_tune(options: TrainOptions) -> Iterator[str]:
    assert options.checkpoint is not None
    policy = load_policy(
        options.checkpoint, device=options.device, backbone=options.backbone, keep_plain=True
    )
    config = policy.config
    if config.sensor is None:
        raise CannotTrain(f"{options.checkpoint}: without a sensor there is no fast half to train")
    if config.action.space == "pose_delta":
        raise CannotTrain(f"{options.checkpoint}: gives poses; sessions hold examples of joints")
    if len(config.action.columns) < JOINTS:
        raise CannotTrain(f"{options.checkpoint}: gives no six joints, which is what sessions hold")
    split = split_traces(read_traces(options.data, config.views), options.kept)
    yield f"{len(split.learned)} episodes to learn from, {len(split.kept)} to judge by"
    metric = TipMetric(goals_of(split.learned).mean(dim=0).numpy(), options.tool_mm)
    fast = policy.fast
    assert fast.sensor_encoder is not None
    for module in (fast.sensor_encoder, fast.action_expert):
        module.requires_grad_(True)
        without_dropout(module)
    seen = tuple(encoded(policy, part) for part in (split.learned, split.kept))
    yield f"{len(seen[0][1].trace)} looks to learn from"
    yield from _act(
        options,
        config,
        split,
        ActTrainer(config, fast.sensor_encoder, fast.action_expert).to(options.device),
        (seen[0][0], seen[1][0]),
        (seen[0][1], seen[1][1]),
        metric,
        # What was trained from another checkpoint is not to be gone on from.
        f"act-{policy.spec.identity[:12]}.pt",
    )
    for module in (fast.sensor_encoder, fast.action_expert):
        module.eval().requires_grad_(False)
    save_policy(policy, options.out)
    yield f"checkpoint  {options.out}"


def encoded(policy: QwenVlaPolicy, traces: Sequence[Trace]) -> tuple[Tensor, Looks]:
    """Features of all looks by the policy's own slow half."""
    features, numbers, times = [], [], []
    views = policy.config.views
    for number, trace in enumerate(traces):
        for place, seen_s in enumerate(trace.seen_s):
            pictures = dict(zip(views, pictures_at(trace, place, views), strict=True))
            features.append(policy.encode(pictures, policy.config.task)[0, 0].float().cpu())
            numbers.append(number)
            times.append(seen_s)
    looks = Looks(torch.empty(0), goals_of(traces), np.array(numbers), np.array(times))
    return torch.stack(features), looks


def _act(
    options: TrainOptions,
    config: PolicyConfig,
    split: _Split,
    trainer: ActTrainer,
    features: tuple[Tensor, Tensor],
    looks: tuple[Looks, Looks],
    metric: TipMetric,
    name: str = "act.pt",
) -> Iterator[str]:
    """The last stage, which goes on from the file `name` in the work folder."""
    episodes, judged = (
        Episodes(
            config, traces, given.clone(), seen.trace, seen.seen_s, options.lag_s, trainer.expert
        )
        for traces, given, seen in zip((split.learned, split.kept), features, looks, strict=True)
    )
    kept = _drawn(judged, options.batch)
    schedule = Schedule(options.act_steps, options.batch, options.act_rate)
    with Record(options.work, "act", options.act_steps) as record:
        trainer.learn(episodes, kept, schedule, metric, options.work / name, record)
    figures = trainer.judge(kept, metric)
    yield _said(figures)


def _said(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def _drawn(episodes: Episodes, size: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [episodes.draw(size, rng) for _ in range(_JUDGED_BATCHES)]
