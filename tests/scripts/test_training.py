"""Training: the same numbers as the policy at work, from where it was stopped, by one command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from common.wire import RobotState
from policies.base import AT_REST
from policies.qwen_vla import load_policy
from policies.qwen_vla.images import PatchShape
from scripts.train import TrainOptions
from scripts.training.act import ActTrainer, Episodes
from scripts.training.data import read_traces
from scripts.training.errors import TipMetric
from scripts.training.hindsight import SIGHT_DEG, in_place_of_features, take_features
from scripts.training.look import LookTrainer
from scripts.training.looks import collect_looks, levels_of
from scripts.training.loop import Schedule, learning_rate
from scripts.training.run import train
from scripts.training.small import SmallParts, make_small
from scripts.training.traces import Trace, from_demonstration
from sim.demonstration_files import Demonstration, write_demonstrations
from sim.demonstrations import Demonstrator
from sim.layout import HOME_DEG, tip_transform
from tests.support import ROOT

VIEWS = ("View3", "View4")


@pytest.fixture(scope="module")
def made() -> Iterator[list[Demonstration]]:
    with closing(Demonstrator(VIEWS, 320, 180)) as demonstrator:
        kinds = ("inside", "look", "look")
        yield [demonstrator.make(seed, kinds[seed % 3]) for seed in range(30)]


@pytest.fixture(scope="module")
def traces(made: list[Demonstration]) -> list[Trace]:
    return [from_demonstration(one) for one in made]


@pytest.fixture
def small(traces: list[Trace]) -> SmallParts:
    torch.set_num_threads(1)
    goals = torch.tensor(np.array([trace.goal_deg for trace in traces]), dtype=torch.float32)
    return make_small(VIEWS, goals)


def test_the_slow_half_in_training_is_the_one_at_work(small: SmallParts) -> None:
    rng = np.random.default_rng(0)
    pictures = {view: rng.integers(0, 256, (360, 640, 3), dtype=np.uint8) for view in VIEWS}
    levels = levels_of(list(pictures.values()), small.config, PatchShape())
    slow = small.slow().eval()
    with torch.no_grad():
        trained = slow(torch.stack((levels, levels)))
    policy = small.policy()
    policy.backbone._pass._exact_resize = False  # as in training
    given = policy.encode(pictures, small.config.task)[0, 0]
    assert torch.allclose(trained[0], given, atol=1e-5)
    assert torch.allclose(trained[1], given, atol=1e-5)


def test_the_tip_metric_is_the_tips_displacement() -> None:
    metric = TipMetric(HOME_DEG, (0.0, 0.0, 70.0))
    error = torch.tensor([0.02, -0.01, 0.03, 0.05, -0.02, 0.4])
    _, tip = tip_transform(HOME_DEG)
    _, moved = tip_transform(np.add(HOME_DEG, error.numpy()))
    assert metric(error)[:3].numpy() == pytest.approx(moved - tip, abs=2e-4)
    # A turn about the tool's own axis moves no tip, and counts all the same.
    about_itself = metric(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]))
    assert about_itself[:3].abs().max() < 1e-3
    assert about_itself.norm() == pytest.approx(4.0 * np.radians(1.0), rel=0.01)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 10, 1.0) for step in range(101)]
    assert rates[9] == max(rates) == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def look_trainer(small: SmallParts) -> LookTrainer:
    assert small.config.robot is not None
    torch.manual_seed(1)
    return LookTrainer(small.slow(), small.config.expert.vl_features, small.config.robot)


def test_looking_is_learned_and_goes_on_where_it_was(
    small: SmallParts, traces: list[Trace], tmp_path: Path
) -> None:
    looks = collect_looks(traces, small.config, PatchShape())
    metric = TipMetric(HOME_DEG, (0.0, 0.0, 70.0))
    before = {name: value.clone() for name, value in small.model.state_dict().items()}
    reports: dict[str, dict[int, dict[str, float]]] = {"whole": {}, "parts": {}}
    weights = []
    for name, stops in (("whole", (12,)), ("parts", (6, 12))):
        for stop in stops:
            small.model.load_state_dict(before)
            trainer = look_trainer(small)
            schedule = Schedule(12, 8, 3e-3, warmup=2)
            path = tmp_path / f"{name}.pt"

            def report(
                step: int, figures: dict[str, float], name: str = name, stop: int = stop
            ) -> None:
                reports[name][step] = figures
                if step == stop < 12:
                    raise KeyboardInterrupt

            try:
                trainer.learn(looks, looks, schedule, metric, path, report, every=6)
            except KeyboardInterrupt:
                assert stop < 12
        weights.append(trainer.goal.weight.detach().clone())
    assert reports["whole"][12]["tip_mm"] < reports["whole"][6]["tip_mm"]
    assert reports["parts"][12]["tip_mm"] == pytest.approx(reports["whole"][12]["tip_mm"], rel=1e-3)
    assert torch.allclose(weights[0], weights[1], atol=1e-5)


def episodes(small: SmallParts, traces: list[Trace]) -> Episodes:
    numbers = np.concatenate([[n] * len(t.seen_s) for n, t in enumerate(traces)])
    seen = np.concatenate([t.seen_s for t in traces])
    features = torch.randn(len(seen), 128, generator=torch.Generator().manual_seed(0))
    return Episodes(small.config, traces, features, numbers, seen, 0.0, small.expert)


def test_rows_are_where_the_arm_went(small: SmallParts, traces: list[Trace]) -> None:
    batch = episodes(small, traces).draw(64, np.random.default_rng(0))
    assert batch.windows.shape == (64, 65, 1044)
    assert batch.rows_deg.shape == (64, 16, 6)
    assert batch.valid[:, 0].float().mean() > 0.6
    # The last values of each sample are the joints that the rows begin at.
    robot = small.config.robot
    assert robot is not None
    told = batch.windows[:, 0, 1026:1032] * torch.tensor(robot.span_deg)
    told += torch.tensor(robot.center_deg)
    assert torch.allclose(told, batch.start_deg, atol=1e-4)
    # A tenth of a second on, an arm with these limits is not far.
    near = (batch.rows_deg[:, 0] - batch.start_deg).abs()[batch.valid[:, 0]]
    assert near.max() < 5.0
    assert near.max() > 0.1


def test_acting_is_learned(small: SmallParts, traces: list[Trace], tmp_path: Path) -> None:
    drawn = episodes(small, traces)
    trainer = ActTrainer(small.config, small.sensor, small.expert)
    kept = [drawn.draw(32, np.random.default_rng(9))]
    metric = TipMetric(HOME_DEG, (0.0, 0.0, 70.0))
    reports: list[float] = []
    before = trainer.judge(kept, metric)["first_mm"]
    trainer.learn(
        drawn, kept, Schedule(40, 16, 2e-3, warmup=5), metric, tmp_path / "act.pt",
        lambda _, figures: reports.append(figures["first_mm"]), every=20,
    )  # fmt: skip
    assert reports[-1] < reports[0] < before
    # What has no example is left alone.
    assert not trainer.expert.get_parameter("output_head.1.weight")[6:].any()


def test_an_expert_taught_goals_takes_features_instead(small: SmallParts) -> None:
    assert small.config.robot is not None
    look = look_trainer(small)
    rng = torch.Generator().manual_seed(3)
    features = torch.randn(5, 128, generator=rng)
    with torch.no_grad():
        goals = look.home_deg + look.span_deg * look.goal(features)
        told = in_place_of_features(goals, small.config.robot, 128, seed=0)
        again = in_place_of_features(goals, small.config.robot, 128, seed=0)
        # About as wrong as said, and the same each time.
        wrong = (told[:, :6] - look.goal(features)) * look.span_deg
        assert torch.equal(told, again)
        assert 0.5 * SIGHT_DEG < wrong.std() < 2 * SIGHT_DEG
        told[:, :6] = look.goal(features)
        sensor = torch.randn(5, 256, generator=rng)
        expert = small.expert.eval()
        wanted, _ = expert(told.unsqueeze(1), sensor)
        assert not torch.allclose(expert(features.unsqueeze(1), sensor)[0], wanted, atol=1e-2)
        take_features(expert, look.goal, small.config.robot)
        assert torch.allclose(expert(features.unsqueeze(1), sensor)[0], wanted, atol=1e-4)


def test_normalization_is_settled_after_a_while(
    small: SmallParts, traces: list[Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.training.act._SETTLED_STEPS", 3)
    drawn = episodes(small, traces)
    trainer = ActTrainer(small.config, small.sensor, small.expert)
    kept = [drawn.draw(8, np.random.default_rng(9))]
    metric = TipMetric(HOME_DEG, (0.0, 0.0, 70.0))
    means = []
    for steps in (2, 3, 6):
        trainer.learn(
            drawn, kept, Schedule(steps, 8, 1e-3, warmup=1), metric, tmp_path / "act.pt",
            lambda *_: None,
        )  # fmt: skip
        means.append(small.sensor.get_buffer("conv_backbone.1.running_mean").clone())
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[2])


def test_two_stages_may_be_trained_by_themselves(made: list[Demonstration], tmp_path: Path) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    write_demonstrations(data / "0.npz", made)

    def stages(only: Literal["feel", "look"] | None) -> list[str]:
        options = TrainOptions(
            (data,), tmp_path / "policy", work, kept=0.3, batch=4, threads=1, only=only,
            feel_steps=2, look_steps=2, act_steps=2,
        )  # fmt: skip
        list(train(options))
        lines = (work / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["stage"] for line in lines]

    assert stages("look") == ["look"]
    assert stages("feel") == ["look", "feel"]
    assert not (tmp_path / "policy").exists()
    # Both are there: only the last is left to do.
    assert stages(None) == ["look", "feel", "act"]
    assert (tmp_path / "policy").exists()


def test_one_command_trains_a_policy_that_runs(made: list[Demonstration], tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "policy"
    data.mkdir()
    write_demonstrations(data / "0.npz", made)
    arguments = ["--data", data, "--out", out, "--work", tmp_path / "work", "--kept", 0.3]
    arguments += ["--look-steps", 3, "--act-steps", 3, "--feel-steps", 3]
    arguments += ["--batch", 4, "--threads", 1]
    command = [sys.executable, "scripts/train.py", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "training.png").read_bytes().startswith(b"\x89PNG")
    stages = [
        json.loads(line) for line in (tmp_path / "work/metrics.jsonl").read_text().splitlines()
    ]
    assert {entry["stage"] for entry in stages} == {"feel", "look", "act"}
    policy = load_policy(out, device="cpu")
    weights = out / "model.safetensors"
    assert weights.stat().st_size < 25e6
    rng = np.random.default_rng(0)
    pictures = {view: rng.integers(0, 256, (360, 640, 3), dtype=np.uint8) for view in VIEWS}
    robot: RobotState = dataclasses.replace(AT_REST, joints=HOME_DEG)
    features = policy.encode(pictures, policy.spec.task)
    chunk = policy.act(features, np.zeros((65, 1026), np.float32), robot)
    assert chunk.actions.shape == (16, 7)
    assert np.abs(chunk.actions[:, :6] - HOME_DEG).max() < 30.0
    assert (chunk.actions[:, 6] == 0).all()


def test_what_cannot_be_trained_on(made: list[Demonstration], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither demonstrations"):
        read_traces([tmp_path], VIEWS)
    path = tmp_path / "00000.npz"
    write_demonstrations(path, made[:2])
    path.write_bytes(path.read_bytes()[:-100])
    command = [sys.executable, "scripts/train.py", "--data", str(tmp_path), "--work", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{path} holds no demonstrations" in line
